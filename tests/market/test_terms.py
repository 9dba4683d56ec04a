"""Terms: every number has a range, money becomes micro-credits, silence is judged by the size of the network.

`python -m tests.market.test_terms` writes the table of terms in docs/market.md anew.
"""

import math
import re
from dataclasses import asdict, fields, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
import yaml

from market.terms import MICRO, Range, Terms, to_record
from market.terms import TERMS as LAYOUT
from settings import SettingsError
from settings import read as read_settings
from tests.market import rows
from tests.market.rows import TERMS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "market.md"
MARKS = ("<!-- terms: written by `python -m tests.market.test_terms` -->\n", "<!-- end of terms -->\n")
RANGES = {field.name: get_args(field.type) for field in fields(Terms)}
SHIPPED = sorted(entry.name for entry in (resources.files("conf") / "market").iterdir() if entry.name.endswith(".yaml"))


def record(terms: Terms, providers: int = 7) -> dict[str, Any]:
    """The record that rules take, as plain values."""
    return rows.read(to_record(terms, providers), LAYOUT)


def test_every_term_has_a_kind_and_a_range_with_a_unit() -> None:
    for field in fields(Terms):
        assert get_origin(field.type) is Annotated, field.name
        kind, limit = RANGES[field.name]
        assert kind in (int, float) and isinstance(limit, Range) and limit.low < limit.high and limit.unit


@pytest.mark.parametrize("name", list(RANGES))
def test_a_term_takes_both_ends_of_its_range_and_nothing_beyond(name: str) -> None:
    kind, limit = RANGES[name]
    for value in (limit.low, limit.high):
        read_settings(Terms, asdict(TERMS) | {name: kind(value)}, "test")
    for value in (limit.low - 1, limit.high + 1, math.nan if kind is float else 10**30, "much", None):
        with pytest.raises(SettingsError, match=name):
            read_settings(Terms, asdict(TERMS) | {name: value}, "test")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_terms_are_good(name: str) -> None:
    values = yaml.safe_load((resources.files("conf") / "market" / name).read_text(encoding="utf-8"))
    assert isinstance(read_settings(Terms, values, name), Terms)


def test_money_is_turned_into_whole_micro_credits() -> None:
    row = record(replace(TERMS, price_per_request=0.1, judge_fee=0.0000005, initial_credit=1e9, stake_rate=1 / 3))
    assert row["price_per_request_micro"] == MICRO // 10
    assert row["judge_fee_micro"] in (0, 1)
    assert row["initial_credit_micro"] == 10**15 and row["stake_rate_micro"] == 333_333
    assert all(isinstance(row[name], int) for name in row if name.endswith("_micro"))


def test_terms_that_are_not_money_are_taken_as_they_are() -> None:
    row = record(TERMS)
    for name in RANGES:
        if f"{name}_micro" not in row:
            assert row[name] == getattr(TERMS, name), name


@pytest.mark.parametrize(("providers", "rounds"), [(1, 1.0), (3, 2.0), (7, 3.0), (1023, 10.0)])
def test_the_limits_of_silence_grow_with_the_logarithm_of_the_network(providers: int, rounds: float) -> None:
    row = record(replace(TERMS, gossip_s=3.0, suspect_rounds=2.0, gone_rounds=4.0), providers)
    assert row["suspect_s"] == pytest.approx(2.0 * 3.0 * rounds) and row["gone_s"] == pytest.approx(4.0 * 3.0 * rounds)


def terms_table() -> str:
    """Make the table of docs/market.md: each term with its values, unit, range, and what stands beside it in the file."""
    text = (ROOT / "conf" / "market" / "paper.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    released = yaml.safe_load((ROOT / "conf" / "market" / "released.yaml").read_text(encoding="utf-8"))
    notes = {line.split(":")[0]: line.partition("#")[2].strip() for line in text.splitlines() if not line.startswith("#")}
    lines = ["| term | `paper` | `released` | unit | range | note |", "|---|---:|---:|---|---|---|"]
    for name, (_, limit) in RANGES.items():
        note = re.sub(r"\s{2,}", "; ", notes[name])
        other = f"{released[name]:g}" if released[name] != values[name] else ""
        lines.append(f"| `{name}` | {values[name]:g} | {other} | {limit.unit} | {limit.low:g} to {limit.high:g} | {note} |")
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """Put the table between the marks of the page."""
    before, rest = text.split(MARKS[0])
    return before + MARKS[0] + terms_table() + MARKS[1] + rest.split(MARKS[1])[1]


def test_the_page_shows_the_terms_as_they_are() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == with_table(text), "docs/market.md is out of date: run `python -m tests.market.test_terms`"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
