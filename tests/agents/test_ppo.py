"""Learning learns, stops when told, logs by the dictionary of names, and goes on after a stop as if there had been none."""

import io
import json
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_market import LEVELS, FakeMarket
from hypothesis import given, settings
from hypothesis import strategies as st
from notes import Notes

from agents import checkpoint as disk
from agents.checkpoint import Checkpoint, CheckpointError
from agents.iterations import LearningError, Trained
from agents.metrics import TRAINING_METRICS
from agents.ppo import build, learn, minibatch_rows
from agents.progress import LearningProgress
from agents.settings import SB3Learner

SLOTS, ROLLOUT = 8, 16
ROWS = SLOTS * ROLLOUT
"""Agent-steps of one iteration."""

SETTINGS = SB3Learner(
    name="ppo",
    start=None,
    networks=2,
    steps=4 * ROWS,
    control_s=None,
    rollout=ROLLOUT,
    minibatch=64,
    epochs=2,
    learning_rate=0.003,
    schedule="linear",
    reward_scale=0.5,
    gamma=0.9,
    gae_lambda=0.95,
    clip=0.2,
    ent_coef=0.0,
    vf_coef=0.5,
    max_grad_norm=0.5,
    hidden=(16, 16),
    torch_threads=1,
    checkpoint_every=ROWS,
    time_limit_s=None,
)


def train(folder: Path, market: FakeMarket | None = None, notes: Notes | None = None, **changes: Any) -> Trained:
    options = {key: changes.pop(key) for key in ("resume", "probe", "seed") if key in changes}
    folder.mkdir(exist_ok=True)
    return learn(
        market or FakeMarket(SLOTS), replace(SETTINGS, **changes), notes or Notes(), folder=folder, **({"seed": 3} | options)
    )


def weights(trained: Trained) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in trained.policy.state_dict().items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["ppo", "maskable_ppo"])
def test_learning_raises_the_reward(tmp_path: Path, name: str) -> None:
    notes = Notes()
    train(tmp_path, FakeMarket(32), notes, name=name, steps=40 * 32 * ROLLOUT, minibatch=128, epochs=4, learning_rate=0.01)
    rewards = [row["train/reward_mean"] for _, row in notes.rows]
    assert rewards[0] < 0.3 and np.mean(rewards[-3:]) > 0.6


@pytest.mark.parametrize("name", ["ppo", "maskable_ppo"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path, name: str) -> None:
    first, again = (weights(train(tmp_path / part, name=name)) for part in "ab")
    assert same(first, again)
    assert not same(first, weights(train(tmp_path / "c", name=name, seed=4)))


@pytest.mark.parametrize("name", ["ppo", "maskable_ppo"])
@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path, name: str, schedule: str) -> None:
    whole = train(tmp_path / "whole", name=name, schedule=schedule)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "part", StoppedMarket(SLOTS, 2 * ROLLOUT + 3), name=name, schedule=schedule)
    torch.rand(5)  # what happens in between does not matter
    rest = train(tmp_path / "rest", name=name, schedule=schedule, resume=tmp_path / "part")
    assert rest.steps == whole.steps == 4 * ROWS
    assert same(weights(rest), weights(whole))
    assert rest.wall_s > 0


class StoppedMarket(FakeMarket):
    """A market whose process is stopped after some steps."""

    def __init__(self, slots: int, steps: int) -> None:
        super().__init__(slots)
        self.stop_after = steps

    def step_wait(self) -> Any:
        if self.clock[0] >= self.stop_after:
            raise KeyboardInterrupt
        return super().step_wait()


def test_a_checkpoint_holds_no_pickle_and_all_that_is_needed(tmp_path: Path) -> None:
    trained = train(tmp_path)
    with zipfile.ZipFile(trained.checkpoint) as parts:
        for part in parts.namelist():
            assert b"|O" not in parts.read(part)[:128], part
    stored = disk.read(tmp_path)
    assert stored.facts["steps"] == trained.steps and stored.facts["tracker_id"] == "run-1"
    assert {name.partition("/")[0] for name in stored.arrays} == {"weights", "moments", "environment", "random", "last"}


def test_checkpoints_come_as_often_as_asked_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    original = disk.write
    monkeypatch.setattr(disk, "write", lambda path, stored: (steps.append(stored.facts["steps"]), original(path, stored)))
    train(tmp_path, steps=5 * ROWS, checkpoint_every=2 * ROWS)
    assert steps == [2 * ROWS, 4 * ROWS, 5 * ROWS]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.npz"]


@pytest.mark.parametrize("cut", [0, 10, 1000, -1])
def test_a_truncated_checkpoint_is_refused_by_name(tmp_path: Path, cut: int) -> None:
    path = train(tmp_path).checkpoint
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"checkpoint\.npz: is not a whole checkpoint"):
        disk.read(path)


@settings(max_examples=50, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_damaged_checkpoint_is_refused_or_read_as_it_was(place: float, bit: int) -> None:
    stored = Checkpoint({"weights/a": np.arange(50.0), "last/b": np.ones(3, bool)}, {"steps": 3})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.npz"
        disk.write(path, stored)
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 1 << bit
        path.write_bytes(content)
        try:
            again = disk.read(path)
        except CheckpointError as error:
            assert "checkpoint.npz" in str(error)
            return
        for name in again.arrays.keys() & stored.arrays.keys():
            assert np.array_equal(again.arrays[name], stored.arrays[name])


def test_a_pickle_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    content = io.BytesIO()
    np.savez(content, **{"facts.json": np.frombuffer(json.dumps({"version": 1}).encode(), np.uint8), "a": np.array([{}])})
    (tmp_path / "checkpoint.npz").write_bytes(content.getvalue())
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        disk.read(tmp_path)


def test_a_missing_checkpoint_and_another_version_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        disk.read(tmp_path)
    content = io.BytesIO()
    np.savez(content, **{"facts.json": np.frombuffer(json.dumps({"version": 99}).encode(), np.uint8)})
    (tmp_path / "checkpoint.npz").write_bytes(content.getvalue())
    with pytest.raises(CheckpointError, match="version 99, this build reads 1"):
        disk.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "slots", "said"),
    [
        ({"hidden": (8,)}, SLOTS, r"agents\.hidden was \[16, 16\], is \[8\]"),
        ({"name": "maskable_ppo"}, SLOTS, r"agents\.name was ppo, is maskable_ppo"),
        ({}, 4, "slots was 8, is 4"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], slots: int, said: str) -> None:
    train(tmp_path / "a")
    with pytest.raises(CheckpointError, match=said):
        train(tmp_path / "b", FakeMarket(slots), resume=tmp_path / "a", **changes)


def test_a_checkpoint_that_lacks_a_part_is_refused_by_name(tmp_path: Path) -> None:
    stored = disk.read(train(tmp_path / "a").checkpoint)
    arrays = {name: value for name, value in stored.arrays.items() if name != "weights/action_net.bias"}
    disk.write(tmp_path / "a" / "checkpoint.npz", stored._replace(arrays=arrays))
    with pytest.raises(CheckpointError, match=r"lacks 'action_net\.bias'"):
        train(tmp_path / "b", resume=tmp_path / "a")


def test_a_state_that_the_environment_refuses_is_refused_by_the_checkpoints_name(tmp_path: Path) -> None:
    class OtherMarket(FakeMarket):
        def restore(self, state: Mapping[str, Any]) -> None:
            raise ValueError("saved state: it is of another scenario")

    train(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"a: saved state: it is of another scenario; give the settings of that run"):
        train(tmp_path / "b", OtherMarket(SLOTS), resume=tmp_path / "a")


def test_a_finished_run_that_is_resumed_has_nothing_to_do(tmp_path: Path) -> None:
    whole = train(tmp_path / "a")
    again = train(tmp_path / "b", resume=tmp_path / "a")
    assert again.steps == whole.steps and same(weights(again), weights(whole)) and again.checkpoint.exists()


def test_a_resumed_run_can_be_made_longer(tmp_path: Path) -> None:
    train(tmp_path / "a")
    assert train(tmp_path / "b", resume=tmp_path / "a" / "checkpoint.npz", steps=6 * ROWS).steps == 6 * ROWS


def test_learning_stops_at_the_time_limit_with_a_checkpoint(tmp_path: Path) -> None:
    trained = train(tmp_path, steps=10**9, time_limit_s=0.001)
    assert trained.steps == ROWS == disk.read(tmp_path).facts["steps"]


def test_every_iteration_is_logged_once_under_known_names(tmp_path: Path) -> None:
    notes = Notes()
    train(tmp_path, notes=notes, probe=lambda: {"reward_attained": 0.5})
    assert [step for step, _ in notes.rows] == [ROWS, 2 * ROWS, 3 * ROWS, 4 * ROWS]
    for _, row in notes.rows:
        for name, value in row.items():
            room, _, word = name.partition("/")
            assert room == "learner" or (room == "train" and word in TRAINING_METRICS), name
            assert np.isfinite(value)
        assert row["train/reward_attained"] == 0.5
        assert {"learner/approx_kl", "learner/entropy_loss", "train/agent_steps_per_s", "train/wall_s"} <= row.keys()
    assert [row["train/wall_s"] for _, row in notes.rows] == sorted(row["train/wall_s"] for _, row in notes.rows)


def test_the_reward_that_is_logged_does_not_depend_on_its_scale(tmp_path: Path) -> None:
    first = []
    for scale in (0.125, 1.0):
        notes = Notes()
        train(tmp_path / str(scale), notes=notes, reward_scale=scale)
        first.append(notes.rows[0][1]["train/reward_mean"])
    assert first[0] == pytest.approx(first[1], rel=1e-6) and first[0] > 0


def test_a_learner_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(LearningError, match=r"lower agents\.learning_rate"):
        train(tmp_path, FakeMarket(SLOTS, broken_at=ROLLOUT + 2), steps=20 * ROWS)


def test_a_forbidden_level_is_never_drawn_by_the_maskable_learner(tmp_path: Path) -> None:
    market = FakeMarket(SLOTS, forbidden=2)
    train(tmp_path, market, name="maskable_ppo")
    taken = np.concatenate(market.taken)
    assert not (taken == 2).any() and set(np.unique(taken)) == {0, 1, 3, 4}


def test_learning_leaves_nothing_in_the_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "temp"
    empty.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(empty))
    train(tmp_path / "run")
    assert list(empty.iterdir()) == []


@given(rows=st.integers(1, 20_000), least=st.integers(1, 20_000))
def test_minibatches_are_equal_and_no_smaller_than_asked(rows: int, least: int) -> None:
    size = minibatch_rows(rows, least)
    assert rows % size == 0 and size >= min(rows, least)


def test_the_default_rollout_is_cut_into_the_minibatches_that_are_asked_for() -> None:
    for providers in range(1, 65):
        assert minibatch_rows(64 * 128 * providers, 8192) == 8192


def test_the_linear_schedule_falls_to_nought_and_the_constant_stays() -> None:
    linear, constant = (build(FakeMarket(SLOTS), replace(SETTINGS, schedule=kind), 0) for kind in ("linear", "constant"))
    assert [linear.lr_schedule(left) for left in (1.0, 0.5, 0.0)] == [0.003, 0.0015, 0.0]
    assert [constant.lr_schedule(left) for left in (1.0, 0.0)] == [0.003, 0.003]
    assert LEVELS == 5


def test_progress_without_a_terminal_is_the_first_and_the_last_line() -> None:
    stream = io.StringIO()
    with LearningProgress("ppo", 0, 3000, stream) as progress:
        for done in (1000, 2000, 3000):
            progress.show(done, 500.0, 0.25)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "ppo: 1,000 of 3,000 agent-steps  500 agent-steps/s  reward +0.2500  0:00:04 left"
    assert len(lines) == 2 and lines[1].startswith("ppo: 3,000 of 3,000")


def test_progress_in_a_terminal_is_a_bar_with_rate_and_time_left() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with LearningProgress("ppo", 0, 3000, stream) as progress:
        progress.show(1500, 500.0, 0.25)
    assert "50%" in stream.getvalue() and "1500/3000" in stream.getvalue()
