"""A whole market comes up with one command, shows itself, and is gone afterwards, however it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from live_bridge import cli
from tests.live_bridge.test_check import marked
from tests.live_bridge.test_fleet import ROOT, gone

PROGRAM = """
import sys
from live_bridge import cli, stage
real = stage.node
def node(*words):
    member = real(*words)
    return member._replace(words=(member.words[0], sys.argv[1], *member.words[-2:]))
stage.node = node
sys.exit(cli.main(sys.argv[2:]))
"""
STUB = str(ROOT / "tests/live_bridge/stub_market.py")
QUICK = ("--scenario", "tiny", "--policy", "single", "--seed", "4", "--load", "0.3")


def put_up(mark: str, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MARK": mark}
    command = [sys.executable, "-c", PROGRAM, STUB, "up", *QUICK, *words]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def read_until(process: subprocess.Popen[str], text: str, within_s: float = 30.0) -> str:
    assert process.stdout is not None
    said, until = "", time.monotonic() + within_s
    while text not in said:
        line = process.stdout.readline()  # ends when the process does
        assert line and time.monotonic() < until, said
        said += line
    return said


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[str]:
    """Finds the processes of a test again; none of them may be left."""
    yield tmp_path.name
    left = list(marked(tmp_path.name))
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def test_it_shows_where_it_is_and_what_users_got_and_ends_when_the_time_is_over(mark: str, tmp_path: Path) -> None:
    process = put_up(mark, "--speed", "20", "--duration", "3", "--nodes", "2", "--home", str(tmp_path))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "2 nodes, policy single, 20 times as fast as real; Ctrl-C ends it" in said and "live page: http://127.0.0.1:" in said
    assert "node-1" in said and "node-2" not in said and "all nodes have stopped" in said
    assert "100.0%" in said and " 0 failed" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node-0", "node-1", "terms.yaml"]
    assert all((tmp_path / f"node-{i}" / name).exists() for i in range(2) for name in ("config.yaml", "profile.yaml", "output.log"))


def test_ctrl_c_ends_the_load_and_still_tells_what_users_got(mark: str) -> None:
    process = put_up(mark, "--speed", "20")
    said = read_until(process, " answered, ")
    pids = list(marked(mark))
    assert len(pids) == 5  # itself, the keeper and three nodes
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and "what users got" in rest and "all nodes have stopped" in rest, said + rest
    assert gone(pids)


def test_ctrl_c_before_the_market_is_up_leaves_nothing(mark: str) -> None:
    process = put_up(mark, "--speed", "20")
    until = time.monotonic() + 30.0
    while not [pid for pid in marked(mark) if "node-0/config.yaml" in Path(f"/proc/{pid}/cmdline").read_text()]:
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_a_node_that_crashes_is_named_and_the_market_goes_on(mark: str) -> None:
    process = put_up(mark, "--speed", "20", "--duration", "6")
    read_until(process, " answered, ")
    (victim,) = [pid for pid in marked(mark) if "node-1/config.yaml" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(victim, signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "ended (-9)" in said and "node-1 has ended with status -9" in said and "all nodes have stopped" in said, said


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--duration", "-1"], "--duration must be >= 0 s, got -1"),
        (["--policy", "a,b"], "--policy must be one, got 2"),
        (["--policy", "central"], "central is a scheduler above the market"),
        (["--scenario", "papr-2"], "names no file of conf/env"),
    ],
)
def test_a_slip_is_one_line(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["up", *words]) == 2
    said = capsys.readouterr().err
    assert text in said and "Traceback" not in said
