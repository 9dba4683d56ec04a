"""The draw by stake: the law of Efraimidis and Spirakis, and who is never drawn."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market import gossip, ledger, stake
from market.action import COMMIT_LEVELS, intent_of_action
from market.gossip import ROW
from market.ledger import ACCOUNT
from market.provider import NODE
from tests.market.rows import image, one, put_all, table

UNIT = st.floats(1e-9, 1 - 1e-9)


def market(stakes: list[int], status: list[int] | None = None) -> tuple[Any, Any]:
    """Accounts with these stakes, and the roster of a drawer who believes this of their owners."""
    accounts = table(ACCOUNT, *({"stake_micro": s} for s in stakes))
    rows = table(ROW, *({"status": s} for s in status or [gossip.ALIVE] * len(stakes)))
    return accounts, rows


def draw(accounts: Any, rows: Any, banned: list[int], u: float, bond: int = 0) -> int:
    """Draw one peer of a network that fills both tables."""
    listed = np.array([*banned, 0], np.int64)
    return int(stake.draw(accounts, rows, 0, 0, len(accounts), listed, len(banned), bond, u))


def draw_three(accounts: Any, rows: Any, uniforms: list[float]) -> tuple[int, ...]:
    """Draw three peers one after another, those drawn left out."""
    banned: list[int] = []
    for u in uniforms:
        banned.append(draw(accounts, rows, banned, u))
    return tuple(banned)


def efraimidis_spirakis(stakes: list[int], rng: np.random.Generator, draws: int) -> np.ndarray:
    """The published algorithm: the peers with the three smallest -ln(u) / stake, in that order."""
    keys = -np.log(rng.random((draws, len(stakes)))) / np.array(stakes, float)
    return np.argsort(keys, axis=1)[:, :3]


def chi_square_bound(freedom: int, z: float) -> float:
    """The quantile of chi-square at z standard deviations, by Wilson and Hilferty."""
    part = 2.0 / (9.0 * freedom)
    return freedom * (1.0 - part + z * math.sqrt(part)) ** 3


def test_the_draw_without_replacement_has_the_published_law() -> None:
    stakes = [1_000_000, 2_000_000, 3_000_000, 500_000, 4_000_000]
    accounts, rows = market(stakes)
    rng = np.random.default_rng(1)
    ours = [draw_three(accounts, rows, rng.random(3).tolist()) for _ in range(12_000)]
    theirs = [tuple(row) for row in efraimidis_spirakis(stakes, rng, 12_000).tolist()]
    triples = list(itertools.permutations(range(5), 3))
    counts = [(ours.count(t), theirs.count(t)) for t in triples]
    statistic = sum((a - b) ** 2 / (a + b) for a, b in counts if a + b > 0)
    assert statistic < chi_square_bound(len(triples) - 1, 3.1)


def test_the_chance_of_a_peer_is_its_share_of_the_stake_exactly() -> None:
    accounts, rows = market([1, 0, 3])
    grid = (np.arange(1000) + 0.5) / 1000
    drawn = [draw(accounts, rows, [], float(u)) for u in grid]
    assert [drawn.count(p) for p in range(3)] == [250, 0, 750]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.booleans()), min_size=1, max_size=8), UNIT, st.integers(0, 6))
def test_only_an_alive_peer_with_stake_and_bond_that_is_not_banned_is_drawn(
    peers: list[tuple[int, int, bool]], u: float, bond: int
) -> None:
    accounts, rows = market([s for s, _, _ in peers], [status for _, status, _ in peers])
    banned = [p for p, (_, _, out) in enumerate(peers) if out]
    fit = [p for p, (s, status, out) in enumerate(peers) if s >= max(bond, 1) and status == gossip.ALIVE and not out]
    before = image(accounts, ACCOUNT), image(rows, ROW)
    drawn = draw(accounts, rows, banned, u, bond)
    assert drawn in fit or (drawn == stake.NONE and not fit)
    assert (image(accounts, ACCOUNT), image(rows, ROW)) == before


def test_nobody_is_drawn_when_all_are_banned_suspect_gone_or_without_stake() -> None:
    accounts, rows = market([5, 5, 5, 0], [gossip.ALIVE, gossip.SUSPECT, gossip.GONE, gossip.ALIVE])
    assert draw(accounts, rows, [0], 0.5) == stake.NONE


def test_unbonding_stake_draws_nothing() -> None:
    accounts, rows = market([5, 5])
    ledger.release(accounts[1], 5, 60.0)
    assert {draw(accounts, rows, [], u) for u in (0.01, 0.5, 0.99)} == {0}


def test_a_uniform_next_to_one_draws_the_last_peer_with_stake() -> None:
    accounts, rows = market([10**15, 10**15, 0])
    assert draw(accounts, rows, [], 1 - 1e-16) == 1


def test_networks_and_rosters_are_found_by_their_first_record() -> None:
    accounts, rows = market([9, 9, 1, 0], [gossip.GONE, gossip.GONE, gossip.ALIVE, gossip.ALIVE])
    listed = np.zeros(1, np.int64)
    assert stake.draw(accounts, rows, 2, 2, 2, listed, 0, 0, 0.5) == 0
    assert stake.draw(accounts, rows, 0, 2, 2, listed, 0, 0, 0.75) == 1


def test_a_bond_leaves_the_chances_of_those_who_have_it_as_they_are() -> None:
    with_small, without = market([1, 3, 9]), market([0, 3, 9])
    grid = (np.arange(997) + 0.5) / 997
    assert [draw(*with_small, [], float(u), 2) for u in grid] == [draw(*without, [], float(u)) for u in grid]


def test_stake_split_among_many_names_is_drawn_no_more_often_and_below_the_bond_never() -> None:
    """Sybils: nine credits in one name, in three, in nine."""
    grid = (np.arange(3000) + 0.5) / 3000
    for names, bond, share in ((1, 3, 0.75), (3, 3, 0.75), (9, 3, 0.0), (9, 0, 0.75)):
        accounts, rows = market([3, *[9 // names] * names])
        drawn = [draw(accounts, rows, [], float(u), bond) for u in grid]
        assert sum(peer > 0 for peer in drawn) / len(drawn) == share


@given(st.integers(0, 4), st.integers(0, 10**10), st.integers(0, 10**9))
def test_who_stakes_at_all_aims_at_the_bond_at_least(commit: int, wealth: int, bond: int) -> None:
    node = one(NODE)[0]
    intent_of_action(node, 0, 0, commit)
    aim = stake.goal(node, wealth, bond)
    by_share = int(COMMIT_LEVELS[commit] * wealth)
    assert aim == (max(by_share, bond) if by_share > 0 else 0)
    assert stake.goal(node, wealth, 0) == by_share


@pytest.mark.parametrize(("score", "bond", "aim"), [(0, 0, 0), (0, 25, 0), (3, 0, 3), (3, 2, 3), (3, 25, 25)])
def test_a_sum_to_stake_is_raised_to_the_bond_as_well(score: int, bond: int, aim: int) -> None:
    node = put_all(one(NODE)[0], stake_share=-1.0, stake_target_micro=score)
    assert stake.goal(node, 10**9, bond) == aim
