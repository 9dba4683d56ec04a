"""Rosters: newer news wins whatever its way, silence makes suspect and then gone, partners are peers."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market import gossip
from market.gossip import ALIVE, GONE, INCARNATION, NONE, ROW, SUSPECT
from tests.market.rows import image, one, read, table

POSTED = ("version", "posted_s", "wait_s", "usage", "accepts", "duels_won", "duels_lost")
VERSIONS = st.lists(st.integers(0, 3 * INCARNATION), min_size=1, max_size=5)


def news(version: int) -> Any:
    """What a subject posted as its `version`: the content follows from the version, as from an honest subject."""
    k = version % 1000
    return one(ROW, version=version, posted_s=k * 1.5, wait_s=k * 2.0, usage=k / 1000, accepts=1.0, duels_won=k, duels_lost=2 * k)


def posted(row: Any) -> list[Any]:
    """The part of a row that its subject wrote."""
    values = read(row, ROW)
    return [values[name] for name in POSTED]


def test_newer_news_is_taken_and_proves_life() -> None:
    mine = one(ROW, version=4, status=SUSPECT, changed_s=1.0)
    gossip.merge(mine[0], news(5)[0], 9.0)
    assert posted(mine) == posted(news(5))
    assert read(mine, ROW)["status"] == ALIVE and read(mine, ROW)["changed_s"] == 9.0


@pytest.mark.parametrize("version", [5, 4, 0])
def test_news_that_is_not_newer_changes_nothing(version: int) -> None:
    mine = one(ROW, version=5, status=SUSPECT, changed_s=1.0)
    before = image(mine, ROW)
    gossip.merge(mine[0], news(version)[0], 9.0)
    assert image(mine, ROW) == before


def test_a_merge_never_changes_its_source() -> None:
    source = news(7)
    before = image(source, ROW)
    gossip.merge(one(ROW, version=1)[0], source[0], 9.0)
    assert image(source, ROW) == before


def test_a_peers_belief_that_a_subject_is_gone_is_not_taken_over() -> None:
    mine = one(ROW, version=1)
    gossip.merge(mine[0], one(ROW, version=2, status=GONE)[0], 9.0)
    assert read(mine, ROW)["status"] == ALIVE


@settings(deadline=None)
@given(VERSIONS)
def test_merging_is_idempotent(versions: list[int]) -> None:
    mine = one(ROW)
    for version in versions:
        gossip.merge(mine[0], news(version)[0], 1.0)
    before = image(mine, ROW)
    for version in versions:
        gossip.merge(mine[0], news(version)[0], 2.0)
    assert image(mine, ROW) == before


@settings(deadline=None, max_examples=30)
@given(VERSIONS)
def test_all_orders_of_merging_end_in_the_same_news(versions: list[int]) -> None:
    ends = []
    for order in itertools.permutations(versions[:4]):
        mine = one(ROW)
        for version in order:
            gossip.merge(mine[0], news(version)[0], 1.0)
        ends.append(posted(mine))
    assert all(end == ends[0] for end in ends)
    assert ends[0][0] == max(versions[:4])


def test_a_restart_outranks_all_of_the_former_life() -> None:
    old = 12 * INCARNATION + 4_000_000
    mine = one(ROW, version=old, status=GONE)
    gossip.merge(mine[0], news(old + INCARNATION)[0], 9.0)
    gossip.merge(mine[0], news(old + 1)[0], 9.5)
    assert read(mine, ROW)["version"] == old + INCARNATION and read(mine, ROW)["status"] == ALIVE


def test_a_silent_peer_becomes_suspect_and_then_gone() -> None:
    row = one(ROW, changed_s=10.0)
    told = []
    for now in (20.0, 20.1, 25.0, 25.2, 99.0):
        told.append((bool(gossip.age(row[0], now, 10.0, 5.0)), read(row, ROW)["status"]))
    assert told == [(False, ALIVE), (False, SUSPECT), (False, SUSPECT), (True, GONE), (False, GONE)]


def test_a_suspect_that_speaks_up_is_alive_again() -> None:
    row = one(ROW, version=3)
    gossip.suspect(row[0], 5.0)
    assert read(row, ROW)["status"] == SUSPECT
    gossip.merge(row[0], news(4)[0], 6.0)
    assert not gossip.age(row[0], 7.0, 10.0, 5.0) and read(row, ROW)["status"] == ALIVE


def test_suspicion_is_timed_from_the_first_sign() -> None:
    row = one(ROW)
    gossip.suspect(row[0], 5.0)
    gossip.suspect(row[0], 9.0)
    assert read(row, ROW)["changed_s"] == 5.0


def test_who_is_gone_stays_gone_when_suspected() -> None:
    row = one(ROW, status=GONE, changed_s=1.0)
    before = image(row, ROW)
    gossip.suspect(row[0], 5.0)
    assert image(row, ROW) == before


def partners(status: list[int], me: int) -> list[int]:
    """Partners of `me` over a grid of uniforms."""
    rows = table(ROW, *({"status": s} for s in status))
    return [int(gossip.partner(rows, 0, len(status), me, (k + 0.5) / 120)) for k in range(120)]


def test_partners_are_all_others_alike() -> None:
    drawn = partners([ALIVE, SUSPECT, ALIVE, ALIVE], 2)
    assert [drawn.count(p) for p in range(4)] == [40, 40, 0, 40]


def test_who_is_gone_is_not_asked_while_another_is_there() -> None:
    assert set(partners([ALIVE, GONE, SUSPECT, GONE], 0)) == {2}


def test_all_are_asked_when_all_are_gone() -> None:
    drawn = partners([ALIVE, GONE, GONE, GONE], 0)
    assert [drawn.count(p) for p in range(4)] == [0, 40, 40, 40]


def test_a_provider_alone_has_no_partner() -> None:
    assert set(partners([ALIVE], 0)) == {NONE}


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=9), st.data(), st.floats(1e-9, 1 - 1e-9))
def test_a_partner_is_never_oneself(status: list[int], data: st.DataObject, u: float) -> None:
    me = data.draw(st.integers(0, len(status) - 1))
    rows = table(ROW, *({"status": s} for s in status))
    drawn = gossip.partner(rows, 0, len(status), me, u)
    assert 0 <= drawn < len(status) and drawn != me


def test_news_reaches_all_of_sixteen_in_few_rounds() -> None:
    count = 16
    rosters = [table(ROW, *({"version": 1} for _ in range(count))) for _ in range(count)]
    gossip.copy_row(rosters[3][3], news(9)[0])
    rounds = 0
    while any(read(roster, ROW, 3)["version"] < 9 for roster in rosters):
        rounds += 1
        for me in range(count):
            peer = int(gossip.partner(rosters[me], 0, count, me, ((me * 7 + rounds * 5) % 15 + 0.5) / 15))
            for subject in range(count):
                gossip.merge(rosters[peer][subject], rosters[me][subject], float(rounds))
                gossip.merge(rosters[me][subject], rosters[peer][subject], float(rounds))
    assert rounds <= 6
