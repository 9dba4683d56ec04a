"""The wheel holds all that a run needs, and nothing of the tests; installed, it works from any folder."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
ROOMS = {"market", "envs", "agents", "conf", "live_bridge"}
IN_NAME = {"yaml": "pyyaml", "PIL": "pillow", "hydra": "hydra-core", "llvmlite": "numba", "nacl": "pynacl"}
"""Names of imports that are not names of packages; llvmlite is numba's own."""
ONLY_ASKED_FOR = {"onnxscript"}
"""Packages that another one imports without asking for them."""
EXTRA = {"tensorboard", "hydra-joblib-launcher", "hydra-ray-launcher"}
"""Packages of extras, which libraries load by name."""
ELSEWHERE = {"yarl"}
"""Packages that another one brings along: aiohttp takes URLs of yarl alone."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, since setuptools leaves folders behind, and without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for room in (*ROOMS, "tests", "benchmarks"):
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE"):
        shutil.copy(path, source)
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel, and it alone, into a folder of its own."""
    target = tmp_path_factory.mktemp("installed")
    words = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def call(installed: Path, cwd: Path, *words: str) -> str:
    """Run Python elsewhere, with the installed wheel first on its path; returns what it prints."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"} | {"PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=clean, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_that_a_run_needs_and_no_other(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    folders = [ROOT / room for room in ROOMS]
    needed = {path for folder in folders for kind in ("*.py", "*.yaml", "*.csv", "*.html") for path in folder.rglob(kind)}
    assert names == {path.relative_to(ROOT).as_posix() for path in needed | set(ROOT.glob("*.py"))}


def test_the_wheel_says_its_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_installed_packages_are_found_from_elsewhere_and_find_their_data(installed: Path, tmp_path: Path) -> None:
    program = """
import agents.policy, compose, envs.wwwserve, market, settings, train
from envs.wwwserve import lengths, load
for module in (agents.policy, compose, market, settings, train):
    print(module.__file__)
print(compose.CONF)
assert {"wwwserve", "paper-1"} <= set(load.names("env")) and load.scenario("wwwserve").providers
assert load.terms() and load.profiles()
assert lengths.names() and [lengths.load(name).shape for name in lengths.names()]
"""
    found = call(installed, tmp_path, "-c", program).split()
    assert found and all(place.startswith(str(installed)) for place in found)


@pytest.mark.parametrize("module", ["train", "agents.evaluate"])
def test_installed_programs_show_their_help_from_elsewhere(module: str, installed: Path, tmp_path: Path) -> None:
    text = call(installed, tmp_path, "-m", module, "--help")
    assert "env=" in text
    assert "wwwserve" in text
    assert not list(tmp_path.iterdir()), "help left a file"


def test_the_installed_command_of_the_live_bridge_says_what_it_can_do(installed: Path, tmp_path: Path) -> None:
    assert "run one node" in call(installed, tmp_path, "-m", "live_bridge", "--help")
    assert "backend.metrics_s" in call(installed, tmp_path, "-m", "live_bridge", "serve", "--help")


def test_an_installed_program_composes_its_settings_from_elsewhere(installed: Path, tmp_path: Path) -> None:
    assert "duel_rate: 0.3" in call(installed, tmp_path, "-m", "train", "--cfg", "job", "market.duel_rate=0.3")


def test_packages_are_listed_one_by_one_and_none_is_forgotten() -> None:
    found = {".".join(path.parent.relative_to(ROOT).parts) for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert set(SETUPTOOLS["packages"]) == found
    modules = {path.stem for path in ROOT.glob("*.py")}
    assert set(SETUPTOOLS["py-modules"]) == modules


def imported(paths: list[Path]) -> set[str]:
    """First names of what files import, wherever the statement stands."""
    names: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    return names


def asked_for(requirements: list[str]) -> set[str]:
    """Names of packages in requirements, without versions and extras."""
    stops = str.maketrans(dict.fromkeys("=<>![;~", " "))
    return {requirement.translate(stops).split()[0].lower() for requirement in requirements}


def test_what_is_imported_is_asked_for_and_what_is_asked_for_is_imported() -> None:
    ours = ROOMS | set(SETUPTOOLS["py-modules"])
    paths = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")] + list(ROOT.glob("*.py"))
    used = {name for name in imported(paths) if name not in ours and name not in sys.stdlib_module_names}
    packages = {IN_NAME.get(name, name.replace("_", "-")).lower() for name in used}
    asked = asked_for(PROJECT["project"]["dependencies"])
    live, sweep = (asked_for(PROJECT["project"]["optional-dependencies"][extra]) for extra in ("live", "sweep"))
    assert packages - asked - live - sweep - ELSEWHERE == set(), "imported, but not among the dependencies"
    assert live <= packages, "in the extra live, but not imported"
    assert asked - packages == ONLY_ASKED_FOR, "among the dependencies, but not imported"


def test_tests_and_benchmarks_find_what_they_import_in_the_dev_extra() -> None:
    ours = ROOMS | set(SETUPTOOLS["py-modules"]) | {"tests", "benchmarks"} | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    paths = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    extras = PROJECT["project"]["optional-dependencies"]
    asked = asked_for(PROJECT["project"]["dependencies"]) | asked_for([name for extra in extras.values() for name in extra])
    for name in imported(paths) - ours - ELSEWHERE - set(sys.stdlib_module_names):
        package = IN_NAME.get(name, name.replace("_", "-")).lower()
        assert package in asked, f"{name} is imported by tests or benchmarks; add it to the extra dev"
    assert asked >= EXTRA
