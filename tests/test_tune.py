"""A search draws the same in one sitting as in several, prunes what is poor, and ends in a command that can be pasted."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import tune as program
from agents.statistics import Estimate
from compose import CONF, compose
from plan import check
from settings import SettingsError

optuna = pytest.importorskip("optuna")
ROOT = Path(__file__).parents[1]
WORDS = ["env=tiny", "agents=ppo", "tracking=none"]
SPACE = "space={agents.gamma: {low: 0.9, high: 0.99, log: false}, agents.epochs: [2, 4], agents.hidden: [[8], [16, 16]]}"


class FakeRuns:
    """Stands in for train(): keeps what it was asked for; given rewards, it reports one after each part of a run."""

    def __init__(self, *, stop_at: int | None = None, rewards: Callable[[int], float] | None = None) -> None:
        self.asked: list[Any] = []
        self._stop_at, self._rewards = stop_at, rewards

    def __call__(
        self, config: Any, folder: Path, files: Mapping[str, str], watch: Callable[[Mapping[str, float], int], None]
    ) -> Any:
        if len(self.asked) == self._stop_at:
            raise KeyboardInterrupt
        self.asked.append(config)
        print("a table")
        for tick in range(1, program.TICKS + 1) if self._rewards else ():
            watch({"train/reward_mean": self._rewards(len(self.asked))}, tick * config.agents.steps // program.TICKS)
        watch({"eval/slo_attainment": 0.5}, config.agents.steps)
        score = 1 - abs(config.agents.gamma - 0.95)
        found = Estimate(score, score - 0.1, score + 0.1)
        return SimpleNamespace(score=score, subject="ppo_tiny", evaluation=SimpleNamespace(estimate=lambda *_: found))

    @property
    def drawn(self) -> list[tuple[float, int, list[int]]]:
        return [(asked.agents.gamma, asked.agents.epochs, list(asked.agents.hidden)) for asked in self.asked]


def search(monkeypatch: pytest.MonkeyPatch, folder: Path, runs: FakeRuns, *words: str) -> int:
    """Run the command line with stand-ins; returns its exit code."""
    monkeypatch.setattr(program, "train", runs)
    try:
        space = [] if any(word.startswith("space=") for word in words) else [SPACE]
        program.main([*WORDS, *space, f"folder={folder}", "startup_trials=2", *words])
    except SystemExit as stop:
        return int(str(stop.code))
    return 0


def test_a_search_in_several_sittings_is_the_one_that_was_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, first, second, third = FakeRuns(), FakeRuns(), FakeRuns(stop_at=1), FakeRuns()
    assert search(monkeypatch, tmp_path / "whole", whole, "trials=5") == 0
    assert search(monkeypatch, tmp_path / "parts", first, "trials=2") == 0
    assert search(monkeypatch, tmp_path / "parts", second, "trials=5") == 130
    assert search(monkeypatch, tmp_path / "parts", third, "trials=5") == 0
    assert first.drawn + second.drawn + third.drawn == whole.drawn and len(whole.drawn) == 5
    assert len(set(map(str, whole.drawn))) > 1


def test_another_seed_is_another_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = FakeRuns(), FakeRuns()
    search(monkeypatch, tmp_path / "one", one, "trials=3", "search_seed=1")
    search(monkeypatch, tmp_path / "other", other, "trials=3", "search_seed=2")
    assert one.drawn != other.drawn


def test_the_best_settings_are_a_command_of_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = FakeRuns()
    search(monkeypatch, tmp_path, runs, "trials=6")
    out, err = capsys.readouterr()
    said, command = out.splitlines()
    words = shlex.split(command)
    assert words[:2] == ["python", "train.py"] and words[2:5] == WORDS
    composed = compose(words[2:])
    assert check(composed.values, composed.files).name == "ppo_tiny"
    best = min(runs.asked, key=lambda asked: abs(asked.agents.gamma - 0.95))
    assert composed.values.agents == best.agents
    assert composed.values.eval_first_seed == 1_000_000, "the best is judged anew, on seeds that the search has not seen"
    assert said.startswith("best of 6 whole trials, 0 pruned: attainment") and "trial 6 of 6" in err


def test_every_trial_is_judged_on_the_validation_seeds_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = FakeRuns()
    search(monkeypatch, tmp_path, runs, "trials=2", "validation_seeds=7", "validation_first_seed=3_000_000")
    assert [(asked.eval_first_seed, asked.eval_seeds) for asked in runs.asked] == [(3_000_000, 7)] * 2
    assert [asked.output for asked in runs.asked] == [str(tmp_path / "ppo_tiny" / f"trial_00{i}") for i in (0, 1)]
    assert (tmp_path / "ppo_tiny" / "trial_001" / "output.txt").read_text() == "a table\n"


def test_a_trial_that_is_poor_halfway_is_pruned_and_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = FakeRuns(rewards=lambda trial: -float(trial))  # each worse than all before
    search(monkeypatch, tmp_path, runs, "trials=4", "prune_startup_trials=2", "prune_from=0.5", "agents.steps=2000")
    out, err = capsys.readouterr()
    assert err.count("pruned after 1,000 agent-steps") == 2 and len(runs.asked) == 4
    assert "best of 2 whole trials, 2 pruned" in out


def test_weights_that_diverge_end_a_trial_and_not_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from agents.iterations import LearningError

    def diverge(*_: object) -> None:
        raise LearningError("ppo: weights are no longer finite")

    assert search(monkeypatch, tmp_path, diverge, "trials=2") == 0  # type: ignore[arg-type]
    out, err = capsys.readouterr()
    assert err.count("no longer finite") == 2 and out.startswith("no trial came to its end")


def test_a_study_of_other_settings_is_refused_by_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(monkeypatch, tmp_path, FakeRuns(), "trials=1") == 0
    for other in ("agents.steps=5_000", "search_seed=4", "space={agents.clip: [0.1]}"):
        capsys.readouterr()
        assert search(monkeypatch, tmp_path, FakeRuns(), "trials=2", other) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "study=ANOTHER_NAME" in line and "env=tiny" in line
    assert search(monkeypatch, tmp_path, FakeRuns(), "trials=2", "agents.steps=5_000", "study=mine") == 0
    assert (tmp_path / "mine" / "study.db").exists()


SLIPS = {
    "trials=0": "command line: trials must be an integer in [1, 100000] trials, got 0",
    "trails=3": "command line: trails is not a setting",
    "agents=paper": "command line: agents is paper, which has nothing to learn; choose a learner",
    "agents.gama=1": "command line: agents.gama is not a setting; did you mean gamma?",
    "space={}": "command line: space must name at least one setting",
    "space={agents.gama: [0.9]}": "command line: agents.gama is not a setting; did you mean gamma?",
    "space={agents.gamma: {low: 0.9, high: 1.5, log: false}}": "command line: agents.gamma must be a share in [0, 1], got 1.5",
    "space={agents.gamma: {low: 1, high: 0.5, log: false}}": "conf/tune.yaml, agents.gamma: low must be below high, got 1 and 0.5",
    "space={agents.clip: {low: 0, high: 0.5, log: true}}": "low must be above 0 on a logarithmic scale, got 0",
    "space={agents.gamma: 0.9}": "must be {low, high, log} or a list of choices, got 0.9",
    "output=mine": "command line: output=mine has no meaning in a search",
    "eval_seeds=5": "command line: eval_seeds=5 has no meaning in a search",
    "-m": "command line: -m has no meaning in a search",
}


@pytest.mark.parametrize("word", SLIPS)
def test_a_slip_is_refused_by_name_before_the_first_trial(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = FakeRuns()
    assert search(monkeypatch, tmp_path, runs, word) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert SLIPS[word] in line and runs.asked == [] and list(tmp_path.iterdir()) == []


def test_without_optuna_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(program, "find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        program.main(WORDS)
    assert capsys.readouterr().err == "tune.py: needs Optuna: pip install 'wwwserve[sweep]'\n"


def test_the_shipped_space_is_good_for_every_learner_that_it_is_made_for() -> None:
    composed = compose([], "tune")
    found, space = program.read_search(composed)
    assert set(space) == set(yaml.safe_load((CONF / "tune.yaml").read_text())["space"])
    for agents in ("ppo", "maskable_ppo", "mappo"):
        assert program._check_each(found, space, [f"agents={agents}"]).agents.name == agents


def test_the_help_shows_commands_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    program.main(["--help"])
    assert "python tune.py env=paper-1" in capsys.readouterr().out


def test_a_wrong_end_of_an_interval_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="low must be below high"):
        program.Interval(1, 1, False)
    with pytest.raises(SettingsError):
        program._read_space({"agents.gamma": []})


def test_a_real_search_of_two_trials(tmp_path: Path) -> None:
    small = ["agents.steps=256", "agents.networks=2", "agents.rollout=8", "agents.minibatch=32", "validation_seeds=2", "trials=2"]
    space = "space={agents.learning_rate: {low: 0.0001, high: 0.001, log: true}}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "HYDRA_"))}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tune.py"), *WORDS, *small, space],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "best of 2 whole trials" in done.stdout and "agents.learning_rate=0.000" in done.stdout
    trial = tmp_path / "runs" / "tune" / "ppo_tiny" / "trial_001"
    assert (trial / "ppo_tiny" / "policy.onnx").exists() and (trial / "evaluation.json").exists()
