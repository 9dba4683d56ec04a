"""docs/promises.md names tests: each of them is there, marked as the page says, and no promise goes without one."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| ([A-Z]\d+) \|(.*)$", PAGE, re.MULTILINE))
PROMISES = "M1 M2 M3 M4 M5 M6 M7 M8 M11 M12 R1 R2 R3 R4 R5 R6 R7 R9 R10 R11 S2 S3 S4 S6 V1 V2".split()
MARKS = {"slow": "slow", "vLLM": "live"}
"""What the page writes behind a test -> how pytest knows it."""


def marks_of(nodes: list[ast.expr]) -> set[str]:
    """Names of pytest's marks among expressions: `pytest.mark.NAME`, called or not."""
    words = [part for node in nodes for part in ast.walk(node) if isinstance(part, ast.Attribute)]
    return {word.attr for word in words if isinstance(word.value, ast.Attribute) and word.value.attr == "mark"}


def found_in(path: Path) -> Iterator[tuple[str, set[str]]]:
    """The tests of a file with their marks, those of the whole file included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"]
    common = marks_of([node.value for node in names])
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name, common | marks_of(node.decorator_list)


TESTS = {name: marks for path in (ROOT / "tests" / "live_bridge").rglob("test_*.py") for name, marks in found_in(path)}
NAMED = sorted(set(re.findall(r"`(test_\w+)`(?: \*\((\w+)\)\*)?", PAGE)))


def test_every_promise_has_its_tests() -> None:
    assert list(ROWS) == PROMISES
    assert all(re.search(r"`test_\w+`", row) for row in ROWS.values())


@pytest.mark.parametrize(("name", "mark"), NAMED)
def test_a_test_that_the_page_names_is_there_and_is_run_when_the_page_says(name: str, mark: str) -> None:
    assert name in TESTS
    assert TESTS[name] & set(MARKS.values()) == ({MARKS[mark]} if mark else set())


def test_no_test_is_named_in_two_ways() -> None:
    names = [name for name, _ in NAMED]
    assert len(names) == len(set(names)) > 80


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "live_bridge").glob("test_promises_*.py")), ids=lambda path: path.stem)
def test_a_file_that_tests_promises_is_on_the_page(path: Path) -> None:
    names = {name for name, _ in found_in(path)}
    assert path.name in PAGE or names & {name for name, _ in NAMED}
