"""The documentation is true: its examples run, its links lead somewhere, and a number has the command that measures it beside it.

A comment above a fenced example tells the tests what to do with it: `<!-- not run: WHY -->` (then words of train.py and targets of
make are checked all the same), `<!-- exit: 2 -->`, `<!-- example: FILE -->` (it writes FILE, which docs/ shows).
`python -m tests.test_docs` writes anew what in docs/ is made by programs.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from hydra._internal.utils import get_args_parser
from PIL import Image

from agents import metrics
from agents.card import CARD_FILE, POLICY_FILE
from agents.names import FOLDER
from agents.policy import learned
from market.action import ACTION_VERSION, MASK_SIZE
from market.observation import OBSERVATION_SIZE, OBSERVATION_VERSION
from train import check_command_line

ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]}
RUN = {"python": ["python"], "bash": ["bash", "-euo", "pipefail"], "sh": ["bash", "-euo", "pipefail"]}
FENCE = re.compile(r"^(?:<!--\s*(?P<note>[^>]*?)\s*-->\n)?```[ ]?(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
MEASURED = re.compile(r"\bmedians?\b|\d ?[kM]? (?:agent-)?(?:steps|samples|requests|events)/s|±|\d\.\d+ \[", re.IGNORECASE)
COMMAND = re.compile(r"python -m ([\w.]+)|python train\.py|make [a-z]|^live_bridge [a-z]", re.MULTILINE)
METRICS_PAGE = ROOT / "docs" / "metrics.md"
METRICS_MARKS = ("<!-- metrics: written by `python -m tests.test_docs` -->\n", "<!-- end of metrics -->\n")


class Example(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    note: tuple[str, str]  # what the comment above says: its key and value, both empty without one

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def examples() -> list[Example]:
    """All fenced blocks in a language that can be run."""
    found = []
    for page, path in PAGES.items():
        whole = path.read_text(encoding="utf-8")
        for match in FENCE.finditer(whole):
            key, _, value = (match["note"] or "").partition(":")
            line = whole.count("\n", 0, match.start()) + 1
            found.append(Example(page, line, match["language"], match["text"], (key.strip(), value.strip())))
    return [example for example in found if example.language in RUN]


EXAMPLES = examples()
QUICK = [example for example in EXAMPLES if example.note[0] != "not run"]
LONG = [example for example in EXAMPLES if example.note[0] == "not run"]


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", PAGES[page].read_text(encoding="utf-8"))


def environment() -> dict[str, str]:
    """What an example finds: our python first, the repository's packages, no account of a tracker."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**clean, "PATH": path, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}


def prepare(folder: Path) -> None:
    """Make a folder look like the repository to an example that writes into it."""
    for program in ("train.py", "tune.py"):
        (folder / program).symlink_to(ROOT / program)
    if (ROOT / FOLDER).is_dir():
        shutil.copytree(ROOT / FOLDER, folder / FOLDER)
    shipped = folder / FOLDER / "ppo_wwwserve"
    if not shipped.exists():
        write_stand_in(shipped)


def write_stand_in(folder: Path) -> None:
    """Write a policy that knows nothing, for where the examples name one that has not been trained."""
    from stand_ins import card_of, linear_onnx

    content = linear_onnx(np.zeros((OBSERVATION_SIZE, MASK_SIZE)), np.zeros(MASK_SIZE))
    card = {**card_of(content), "reproduce": "nothing", "training": {"agent_steps": 0, "wall_s": 0.0}}
    folder.mkdir(parents=True)
    (folder / POLICY_FILE).write_bytes(content)
    (folder / CARD_FILE).write_text(yaml.safe_dump(card), encoding="utf-8")


def play(example: Example, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run an example in a folder."""
    script = folder / f"example.{example.language}"
    script.write_text(example.text, encoding="utf-8")
    words = [*RUN[example.language], str(script)]
    return subprocess.run(
        words, cwd=folder, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.parametrize("example", QUICK, ids=str)
def test_an_example_runs(example: Example, tmp_path: Path) -> None:
    prepare(tmp_path)
    done = play(example, tmp_path)
    key, value = example.note
    assert done.returncode == (int(value) if key == "exit" else 0), done.stdout + done.stderr
    if key == "example":
        with Image.open(tmp_path / value) as picture:
            assert len(np.unique(np.asarray(picture))) > 10, f"{value} shows nothing"


@pytest.mark.parametrize("example", LONG, ids=str)
def test_an_example_that_is_not_run_says_why_and_names_what_exists(example: Example) -> None:
    assert example.note[1], "write <!-- not run: WHY -->"
    if example.language == "python":
        compile(example.text, str(example), "exec")
        return
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in example.text.splitlines():
        words = [word for word in shlex.split(line, comments=True) if not word.startswith("resume=")]
        if words[:1] == ["make"]:
            assert words[1] in targets, f"make has no target {words[1]}"
        if words[:2] == ["python", "train.py"]:
            arguments = get_args_parser().parse_args(words[2:])
            check_command_line(arguments, arguments.overrides)


def anchors(path: Path) -> set[str]:
    """Names of a page's headings in links."""
    return {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in HEADING.findall(path.read_text())}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in LINK.findall(prose(page)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        target = PAGES[page].parent / file if file else PAGES[page]
        assert target.exists(), f"{page}: {link} does not exist"
        assert not anchor or anchor in anchors(target), f"{page}: {link} names no heading"


@pytest.mark.parametrize("page", PAGES)
def test_a_measured_number_has_its_command_beside_it(page: str) -> None:
    for section in re.split(r"^(?=#)", PAGES[page].read_text(encoding="utf-8"), flags=re.MULTILINE):
        found = MEASURED.search(FENCE.sub("", section))
        assert not found or COMMAND.search(section), f"{page}, {section.splitlines()[0]}: {found and found[0]} without a command"


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_modules_that_exist(page: str) -> None:
    for module in filter(None, COMMAND.findall(PAGES[page].read_text(encoding="utf-8"))):
        assert find_spec(module) is not None, f"{page}: there is no module {module}"


def test_every_page_is_found_from_the_index() -> None:
    linked = {link.partition("#")[0] for link in LINK.findall(prose("docs/index.md"))}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"} <= linked


def test_every_scenario_and_option_is_named() -> None:
    scenarios = {path.stem for path in (ROOT / "conf" / "env").glob("*.yaml")}
    assert scenarios <= set(re.findall(r"`([\w-]+)`", prose("README.md")))
    options = {path.stem for group in ("agents", "tracking") for path in (ROOT / "conf" / group).glob("*.yaml")}
    assert options <= set(re.findall(r"`([\w-]+)`", prose("docs/training.md")))


def test_the_changelog_names_the_versions_of_this_build() -> None:
    text = PAGES["CHANGELOG.md"].read_text(encoding="utf-8")
    for name, version in (("observation", OBSERVATION_VERSION), ("action", ACTION_VERSION)):
        assert f"{name} version {version}" in text.lower(), f"CHANGELOG.md does not tell of {name} version {version}"


def test_the_stand_in_of_the_examples_is_a_policy(tmp_path: Path) -> None:
    write_stand_in(tmp_path / "policy")
    seen, mask = np.zeros((2, OBSERVATION_SIZE), np.float32), np.ones((2, MASK_SIZE), np.int8)
    assert learned(tmp_path / "policy").policy.act(seen, mask).shape == (2, 3)


def with_metrics(text: str) -> str:
    """A page with the dictionary of metrics between its marks."""
    head, rest = text.split(METRICS_MARKS[0])
    return f"{head}{METRICS_MARKS[0]}{metrics.markdown()}{METRICS_MARKS[1]}{rest.split(METRICS_MARKS[1])[1]}"


def test_the_page_of_metrics_shows_the_dictionary() -> None:
    text = METRICS_PAGE.read_text(encoding="utf-8")
    assert with_metrics(text) == text, "docs/metrics.md is stale; write it with `python -m tests.test_docs`"


def write() -> None:
    """Write the table of metrics, and the pictures that examples make."""
    METRICS_PAGE.write_text(with_metrics(METRICS_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    for example in (example for example in QUICK if example.note[0] == "example"):
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder))
            done = play(example, Path(folder))
            assert done.returncode == 0, done.stderr
            shutil.copyfile(Path(folder) / example.note[1], ROOT / "docs" / example.note[1])


if __name__ == "__main__":
    sys.path.append(str(ROOT / "tests" / "agents"))
    write()
