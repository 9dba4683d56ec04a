"""Variants are trained once from every seed and judged by the protocol; what cannot be, or is of other settings, is named."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from stand_ins import card_of, linear_onnx

from agents import protocol, statistics
from benchmarks import learning
from benchmarks.learning import CLAIM, METRICS, Settings, Study, main, plan, read_kept, run
from benchmarks.measure import Child
from compose import compose
from market.action import MASK_SIZE
from market.observation import OBSERVATION_SIZE
from settings import SettingsError, plain, read

STUDY = Study(
    title="a small one",
    train=["env=tiny"],
    evaluate=["env=tiny", "env.reward.social=0"],
    variants={"selfish": ["agents=ppo", "env.reward.social=0"], "team": ["agents=mappo", "env.reward.social=1"]},
)
Words = list[list[str]]


def settings(folder: Path, **values: object) -> Settings:
    """Where a test trains and plays."""
    small = Settings(only=[], seeds=[3, 5], steps=1000, episodes=2, folder=str(folder / "runs"), output=str(folder / "kept"))
    return replace(small, **values)  # type: ignore[arg-type]


def leave_policy(folder: Path, bias: float) -> None:
    """Put down what train.py leaves of a unit."""
    content = linear_onnx(np.zeros((OBSERVATION_SIZE, MASK_SIZE)), np.linspace(0, bias, MASK_SIZE))
    folder.mkdir(parents=True)
    (folder / "policy.onnx").write_bytes(content)
    card = card_of(content) | {"name": "policy", "training": {"agent_steps": 1024, "wall_s": 2.0 + bias}}
    (folder / "card.yaml").write_text(yaml.safe_dump(card))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Words:
    """Stand in for train.py; the command lines that it was called with."""
    called: Words = []

    def child(words: list[str], **environment: str) -> Child:
        called.append(words)
        said = dict(word.partition("=")[::2] for word in words if "=" in word)
        leave_policy(Path(said["output"]) / said["name"], float(said["seed"]))
        return Child("", 1.0, 1.0, 1)

    monkeypatch.setattr(learning, "child", child)
    return called


def test_every_seed_of_every_variant_is_trained_once_at_equal_steps_apart_from_shipped_policies(
    tmp_path: Path, trainings: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("small", STUDY, settings(tmp_path), quick=False) == 0
    told = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()[:4]]
    assert told == ["selfish from seed 3", "team from seed 3", "selfish from seed 5", "team from seed 5"], "a seed before the next"
    assert all("agents.steps=1000" in words and "tracking=csv" in words for words in trainings)
    folders = [word for words in trainings for word in words if word.startswith(("output=", "hydra.run.dir="))]
    assert len(set(folders)) == 8 and all(str(tmp_path / "runs" / "small") in word for word in folders)
    before = (tmp_path / "kept" / "small.json").read_text()
    assert run("small", STUDY, settings(tmp_path), quick=False) == 0
    assert len(trainings) == 4, "what is there is not trained again"
    once, again = (json.loads(text) for text in (before, (tmp_path / "kept" / "small.json").read_text()))
    assert once["variants"] == again["variants"]


def test_a_study_that_was_stopped_trains_what_is_missing_and_goes_on_from_a_checkpoint(tmp_path: Path, trainings: Words) -> None:
    run("small", STUDY, settings(tmp_path), quick=False)
    folder = tmp_path / "runs" / "small" / "team" / "seed_5"
    shutil.rmtree(folder / "policy")
    (folder / "run").mkdir()
    (folder / "run" / "checkpoint.npz").touch()
    run("small", STUDY, settings(tmp_path), quick=False)
    assert len(trainings) == 5 and f"resume={folder / 'run'}" in trainings[-1]
    assert not any(word.startswith("resume=") for words in trainings[:4] for word in words)


@pytest.mark.parametrize(
    ("other", "was"),
    [
        (lambda: settings(Path(), steps=2000), r"other settings \(env=tiny agents=ppo .*agents.steps=1000 seed=3\)"),
        (lambda: None, "the same settings and other code"),
    ],
)
def test_a_folder_of_other_settings_or_code_is_refused_before_anything_is_trained(
    tmp_path: Path,
    trainings: Words,
    monkeypatch: pytest.MonkeyPatch,
    other: Callable[[], Settings | None],
    was: str,
) -> None:
    run("small", STUDY, settings(tmp_path), quick=False)
    changed = other()
    if changed is None:
        monkeypatch.setattr(learning, "SOURCES", ("agents/ppo.py",))
    asked = settings(tmp_path, steps=changed.steps) if changed else settings(tmp_path)
    with pytest.raises(SettingsError, match=rf"selfish/seed_3: was begun with {was}; remove it, or give folder=ANOTHER"):
        run("small", STUDY, asked, quick=False)
    assert len(trainings) == 4


def test_a_claim_says_what_a_folder_is_of(tmp_path: Path) -> None:
    units, _ = plan("small", STUDY, settings(tmp_path))
    learning.claim(units[0])
    found = json.loads((units[0].folder / CLAIM).read_text())
    assert found == {"digest": units[0].digest, "words": list(units[0].words)}
    assert len({unit.digest for unit in units}) == 4, "seed and settings are in the digest"


def test_a_variant_that_cannot_be_is_left_out_by_name_and_the_others_go_on(
    tmp_path: Path, trainings: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    study = replace(STUDY, variants={**STUDY.variants, "lost": ["agents=recurent"], "still": ["agents=paper"]})
    assert run("small", study, settings(tmp_path), quick=False) == 2
    lines = capsys.readouterr().err.splitlines()
    place = "conf/learning/small.yaml: variants"
    assert lines[0].startswith(f"{place}.lost is left out: command line: agents=recurent names no file of conf/agents")
    assert lines[1].startswith(f"{place}.still is left out: command line: agents.steps is not a setting")
    assert len(trainings) == 4
    assert not (tmp_path / "kept").exists(), "what is kept is whole"
    assert set(json.loads((tmp_path / "runs" / "small" / "small.json").read_text())["variants"]) == {"selfish", "team"}


def test_part_of_a_study_stays_beside_its_runs(tmp_path: Path, trainings: Words, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("small", STUDY, settings(tmp_path, only=["team"]), quick=True) == 0
    assert len(trainings) == 2 and not (tmp_path / "kept").exists()
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == (tmp_path / "runs" / "small" / "small.json").read_text().rstrip()
    with pytest.raises(SettingsError, match="command line: only names teem; did you mean team"):
        run("small", STUDY, settings(tmp_path, only=["teem"]), quick=True)


def test_nothing_is_written_where_every_variant_is_refused(tmp_path: Path, trainings: Words) -> None:
    study = replace(STUDY, variants={"still": ["agents=paper"]})
    assert run("small", study, settings(tmp_path), quick=False) == 2
    assert not trainings and not list(tmp_path.iterdir())


def test_what_is_kept_tells_what_each_variant_reached_from_which_seeds_and_at_what_cost(tmp_path: Path, trainings: Words) -> None:
    run("small", STUDY, settings(tmp_path), quick=False)
    found = json.loads((tmp_path / "kept" / "small.json").read_text())
    assert (found["seeds"], found["steps"], found["episodes"]) == ([3, 5], 1000, 2)
    assert found["first_episode"] == protocol.FIRST_SEED and found["protocol"] == protocol.VERSION
    assert found["command"] == "python -m benchmarks.learning small"
    team = found["variants"]["team"]
    assert (team["agents"], team["social"], team["agent_steps"]) == ("mappo", 1, [1024, 1024])
    assert team["set"] == ["env=tiny", "agents=mappo", "env.reward.social=1", "agents.steps=1000"]
    assert team["learning_s"] == [6.0, 5.0, 7.0]
    for metric in METRICS:
        point, low, high = team["summary"][metric]
        assert low <= point <= high and len(team["per_seed"][metric]) == 2
    assert set(found["variants"]["selfish"]["difference"]) == set(METRICS)
    same = found["variants"]["selfish"]["difference"]["slo_attainment"]
    assert same[0] == 0.0, "the first variant is what the others are compared with"


def test_all_are_judged_in_one_market_whatever_they_learned_from(tmp_path: Path, trainings: Words) -> None:
    twins = {"selfish": ["agents=ppo", "env.reward.social=0"], "team": ["agents=ppo", "env.reward.social=1"]}
    run("small", replace(STUDY, variants=twins), settings(tmp_path), quick=False)
    found = json.loads((tmp_path / "kept" / "small.json").read_text())["variants"]
    assert found["selfish"]["social"] == 0 and found["team"]["social"] == 1
    assert found["selfish"]["summary"] == found["team"]["summary"], "the stand-ins of a seed are the same policy"


def test_an_interval_holds_the_luck_of_a_training() -> None:
    episodes = np.random.default_rng(0).normal(0.9, 0.01, 200)
    lucky = np.stack([episodes - 0.1, episodes, episodes + 0.1])
    whole, apart = statistics.crossed(lucky), statistics.estimate(lucky.reshape(-1))
    assert whole.low < 0.81 and whole.high > 0.99
    assert apart.high - apart.low < 0.1 * (whole.high - whole.low) + 0.05, "episodes alone say less"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["social", "seeds=[1]"], "conf/learning.yaml: seeds must be at least 2 different ones"),
        (["social", "seeds=[1,1]"], "conf/learning.yaml: seeds must be at least 2 different ones"),
        (["social", "stepps=3"], "command line: stepps is not a setting; did you mean steps?"),
        (["socail"], "command line: learning=socail names no file of conf/learning; did you mean social?"),
    ],
)
def test_a_slip_on_the_command_line_is_named(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert re.search(text, capsys.readouterr().err)


def test_help_names_examples_studies_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0 and main([]) == 0
    text = capsys.readouterr().out
    assert "NAME is one of learners, social" in text and "steps: 2_000_000" in text and "a quick look" in text


@pytest.mark.parametrize("name", ["learners", "social"])
def test_the_shipped_studies_can_be_planned_at_the_protocols_episodes(name: str, tmp_path: Path) -> None:
    composed = compose([f"learning={name}"], "learning")
    values = plain(composed.values, "conf/learning.yaml")
    study = read(Study, values.pop("learning"), "conf/learning")
    asked = read(Settings, values, "conf/learning.yaml")
    assert asked.episodes == protocol.SEEDS
    units, refused = plan(name, study, replace(asked, folder=str(tmp_path)))
    assert len(units) == len(asked.seeds) * len(study.variants) and not refused
    assert len({unit.digest for unit in units}) == len(units)
    steps = {word for unit in units for word in unit.words if word.startswith("agents.steps=")}
    assert steps == {f"agents.steps={asked.steps}"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "cannot be read as figures of learning"),
        ("[]", "is not a file of figures"),
        (
            '{"benchmark": "learning/other"}',
            r"benchmark must be learning/small\); write it with python -m benchmarks",
        ),
        ('{"benchmark": "learning/small", "protocol": 1}', f"protocol is 1, this build's is {protocol.VERSION}"),
    ],
)
def test_a_file_that_is_none_of_figures_or_of_another_protocol_is_refused(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "small.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=text):
        read_kept(path)


@pytest.mark.slow
def test_a_unit_is_trained_by_train_py_itself(tmp_path: Path) -> None:
    small = ["agents.networks=2", "agents.rollout=8", "agents.minibatch=32", "agents.hidden=[8]"]
    study = replace(STUDY, variants={"selfish": ["agents=ppo", *small]})
    assert run("small", study, settings(tmp_path), quick=True) == 0
    found = json.loads((tmp_path / "runs" / "small" / "small.json").read_text())["variants"]["selfish"]
    assert all(steps >= 1000 for steps in found["agent_steps"]) and found["learning_s"][0] > 0
