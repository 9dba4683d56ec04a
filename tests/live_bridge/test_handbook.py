"""docs/live.md tells the truth: its tables are those of this build, its commands and settings are ones that a node takes."""

import argparse
import configparser
import importlib
import re
import shlex
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from live_bridge import handbook
from live_bridge.cli import JOBS
from live_bridge.compare import BOUNDS
from live_bridge.config import defaults, leaves, node_settings
from live_bridge.handbook import BEGIN, END, StaleMarksError, table, with_tables
from live_bridge.metrics import NodeMetrics
from live_bridge.serve import spoken

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EMPTY = "".join(BEGIN.format(name) + END.format(name) for name in handbook.TABLES)


def fences(page: Path, *languages: str) -> list[str]:
    """Fenced blocks of a page in one of some languages."""
    return [text for language, text in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every `live_bridge` command of the pages, as words, and where it stands."""
    for page in PAGES:
        for text in fences(page, "bash", "sh"):
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and Path(words[0]).name == "live_bridge":
                    yield page.name, [word for word in words[1:] if word != "&"]


def services() -> dict[str, dict[str, object]]:
    """Services of the compose file."""
    found: dict[str, dict[str, object]] = yaml.safe_load((DOCS / "docker-compose.yaml").read_text(encoding="utf-8"))["services"]
    return found


def served(words: list[str]) -> argparse.Namespace:
    """Words of `live_bridge serve`, parsed."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(JOBS["serve"].module).add_arguments(parser)
    return parser.parse_args(words)


def test_the_page_shows_the_tables_of_this_build() -> None:
    text = (ROOT / handbook.FILE).read_text(encoding="utf-8")
    assert with_tables(text) == text, "docs/live.md is stale; write it with `python -m live_bridge.handbook`"


def test_writing_twice_changes_nothing_and_leaves_the_rest_alone() -> None:
    page = f"before\n{EMPTY}after\n"
    once = with_tables(page)
    assert with_tables(once) == once != page
    assert once.startswith("before\n")
    assert once.endswith("after\n")


@pytest.mark.parametrize("name", handbook.TABLES)
def test_a_page_without_a_place_for_a_table_is_refused_by_name(name: str) -> None:
    for broken in (EMPTY.replace(BEGIN.format(name), ""), EMPTY.replace(END.format(name), ""), EMPTY + BEGIN.format(name)):
        with pytest.raises(StaleMarksError, match=f"docs/live.md: must hold .*{name}"):
            with_tables(broken)


def test_marks_in_the_wrong_order_are_refused() -> None:
    begin, end = BEGIN.format("settings"), END.format("settings")
    with pytest.raises(StaleMarksError, match="put them back"):
        with_tables(EMPTY.replace(begin + end, end + begin))


def test_every_setting_is_in_the_table_with_its_meaning() -> None:
    rows = dict(re.findall(r"^\| `([\w.]+)` \| `.*?` \| (.*) \|$", handbook.settings_table(), re.MULTILINE))
    for key, _ in leaves(defaults()):
        assert key in rows or key.partition(".")[0] in rows, f"{key} is in no row"
    assert all(rows.values()), "a setting says nothing of itself"


def test_every_metric_of_a_node_is_in_the_table_with_its_labels() -> None:
    written = handbook.metrics_table()
    ours = [family for family in NodeMetrics().registry.collect() if family.name.startswith("wwwserve_")]
    assert len(ours) > 20
    for family in ours:
        assert re.search(rf"^\| `{family.name}(_total)?` \| {family.type} \|", written, re.MULTILINE), family.name
    assert "outcome: done, refused, failed, cut, cancelled" in written
    assert "reason: ..." in written
    assert "le:" not in written
    assert "process_" not in written


def test_every_bound_is_in_the_table_with_its_reason() -> None:
    written = handbook.bounds_table()
    for bound in BOUNDS:
        assert f"| `{bound.metric}` |" in written
        assert bound.reason in written
    assert "| `slo_attainment` | 3 points | 3 points | 3 points |" in written
    assert "| `latency_s_mean` | 5 % | 10 % | shown |" in written


def test_a_bar_in_a_cell_makes_no_column() -> None:
    assert table(("a", "b"), [("x|y", "z")]) == "| a | b |\n| --- | --- |\n| x\\|y | z |\n"


def test_the_pages_name_commands_at_all() -> None:
    assert {words[0] for _, words in commands()} >= {"serve", "up", "check", "calibrate", "replay", "ledger"}


@pytest.mark.parametrize(("page", "words"), list(commands()), ids=lambda part: part if isinstance(part, str) else " ".join(part))
def test_a_command_of_the_pages_is_one_that_is_taken(page: str, words: list[str]) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(JOBS[words[0]].module).add_arguments(parser)
    args = parser.parse_args(words[1:])
    if words[0] == "serve":
        args.config = None  # the page shows that file, and another test reads it
        node_settings(None, spoken(args))


@pytest.mark.parametrize("text", fences(DOCS / "live.md", "yaml"))
def test_a_file_of_settings_in_the_pages_is_one_that_a_node_takes(text: str, tmp_path: Path) -> None:
    file = tmp_path / "node.yaml"
    file.write_text(text, encoding="utf-8")
    assert node_settings(file, {}).peers.allow == ["10.0.0.0/28"]


def test_nodes_of_the_compose_file_are_started_as_a_node_can_be() -> None:
    nodes = {name: said for name, said in services().items() if "command" in said and str(said["command"]).startswith("['serve'")}
    assert len(nodes) == 3
    for name, said in nodes.items():
        words = [str(word) for word in said["command"]]  # type: ignore[attr-defined]
        settings = node_settings(None, spoken(served(words[1:])))
        assert settings.listen == "0.0.0.0:9000"
        assert settings.advertise == f"http://{name}:9000", "peers look for it by the name of the service"
        assert said["volumes"] == [f"{name}:{settings.home}"], "keys and money are in a volume"
        assert float(str(said["stop_grace_period"]).removesuffix("s")) > settings.limits.drain_s + 10, "it may drain, and pay"


def test_a_joining_node_of_the_compose_file_waits_for_the_one_it_joins() -> None:
    for name, said in services().items():
        if "--join" in said.get("command", []):  # type: ignore[operator]
            assert "node-a" in said["depends_on"], name  # type: ignore[operator]
            assert said["depends_on"]["node-a"] == {"condition": "service_healthy"}  # type: ignore[index]


def test_the_image_has_what_a_node_imports_and_no_torch() -> None:
    text = (DOCS / "Dockerfile").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    live = {re.split("[<>=]", wanted)[0] for wanted in project["optional-dependencies"]["live"]}
    (line,) = re.findall(r"pip install --no-cache-dir (.*?) &&", text.replace("\\\n", " "))
    assert set(line.split()) == live | {"numpy", "omegaconf", "onnxruntime", "pyyaml"}
    assert "torch" not in line
    assert 'ENTRYPOINT ["live_bridge"]' in text


def test_the_unit_starts_reloads_and_stops_a_node_as_the_page_says() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((DOCS / "wwwserve-node.service").read_text(encoding="utf-8"))
    service = unit["Service"]
    words = shlex.split(service["ExecStart"])
    assert Path(words[0]).name == "live_bridge"
    assert served(words[2:]).config == Path("/etc/wwwserve/node.yaml")
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert service["KillMode"] == "mixed", "an engine that the node has started is the node's to end"
    assert float(service["TimeoutStopSec"]) > node_settings(None, {}).limits.drain_s + 40, "it may drain, and end an engine"


def test_the_picture_reads_on_any_ground() -> None:
    picture = ET.fromstring((DOCS / "node.svg").read_text(encoding="utf-8"))
    space = "{http://www.w3.org/2000/svg}"
    boxes = [box for box in picture.iter(f"{space}rect") if "box" in box.get("class", "")]
    assert len(boxes) > 8
    for text in picture.iter(f"{space}text"):
        x, y = float(text.get("x", 0)), float(text.get("y", 0))
        inside = [box for box in boxes if _holds(box, x, y)]
        assert inside, f"{text.text!r} stands on no box of its own, and so on whatever ground the page has"


def _holds(box: ET.Element, x: float, y: float) -> bool:
    left, top, width, height = (float(box.get(name, 0)) for name in ("x", "y", "width", "height"))
    return left < x < left + width and top < y < top + height
