"""Rules that rules call are parts of the whole that Python calls: the same results, one assembly, one file in the cache."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from market import ledger
from market.rule import COMPILED, records, rule

CHAIN = """
from market.rule import rule


@rule
def inner(x):
    return x + 1


@rule
def outer(x):
    return inner(inner(x))


print(outer(1), sum(outer.stats.cache_hits.values()))
"""
pytestmark = pytest.mark.skipif(not COMPILED, reason="plain rules are not put together")


@rule
def half(x):
    """Take half."""
    return x // 2


@rule
def third(x):
    """Take a third."""
    return x // 3


@rule
def ninth(x):
    """Take a ninth."""
    return third(third(x))


@rule
def both(x):
    """Call a part that another part calls too."""
    return third(x) + ninth(x)


@rule
def overpay(accounts, amount):
    """Call a rule that asserts."""
    return ledger.pay(accounts, 0, 1, amount)


def test_a_rule_gives_the_same_as_whole_and_as_part() -> None:
    assert ninth(81) == 9 == third(27)
    assert both(81) == 27 + 9


def test_a_rule_that_only_rules_have_called_cannot_be_entered_yet() -> None:
    integer = import_module("numba").int64
    half.get_call_template((integer,), {})
    assert not callable(half.get_overload(integer(integer))) and not half.overloads
    assert half(8) == 4 and half.overloads


def test_an_assertion_in_a_part_reaches_python() -> None:
    accounts = records(ledger.ACCOUNT, 2)
    accounts["credit_micro"] = 5
    assert overpay(accounts, 5) and not overpay(accounts, 5)
    with pytest.raises(AssertionError):
        overpay(accounts, -1)


def test_a_process_finds_wholes_in_the_cache_and_keeps_no_parts(tmp_path: Path) -> None:
    module = tmp_path / "chain.py"
    module.write_text(CHAIN)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    said = [
        subprocess.run([sys.executable, module], env=environment, capture_output=True, text=True, check=True).stdout for _ in "12"
    ]
    assert said == ["3 0\n", "3 1\n"]
    assert [path.name.split("-")[0] for path in tmp_path.glob("cache/**/*.nbc")] == ["chain.outer"]
