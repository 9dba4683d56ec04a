"""A policy on disk that remembers: its memory is each row's own, moves at its own pace, and is empty where an episode begins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_ins import SmallMarket, counting_onnx, linear_onnx

from agents.card import PolicyError, memory_of, read_card
from agents.evaluate import evaluate
from agents.policy import Baseline, LevelsPolicy, OnnxPolicy
from agents.seats import seat
from market.action import MASK_SIZE
from market.observation import OBSERVATION_SIZE

WriteFolder = Callable[..., Path]
PACE_S = 20.0


def seen(*extra: float) -> np.ndarray:
    """Rows whose memory moves by 1 and `extra` at each move."""
    rows = np.zeros((len(extra), OBSERVATION_SIZE), np.float32)
    rows[:, 0] = extra
    return rows


def counting(write_folder: WriteFolder, name: str = "counting", **memory: Any) -> OnnxPolicy:
    """A policy that takes the level to which its memory has counted."""
    said = {"units": 1, "control_s": PACE_S} | memory
    return OnnxPolicy(write_folder(counting_onnx(), lambda card: card.update(memory=said), name), sample_seed=None)


def levels(policy: OnnxPolicy, rows: np.ndarray, times: int) -> list[list[int]]:
    """The level of accept that each row takes, time after time."""
    return [policy.act(rows, np.ones((len(rows), MASK_SIZE), np.int8))[:, 0].tolist() for _ in range(times)]


@pytest.mark.parametrize(
    ("control_s", "expected"),
    [
        (20.0, [1, 2, 3, 4]),  # as it was learned
        (5.0, [1, 2, 2, 2, 2, 3, 3, 3, 3, 4]),  # asked four times as often: in between as if it moved now
        (10.0, [1, 2, 2, 3, 3, 4, 4]),
        (60.0, [1, 2, 3, 4]),  # asked less often than that: with each decision
    ],
)
def test_memory_moves_at_the_pace_at_which_it_was_learned(write_folder: WriteFolder, control_s: float, expected: list[int]) -> None:
    policy = counting(write_folder)
    policy.begin(control_s)
    assert levels(policy, seen(0.0), len(expected)) == [[level] for level in expected]


def test_memory_is_empty_where_an_episode_begins(write_folder: WriteFolder) -> None:
    policy = counting(write_folder)
    for rows in (seen(0.0), seen(0.0, 0.0, 0.0)):
        policy.begin(PACE_S)
        assert levels(policy, rows, 3) == [[k] * len(rows) for k in (1, 2, 3)]


def test_the_pace_begins_anew_with_an_episode(write_folder: WriteFolder) -> None:
    policy = counting(write_folder)
    for times in (2, 3, 4):
        policy.begin(5.0)
        assert levels(policy, seen(0.0), times) == [[1], [2], [2], [2]][:times]


def test_each_row_has_a_memory_of_its_own(write_folder: WriteFolder) -> None:
    policy = counting(write_folder)
    policy.begin(PACE_S)
    assert levels(policy, seen(0.0, 1.0, -1.0), 2) == [[1, 2, 0], [2, 4, 0]]


def test_a_decision_that_is_refused_moves_no_memory(write_folder: WriteFolder) -> None:
    policy = counting(write_folder)
    policy.begin(PACE_S)
    assert levels(policy, seen(0.0), 1) == [[1]]
    with pytest.raises(PolicyError, match="observation must be finite"):
        levels(policy, seen(np.nan), 1)
    with pytest.raises(PolicyError, match="mask must leave a level"):
        policy.act(seen(0.0), np.zeros((1, MASK_SIZE), np.int8))
    assert levels(policy, seen(0.0), 1) == [[2]]


def test_logits_alone_neither_need_nor_move_a_memory(write_folder: WriteFolder) -> None:
    policy = counting(write_folder)
    first = policy.logits(seen(0.0, 0.0))
    policy.begin(PACE_S)
    assert levels(policy, seen(0.0), 2) == [[1], [2]]
    assert np.array_equal(policy.logits(seen(0.0, 0.0)), first)
    assert levels(policy, seen(0.0), 1) == [[3]]


def test_rows_that_change_in_mid_episode_are_refused_with_the_way_out(write_folder: WriteFolder) -> None:
    policy = counting(write_folder)
    policy.begin(PACE_S)
    levels(policy, seen(0.0, 0.0), 2)
    said = r"counting: remembers 2 rows of this episode, and is asked about 3; ask about the same rows .* call begin\(control_s\)"
    with pytest.raises(PolicyError, match=said):
        levels(policy, seen(0.0, 0.0, 0.0), 1)
    assert levels(policy, seen(0.0, 0.0), 1) == [[3, 3]]


def test_a_policy_that_remembers_must_hear_of_an_episode_and_another_need_not(write_folder: WriteFolder) -> None:
    with pytest.raises(PolicyError, match=r"counting: remembers, so it must hear where an episode begins; call begin\(control_s\)"):
        levels(counting(write_folder), seen(0.0), 1)
    plain = OnnxPolicy(write_folder(name="plain"))
    assert plain.memory is None and len(levels(plain, seen(0.0, 0.0), 1)[0]) == 2
    plain.begin(PACE_S)
    assert len(levels(plain, seen(0.0), 1)[0]) == 1, "its rows may change at any time"


def test_draws_go_on_from_one_episode_to_the_next(write_folder: WriteFolder) -> None:
    folder = write_folder(linear_onnx(np.zeros((OBSERVATION_SIZE, MASK_SIZE)), np.zeros(MASK_SIZE)))
    told, untold = OnnxPolicy(folder, sample_seed=7), OnnxPolicy(folder, sample_seed=7)
    for _ in range(3):
        told.begin(PACE_S)
        assert levels(told, seen(0.0, 0.0), 4) == levels(untold, seen(0.0, 0.0), 4)


# -- who plays it


def test_an_evaluation_tells_a_policy_of_each_episode_and_its_pace(write_folder: WriteFolder) -> None:
    policy = counting(write_folder, control_s=4.0)  # the market asks every 2 s
    one, same = Baseline("one", "policy", "market", policy), Baseline("same", "policy", "market", policy)
    found = evaluate(SmallMarket, [one, same], seeds=3, first_seed=0)
    first, again = (found.played[name].metrics["slo_attainment"] for name in ("one", "same"))
    assert np.array_equal(first, again)
    fixed = Baseline("fixed", "policy", "market", LevelsPolicy("fixed", (1, 1, 1)))
    slower = evaluate(SmallMarket, [fixed], seeds=3, first_seed=0).played["fixed"].metrics["slo_attainment"]
    assert (first >= slower).all() and (first > slower).any(), "it counts on within an episode"


def test_residents_and_visitors_hear_of_an_episode_and_keep_their_own_rows(write_folder: WriteFolder) -> None:
    residents = Baseline("residents", "policy", "market", counting(write_folder))
    visitor = Baseline("visitor", "policy", "market", counting(write_folder, "visitor"))
    mixed = seat(residents, {1: visitor}, 3)
    rows, mask = seen(*[0.0] * 6), np.ones((6, MASK_SIZE), np.int8)
    for _ in range(2):
        mixed.policy.begin(PACE_S)
        assert [mixed.policy.act(rows, mask)[:, 0].tolist() for _ in range(3)] == [[k] * 6 for k in (1, 2, 3)]


# -- what its card and file must say


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"units": 0, "control_s": 20}, "memory.units must be an integer > 0, got 0"),
        ({"units": 1.5, "control_s": 20}, "memory.units must be an integer > 0, got 1.5"),
        ({"units": True, "control_s": 20}, "memory.units must be an integer > 0, got True"),
        ({"units": 1, "control_s": 0}, "memory.control_s must be seconds > 0, got 0"),
        ({"units": 1, "control_s": float("inf")}, "memory.control_s must be seconds > 0, got inf"),
        ({"units": 1, "control_s": "fast"}, "memory.control_s must be seconds > 0, got 'fast'"),
        ({"units": 1}, "has no memory.control_s; export the policy again"),
        (None, "has no memory.units; export the policy again"),
    ],
)
def test_a_card_that_speaks_of_no_memory_that_could_be_is_refused(write_folder: WriteFolder, said: Any, text: str) -> None:
    with pytest.raises(PolicyError, match=f"card.yaml: {text}"):
        OnnxPolicy(write_folder(counting_onnx(), lambda card: card.update(memory=said)))


def test_a_card_without_memory_is_that_of_a_policy_without_one(write_folder: WriteFolder) -> None:
    assert memory_of(read_card(write_folder())) is None


def test_a_file_must_have_the_memory_of_its_card(write_folder: WriteFolder) -> None:
    plain = linear_onnx(np.zeros((OBSERVATION_SIZE, MASK_SIZE)), np.zeros(MASK_SIZE))
    both = rf"input must be observation, float of shape \(n, {OBSERVATION_SIZE}\) and memory, float of shape \(n, {{}}\), got "
    for name, content, units, text in (
        ("lacking", plain, 1, both.format(1)),
        ("other", counting_onnx(), 2, both.format(2)),
        ("silent", counting_onnx(), None, r"input must be observation, float of shape \(n, \d+\), got observation .*memory"),
    ):
        said = {} if units is None else {"memory": {"units": units, "control_s": 20}}
        with pytest.raises(PolicyError, match=f"policy.onnx: {text}"):
            OnnxPolicy(write_folder(content, lambda card, said=said: card.update(said), name))


def test_a_memory_that_is_not_finite_is_refused_at_loading(write_folder: WriteFolder) -> None:
    """A product that overflows with the second decision."""
    with pytest.raises(PolicyError, match="policy.onnx: next_memory must be finite, got inf; export it again"):
        OnnxPolicy(write_folder(counting_onnx(step=3e38), lambda card: card.update(memory={"units": 1, "control_s": 20})))
