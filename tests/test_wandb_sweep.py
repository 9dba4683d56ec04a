"""The sweep for W&B becomes, by W&B's own rules, command lines that train.py takes."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

import tune
from compose import CONF, compose
from plan import check

ROOT = Path(__file__).parents[1]
SWEEP: dict[str, Any] = yaml.safe_load((CONF / "wandb_sweep.yaml").read_text(encoding="utf-8"))


def values(parameter: dict[str, Any]) -> list[Any]:
    """A parameter's ends or choices."""
    if "value" in parameter:
        return [parameter["value"]]
    return list(parameter["values"]) if "values" in parameter else [parameter["min"], parameter["max"]]


def command(chosen: dict[str, Any]) -> list[str]:
    """The words after the program, as W&B's agent puts them together."""
    arguments = create_sweep_command_args({"args": {name: {"value": value} for name, value in chosen.items()}})
    words: list[str] = []
    for word in SWEEP["command"][3:]:
        words += arguments[word[2:-1]] if word.startswith("${") else [word]
    return words


@pytest.mark.parametrize("name", SWEEP["parameters"])
def test_every_end_and_choice_is_a_setting_of_train(name: str) -> None:
    for value in values(SWEEP["parameters"][name]):
        composed = compose([*command({name: value}), "tracking=none"])
        plan = check(composed.values, composed.files)
        assert plan.agents.name == "ppo"


def test_a_whole_command_sets_every_parameter() -> None:
    chosen = {name: values(parameter)[-1] for name, parameter in SWEEP["parameters"].items()}
    composed = compose(command(chosen))
    assert composed.spoken >= set(SWEEP["parameters"])
    assert composed.values.agents.hidden == [128, 128] and composed.values.agents.learning_rate == 0.003
    assert SWEEP["program"] == "train.py" and SWEEP["command"][:3] == ["${env}", "${interpreter}", "${program}"]


def test_the_space_is_that_of_tune() -> None:
    found, space = tune.read_search(compose([], "tune"))
    parameters = dict(SWEEP["parameters"])
    assert parameters.pop("eval_first_seed")["value"] == found.validation_first_seed
    assert parameters.pop("eval_seeds")["value"] == found.validation_seeds
    assert set(parameters) == set(space)
    for name, span in space.items():
        if isinstance(span, tune.Interval):
            assert values(parameters[name]) == [span.low, span.high]
            assert parameters[name]["distribution"] == ("log_uniform_values" if span.log else "uniform")
        else:
            assert [str(value).replace(" ", "") for value in values(parameters[name])] == [word.replace(" ", "") for word in span]


def test_the_metric_is_one_that_a_run_logs() -> None:
    from agents.metrics import METRICS

    group, _, name = SWEEP["metric"]["name"].partition("/")
    assert group == "eval" and METRICS[name].direction == "higher" and SWEEP["metric"]["goal"] == "maximize"
