"""What is measured is what is said: spreads, pairs, processes and their memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import measure
from benchmarks.measure import Meter, Rate, Spread, child, in_turn, ratios, spread


def test_a_spread_is_median_least_and_greatest() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert spread([3e6, 1e6]).over(1e6).text(".1f") == "2.0 (1.0 .. 3.0)"


def test_ratios_are_taken_pair_by_pair() -> None:
    assert ratios([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == Spread(2.0, 1.0, 3.0)


def test_runs_take_turns_after_one_to_warm_up() -> None:
    order: list[str] = []

    def run(name: str) -> Rate:
        order.append(name)
        return Rate(len(order), 1.0)

    found = in_turn({"a": lambda: run("a"), "b": lambda: run("b")}, 2)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert [rate.wall for rate in found["a"]] == [3, 5]


def test_a_meter_adds_up_what_it_encloses() -> None:
    meter = Meter()
    for _ in range(2):
        with meter:
            sum(range(100_000))
    assert meter.cpu_s > 0.0 and meter.wall_s > 0.0


def test_a_child_tells_its_output_time_and_memory() -> None:
    code = "import time; held = bytearray(60_000_000); time.sleep(0.3); print(len(held))"
    done = child([sys.executable, "-c", code])
    assert done.out == "60000000\n" and done.wall_s > 0.3 and done.cpu_s > 0.0
    assert 60e6 < done.peak_bytes < 120e6


def test_a_child_that_fails_ends_the_benchmark_with_its_last_words() -> None:
    with pytest.raises(SystemExit, match=r"ended with 3\n.*no such market"):
        child([sys.executable, "-c", "import sys; sys.stderr.write('no such market'); sys.exit(3)"])


def test_what_a_process_holds_can_be_read() -> None:
    assert 1e6 < measure.resident_bytes("VmRSS") <= measure.resident_bytes("VmHWM", os.getpid())
    assert measure.resident_bytes("VmRSS", 2**22 + 1) == 0


def test_the_last_line_is_kept_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure.show("title", ("case", "found"), [("a", "1")])
    measure.report("x", {"a": Spread(1.0, 0.5, 2.0)}, tmp_path / "x.json")
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last)["a"] == [1.0, 0.5, 2.0]
    assert (tmp_path / "x.json").read_text() == last + "\n"


@pytest.mark.parametrize("name", ["forecast", "gateway", "policy", "serving", "settlements", "simulator", "training"])
def test_every_timed_benchmark_says_how_it_is_asked_and_takes_nothing_else(name: str) -> None:
    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", f"benchmarks.{name}", *words]
        return subprocess.run(command, cwd=measure.ROOT, capture_output=True, text=True, check=False)

    told, refused = run("--help"), run("--quik")
    assert told.returncode == 0 and f"python -m benchmarks.{name} --quick" in told.stdout and "--json PATH" in told.stdout
    assert refused.returncode == 2 and "unrecognized arguments: --quik" in refused.stderr and refused.stdout == ""
