"""Levels and intents: what each level of an action means, what the paper's rules post, what a mask permits."""

from typing import Any

import numpy as np
import pytest

from market import action
from market.action import ACCEPT_LEVELS, COMMIT_LEVELS, FORWARD_LEVELS, INTENT, LEVELS, MASK_SIZE, NO_LIMIT
from market.terms import to_record
from tests.market.rows import TERMS, one, read


def intent_of(*levels: int) -> dict[str, Any]:
    """The intent that an action stands for, written over other values."""
    intent = one(INTENT, accept_queue=7, p_offload=0.3, p_accept=0.3, p_queue=0.3, stake_target_micro=9, usage_target=0.1)
    action.intent_of_action(intent[0], *levels)
    return read(intent, INTENT)


def intent_of_paper(usage: float, engine_waiting: int = 0, queued: int = 0) -> dict[str, Any]:
    """What the paper's rules post at a given load."""
    intent = one(INTENT)
    action.intent_of_paper(intent[0], to_record(TERMS, 4)[0], usage, engine_waiting, queued)
    return read(intent, INTENT)


def mask_of(online: int, credit: int, price: int) -> list[list[int]]:
    """A mask by heads, written between two guards."""
    mask = np.full(MASK_SIZE + 2, 9, np.int8)
    action.write_mask(mask, 1, online, credit, price)
    assert mask[0] == 9 and mask[-1] == 9
    return mask[1:-1].reshape(3, LEVELS).tolist()


@pytest.mark.parametrize("level", range(LEVELS))
def test_each_level_stands_for_its_number(level: int) -> None:
    assert intent_of(level, 0, 0)["accept_ceiling"] == ACCEPT_LEVELS[level]
    assert intent_of(0, level, 0)["forward_ceiling"] == FORWARD_LEVELS[level]
    assert intent_of(0, 0, level)["stake_share"] == COMMIT_LEVELS[level]


def test_levels_rise_from_refusing_to_always_from_never_to_always_from_none_to_half() -> None:
    assert list(ACCEPT_LEVELS) == sorted(ACCEPT_LEVELS) and ACCEPT_LEVELS[0] < 0 and ACCEPT_LEVELS[-1] == NO_LIMIT
    assert (
        list(FORWARD_LEVELS) == sorted(FORWARD_LEVELS, reverse=True) and FORWARD_LEVELS[0] == NO_LIMIT and FORWARD_LEVELS[-1] == 0
    )
    assert list(COMMIT_LEVELS) == sorted(COMMIT_LEVELS) and COMMIT_LEVELS[0] == 0 and COMMIT_LEVELS[-1] <= 1
    assert len(ACCEPT_LEVELS) == len(FORWARD_LEVELS) == len(COMMIT_LEVELS) == LEVELS
    assert action.ACTION_NVEC == (LEVELS,) * 3 and len(action.ACTION_NAMES) == 3 and MASK_SIZE == 3 * LEVELS


def test_an_action_leaves_nothing_of_the_papers_rules_in_force() -> None:
    intent = intent_of(2, 2, 2)
    assert intent["p_offload"] == intent["p_accept"] == intent["p_queue"] == 1.0
    assert intent["usage_target"] == intent["accept_usage"] == NO_LIMIT
    assert intent["accept_queue"] > 10**9 and intent["stake_target_micro"] == 0


def test_the_papers_rules_leave_nothing_of_an_action_in_force() -> None:
    intent = intent_of_paper(0.1)
    assert intent["accept_ceiling"] == intent["forward_ceiling"] == NO_LIMIT and intent["stake_share"] < 0
    assert intent["usage_target"] == intent["accept_usage"] == 0.7 and intent["accept_queue"] == 0
    assert (intent["p_offload"], intent["p_accept"], intent["p_queue"]) == (0.8, 0.8, 0.2)


@pytest.mark.parametrize(
    ("share", "stake"),
    [(0.0, 4), (0.25, 4), (0.26, 3), (0.5, 3), (0.51, 2), (0.75, 2), (0.76, 1), (1.0, 1), (1.01, 0), (1.4, 0)],
)
def test_the_papers_stake_falls_with_the_share_of_the_target_use(share: float, stake: int) -> None:
    assert intent_of_paper(share * 0.7)["stake_target_micro"] == stake * 1_000_000


@pytest.mark.parametrize(("usage", "stake"), [(0.0, 2), (0.2, 1), (0.4, 0), (0.6, 0), (0.9, 0)])
def test_a_queue_takes_two_credits_off_the_papers_stake_but_never_below_none(usage: float, stake: int) -> None:
    assert intent_of_paper(usage, queued=1)["stake_target_micro"] == stake * 1_000_000


def test_a_waiting_engine_has_no_stake_by_the_papers_rules() -> None:
    assert intent_of_paper(0.0, engine_waiting=1)["stake_target_micro"] == 0


def test_all_is_possible_online_with_credit() -> None:
    assert mask_of(1, 10, 10) == [[1] * 5] * 3


def test_who_cannot_pay_for_a_request_cannot_forward() -> None:
    assert mask_of(1, 9, 10) == [[1] * 5, [1, 0, 0, 0, 0], [1] * 5]


@pytest.mark.parametrize("credit", [0, 10**12])
def test_who_is_offline_can_only_idle(credit: int) -> None:
    assert mask_of(0, credit, 10) == [[1, 0, 0, 0, 0]] * 3


@pytest.mark.parametrize(("online", "credit"), [(0, 0), (0, 99), (1, 0), (1, 99)])
def test_idling_is_always_possible(online: int, credit: int) -> None:
    mask = mask_of(online, credit, 50)
    assert all(mask[head][level] == 1 for head, level in enumerate(action.IDLE))
