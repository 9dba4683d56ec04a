"""The house: imports go one way, market/ knows no clock, chance, file or wire, and files and functions stay small."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARROWS: dict[str, set[str]] = {
    "settings": set(),
    "compose": {"settings"},
    "conf": set(),
    "market": set(),
    "envs": {"market", "settings"},
    "agents": {"market", "settings"},
    "live_bridge": {"market", "agents", "settings"},
    "plan": {"market", "envs", "agents", "settings", "compose"},
    "multirun": {"settings"},
    "train": {"market", "envs", "agents", "settings", "compose", "plan", "multirun"},
    "tune": {"agents", "settings", "compose", "plan", "train"},
    "benchmarks": {"market", "envs", "agents", "live_bridge", "settings", "compose", "plan", "train"},
}
"""Which room may import which."""
ENTRIES = {"agents.evaluate": {"envs", "compose"}, "agents.rehearse": {"envs", "compose"}, "agents.suite": {"compose"}}
"""Modules that are programs, and the further rooms that they put together."""
ONLY = {("live_bridge", "agents"): {"agents.card", "agents.names", "agents.policy", "agents.metrics"}}
"""Where one room may see but a part of another."""
MARKET_LIBRARIES = {"numpy", "numba", "llvmlite"}
PURE = set("collections dataclasses enum functools math operator typing".split())
CACHE_FOLDER = set("hashlib os pathlib tempfile".split())
"""What market/rule.py needs to find the folder for compiled code: the one exception to the rule that market/ is pure."""
IMPURE_CALLS = {"open", "print", "input", "exec", "eval"}
HEAVY = ("torch", "stable_baselines3", "hydra", "omegaconf", "envs", "numba", "gymnasium", "pettingzoo", "wandb")
LONGEST_FUNCTION, USUAL_FUNCTION, LONGEST_FILE = 60, 30, 400


def module_of(path: Path) -> str:
    """Dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_of(path): path
    for room in ARROWS
    for path in [ROOT / f"{room}.py", *sorted((ROOT / room).rglob("*.py"))]
    if path.is_file()
}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in FILES.items()}
MARKET = [module for module in FILES if module.split(".")[0] == "market"]


def named_by(node: ast.Import | ast.ImportFrom, module: str) -> Iterator[str]:
    """Full names that an import statement brings in: modules where they are ours, else what stands there."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    assert node.level == 0, f"{module}: line {node.lineno} imports relatively; name the room"
    for alias in node.names:
        whole = f"{node.module}.{alias.name}"
        yield whole if whole in FILES else str(node.module)


def imports(module: str, *, at_load: bool = False) -> set[str]:
    """What a module imports; `at_load`: only what runs when it is loaded."""
    found: set[str] = set()
    waiting: list[ast.AST] = list(TREES[module].body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= set(named_by(node, module))
        elif at_load and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        elif not (at_load and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            waiting += list(ast.iter_child_nodes(node))
    return found


def functions(module: str) -> Iterator[tuple[str, int, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions of a module with their lengths in lines, docstrings left out."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                length -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            yield f"{module}.{node.name}", length, node


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_go_one_way(module: str) -> None:
    room = module.split(".", 1)[0]
    for name in imports(module):
        other = name.split(".")[0]
        assert other != "tests", f"{module} imports {name}: tests stand outside"
        if other in ARROWS and other != room:
            assert other in ARROWS[room] | ENTRIES.get(module, set()), f"{module} imports {name}"
            assert name in ONLY.get((room, other), {name}), f"{module} imports {name}: {room} may see only a part of {other}"


def test_no_import_runs_in_a_circle() -> None:
    graph = {module: {name for name in imports(module, at_load=True) if name in FILES and name != module} for module in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("module", MARKET)
def test_the_market_knows_no_clock_chance_file_or_wire(module: str) -> None:
    allowed = MARKET_LIBRARIES | PURE | {"market"} | (CACHE_FOLDER if module == "market.rule" else set())
    strangers = {name for name in imports(module) if name.split(".")[0] not in allowed}
    assert not strangers, f"{module} imports {', '.join(sorted(strangers))}"
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in IMPURE_CALLS, f"{module}: line {node.lineno} calls {node.func.id}"
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith(".random"):
            assert node.attr == "SeedSequence", f"{module}: line {node.lineno} draws at random; chance comes in as an argument"


def test_a_policy_is_loaded_without_learners_environments_or_compilers() -> None:
    program = f"import sys, agents.policy; print(*[name for name in {HEAVY} if name in sys.modules])"
    environment = {**os.environ, "RULES": "python"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", sorted(FILES))
def test_files_and_functions_stay_small(module: str) -> None:
    lines = len(FILES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{FILES[module].relative_to(ROOT)} has {lines} lines"
    for name, length, _ in functions(module):
        assert length <= LONGEST_FUNCTION, f"{name} has {length} lines"


def test_nine_functions_of_ten_are_short() -> None:
    lengths = sorted(length for module in FILES for _, length, _ in functions(module))
    assert lengths[int(0.9 * len(lengths))] <= USUAL_FUNCTION


@pytest.mark.parametrize("module", sorted(FILES))
def test_what_is_public_is_documented(module: str) -> None:
    if TREES[module].body:
        assert ast.get_docstring(TREES[module]), f"{module} does not say what it is responsible for"
    public = [
        node for node in TREES[module].body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    ]
    silent = [node.name for node in public if not ast.get_docstring(node)]
    assert not silent, f"{module}: {', '.join(silent)} without docstring"


@pytest.mark.parametrize("module", sorted(FILES))
def test_nothing_catches_everything(module: str) -> None:
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            assert caught not in ("everything", "Exception", "BaseException"), f"{module}: line {node.lineno} catches {caught}"
