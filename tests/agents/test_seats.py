"""Visitors sit in their seats and nowhere else."""

import numpy as np
import pytest

from agents.card import PolicyError
from agents.policy import Baseline, LevelsPolicy, load
from agents.seats import pins, seat
from market.action import MASK_SIZE
from market.observation import OBSERVATION_SIZE

PROVIDERS, NETWORKS = 4, 3


def bold(levels: tuple[int, int, int] = (4, 4, 4)) -> Baseline:
    """A policy that does the same everywhere."""
    return Baseline("bold", "policy", "market", LevelsPolicy("bold", levels))


def act(who: Baseline) -> np.ndarray:
    """Ask for all rows of a batch: (networks, providers, 3)."""
    rows = NETWORKS * PROVIDERS
    seen = np.zeros((rows, OBSERVATION_SIZE), np.float32)
    return who.policy.act(seen, np.ones((rows, MASK_SIZE), np.int8)).reshape(NETWORKS, PROVIDERS, 3)


def test_a_visitor_steers_its_seats_in_every_network_and_residents_the_others() -> None:
    mixed = seat(load("fixed:1-2-3"), {0: bold(), 3: bold((2, 2, 2))}, PROVIDERS)
    for row in act(mixed):
        assert row.tolist() == [[4, 4, 4], [1, 2, 3], [1, 2, 3], [2, 2, 2]]


def test_two_seats_of_one_visitor_are_asked_in_one_call() -> None:
    calls: list[int] = []

    class Counting(LevelsPolicy):
        def act(self, observation: np.ndarray, mask: np.ndarray) -> np.ndarray:
            calls.append(len(observation))
            return super().act(observation, mask)

    visitor = Baseline("counting", "policy", "market", Counting("counting", (3, 3, 3)))
    act(seat(load("single"), {1: visitor, 2: visitor}, PROVIDERS))
    assert calls == [2 * NETWORKS]


def test_without_visitors_the_residents_are_as_they_were() -> None:
    residents = load("single")
    assert seat(residents, {}, PROVIDERS) is residents


def test_every_seat_is_pinned_once_to_the_brain_of_who_sits_there() -> None:
    mixed = seat(load("paper"), {1: bold(), 2: load("single")}, PROVIDERS)
    assert dict(pins(mixed, PROVIDERS)) == {"paper": [0, 3], "policy": [1, 2]}
    assert dict(pins(load("paper"), PROVIDERS)) == {"paper": [0, 1, 2, 3]}
    guest = seat(load("single"), {3: load("paper")}, PROVIDERS)
    assert dict(pins(guest, PROVIDERS)) == {"policy": [0, 1, 2], "paper": [3]}


@pytest.mark.parametrize("place", [-1, PROVIDERS])
def test_a_seat_that_does_not_exist_is_refused_by_name(place: int) -> None:
    with pytest.raises(PolicyError, match=rf"bold: seat must be a provider in \[0, 3\], got {place}"):
        seat(load("single"), {place: bold()}, PROVIDERS)


@pytest.mark.parametrize(("residents", "visitor"), [("single", "central"), ("paper_central", "single"), ("central", "central")])
def test_a_scheduler_sits_nowhere(residents: str, visitor: str) -> None:
    with pytest.raises(PolicyError, match="replaces the whole market and sits nowhere"):
        seat(load(residents), {0: load(visitor)}, PROVIDERS)
