"""One source, two ways to run it: compiled and plain rules reach the same bytes."""

import ast
import os
import subprocess
import sys
from pathlib import Path

from market.rule import COMPILED
from tests.market import sample

ROOT = Path(__file__).parents[1]
OTHER = "python" if COMPILED else "compiled"


def run_in_the_other_mode(module: str) -> bytes:
    """What a program writes when the rules run the other way."""
    return subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env={**os.environ, "RULES": OTHER},
        stdout=subprocess.PIPE,
        check=True,
        timeout=300,
    ).stdout


def public_rules(path: Path) -> set[str]:
    """Names of the rules that other files may call."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return {
        node.name for node in functions if any(isinstance(mark, ast.Name) and mark.id == "rule" for mark in node.decorator_list)
    }


def test_compiled_rules_and_plain_ones_reach_the_same_bytes() -> None:
    assert run_in_the_other_mode("tests.market.sample") == sample.play()


def test_the_sample_repeats_itself() -> None:
    assert sample.play(rounds=5) == sample.play(rounds=5) != sample.play(seed=6, rounds=5)


def test_the_sample_has_every_public_rule() -> None:
    tree = ast.parse(Path(sample.__file__).read_text(encoding="utf-8"))
    called = {node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}
    for room in sample.NAMES:
        missing = public_rules(Path(str(room.__file__))) - called
        assert not missing, f"{room.__name__}: {missing}"
