"""Worlds of many tables: rules reach and change them by name, in either mode."""

from typing import Any

import numpy as np
import pytest

from market.rule import COMPILED, layout, records, rule, to_array
from market.tables import World
from tests.market.rows import table

COUNTER = layout(total=int, marks=(int, 3), share=float)
OTHER = layout(first=float, second=int)


def line(*values: float, kind: type = float) -> Any:
    """A column of numbers as worlds hold them."""
    return np.array(values, np.int64 if kind is int else np.float64) if COMPILED else list(values)


def world(count: int = 3) -> World:
    """Two tables of records and two columns, of different sizes."""
    counters = table(COUNTER, *({"total": 10 * k, "share": 0.5 * k} for k in range(count)))
    return World(
        counter=counters, other=table(OTHER, {"first": 1.5, "second": 7}), delay=line(0.25, 0.5), choice=line(4, 5, 6, kind=int)
    )


@rule
def count_up(w, place, amount):
    """Change every table of a world."""
    counter = w.counter[place]
    counter.total += amount + w.choice[place]
    counter.marks[1] = w.other[0].second
    counter.share = w.delay[1]
    w.delay[0] = counter.share + w.other[0].first
    w.choice[place] = counter.total
    return counter.total


@rule
def count_up_through(w, place, amount):
    """Hand a world on to another rule."""
    return count_up(w, place, amount) + w.other[0].second


@rule
def swap(w, v):
    """Change two worlds of one form."""
    kept = w.counter[0].total
    w.counter[0].total = v.counter[0].total
    v.counter[0].total = kept


def test_a_rule_changes_the_tables_that_a_world_was_made_of() -> None:
    w = world()
    assert count_up(w, 2, 100) == 126
    row = to_array(w.counter, COUNTER)[2]
    assert (row["total"], row["marks"].tolist(), row["share"]) == (126, [0, 7, 0], 0.5)
    assert list(w.delay) == [2.0, 0.5] and list(w.choice) == [4, 5, 126]


def test_a_rule_changes_only_the_record_that_it_names() -> None:
    w = world()
    before = to_array(w.counter, COUNTER)
    count_up(w, 1, 1)
    assert to_array(w.counter, COUNTER)[[0, 2]].tobytes() == before[[0, 2]].tobytes()


def test_a_rule_hands_a_world_on() -> None:
    w = world()
    assert count_up_through(w, 0, 1) == 12
    assert to_array(w.counter, COUNTER)["total"][0] == 5


def test_two_worlds_of_one_form_stay_apart() -> None:
    w, v = world(), world(5)
    count_up(w, 0, 3)
    swap(w, v)
    assert to_array(w.counter, COUNTER)["total"][0] == 0 and to_array(v.counter, COUNTER)["total"][0] == 7


def test_a_world_keeps_its_tables_alive() -> None:
    w = world()
    junk = [np.ones(1000) for _ in range(100)]
    assert count_up(w, 2, 0) == 26 and len(junk) == 100


def test_a_world_knows_its_tables_by_name_in_order() -> None:
    assert world().names == ("counter", "other", "delay", "choice")


@pytest.mark.skipif(not COMPILED, reason="plain rules take any list")
def test_a_table_that_does_not_lie_in_one_piece_is_refused() -> None:
    with pytest.raises(AssertionError, match="counter"):
        World(counter=records(COUNTER, 6)[::2])
    with pytest.raises(AssertionError, match="delay"):
        World(delay=np.zeros((2, 2)))
