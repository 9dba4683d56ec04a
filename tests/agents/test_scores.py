"""Scores reach the terminal, JSON, marl-eval and a policy's card with the same numbers, and a missing value stays missing."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from stand_ins import SmallMarket

from agents import protocol
from agents.card import CARD_FILE
from agents.evaluate import evaluate
from agents.export import add_scores
from agents.metrics import METRICS
from agents.policy import load
from agents.scores import SHOWN, Evaluation, marl_eval, table, to_json, write_json

NAMES = ("single", "paper", "paper_central", "central", "uniform")


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate(SmallMarket, [load(name) for name in NAMES], 5, 1_000_000)


def test_the_json_has_every_metric_of_every_policy_and_seed(evaluation: Evaluation) -> None:
    found = json.loads(json.dumps(to_json(evaluation), allow_nan=False))
    assert found["protocol"] == protocol.VERSION and found["seeds"] == 5 and list(found["policies"]) == list(NAMES)
    assert set(found["metrics"]) == set(METRICS)
    for policy in found["policies"].values():
        assert set(policy["summary"]) == set(METRICS)
        assert set(policy["per_seed"]) == set(METRICS) - {"price_of_anarchy"}
        assert all(len(values) == 5 for values in policy["per_seed"].values())
        assert len(policy["curve"]) == len(found["thresholds"]["values"])
        assert all(len(values) == 3 for values in policy["per_provider"].values())
    assert set(found["policies"]["uniform"]["difference"]) == {"paper", "single"}
    assert set(found["policies"]["paper"]["difference"]) == {"single"}


def test_a_missing_value_is_null_in_the_json(evaluation: Evaluation) -> None:
    single = to_json(evaluation)["policies"]["single"]
    assert single["summary"]["offers_declined_share"] is None
    assert single["per_seed"]["offers_declined_share"] == [None] * 5


def test_the_curve_of_the_json_meets_the_attainment_at_the_slo(evaluation: Evaluation) -> None:
    found = to_json(evaluation)
    at_slo = int(np.argmin(np.abs(evaluation.thresholds - evaluation.slo)))
    for policy in found["policies"].values():
        assert policy["curve"][at_slo][0] == pytest.approx(policy["summary"]["slo_attainment"][0], abs=1e-5)


def test_marl_eval_gets_a_run_for_every_seed_with_the_same_metrics(evaluation: Evaluation) -> None:
    found = json.loads(json.dumps(marl_eval(evaluation, "wwwserve"), allow_nan=False))
    assert list(found) == ["wwwserve"] and list(found["wwwserve"]) == ["small"]
    for name, runs in found["wwwserve"]["small"].items():
        assert list(runs) == [f"seed_{seed}" for seed in range(5)]
        for seed, run in enumerate(runs.values()):
            assert set(run) == {"step_0", "absolute_metrics"}
            assert run["step_0"].pop("step_count") == 0
            assert run["step_0"] == run["absolute_metrics"]
            assert run["step_0"]["slo_attainment"] == [evaluation.played[name].metrics["slo_attainment"][seed]]
    assert "offers_declined_share" not in found["wwwserve"]["small"]["single"]["seed_0"]["absolute_metrics"]


def test_the_table_fits_eighty_columns_and_hides_no_digit(evaluation: Evaluation) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(evaluation))
    text = console.export_text()
    assert "…" not in text
    assert all(metric in text for metric in SHOWN)
    assert "uniform against paper, seed by seed" in text


def test_a_policys_card_takes_the_scores_of_an_evaluation(evaluation: Evaluation, write_folder: Callable[..., Path]) -> None:
    folder = write_folder()
    add_scores(folder, evaluation.card_scores())
    scores = yaml.safe_load((folder / CARD_FILE).read_text())["scores"]["small"]
    point = evaluation.estimate("paper", "slo_attainment")
    assert point is not None and scores["slo_attainment"]["paper"] == pytest.approx(point, rel=1e-5)
    assert scores["price_of_anarchy"]["single"] is None
    assert scores["price_of_anarchy"]["central"] == [1.0, 1.0, 1.0]


def test_the_flat_table_has_a_row_for_every_policy_and_metric(evaluation: Evaluation) -> None:
    columns, rows = evaluation.rows()
    assert columns == ["policy", "metric", "unit", "point", "low", "high"]
    assert [row[:2] for row in rows] == [[name, metric] for name in NAMES for metric in METRICS]


def test_a_json_file_with_a_value_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []
