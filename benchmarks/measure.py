"""How a benchmark is asked, times and reports: wall-clock and CPU time side by side, spreads, fresh processes, one JSON line."""

import argparse
import json
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from rich.console import Console
from rich.table import Table

from benchmarks.gateway.volley import cpu_s

ROOT = Path(__file__).parent.parent
WIDTH = 110


def command_line(name: str, about: str | None, quick: str) -> argparse.ArgumentParser:
    """Make the command line that benchmarks share.

    name    of the module below benchmarks
    about   its docstring, whose first line is shown
    quick   what --quick leaves out
    """
    command = f"python -m benchmarks.{name}"
    example = f"examples:\n  {command} --quick\n  {command} --json /tmp/{name}.json"
    line = (about or "").partition("\n")[0]
    parser = argparse.ArgumentParser(command, None, line, example, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path, metavar="PATH", help="keep the last line here too")
    return parser


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
    """Time `run` `repeats` times (s, wall clock)."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return taken


def median_s(run: Callable[[], object], repeats: int) -> float:
    """Time `run` `repeats` times; returns the median (s, wall clock)."""
    return statistics.median(seconds(run, repeats))


class Meter:
    """Adds up the time (s) of the stretches that it encloses, by the wall clock and of the processors that this process takes.

    On a machine that others use too, the first holds their work as well, and the second is the fairer one to compare by.
    """

    def __init__(self, helpers: Sequence[int] = ()) -> None:
        """Count in the processors of other processes, by their ids, to a hundredth of a second each."""
        self.wall_s = self.cpu_s = 0.0
        self._helpers = helpers

    def __enter__(self) -> Self:
        self._wall_s, self._cpu_s = time.perf_counter(), self._processors_s()
        return self

    def __exit__(self, *error: object) -> None:
        self.cpu_s += self._processors_s() - self._cpu_s
        self.wall_s += time.perf_counter() - self._wall_s

    def _processors_s(self) -> float:
        return time.process_time() + sum(cpu_s(pid) for pid in self._helpers)


class Rate(NamedTuple):
    """How much a second: by the wall clock, and a second of CPU time."""

    wall: float
    cpu: float


class Spread(NamedTuple):
    """Median, least and greatest of repeats."""

    median: float
    low: float
    high: float

    def text(self, form: str = ",.0f") -> str:
        """Write it as `median (low .. high)`."""
        return f"{self.median:{form}} ({self.low:{form}} .. {self.high:{form}})"

    def over(self, unit: float) -> "Spread":
        """Give it in another unit."""
        return Spread(self.median / unit, self.low / unit, self.high / unit)


def spread(values: Sequence[float]) -> Spread:
    """Sum up repeats."""
    return Spread(statistics.median(values), min(values), max(values))


def cell(triple: list[float] | None, form: str) -> str:
    """Write an estimate and its interval; a dash where there is none."""
    return "-" if triple is None else f"{triple[0]:{form}} [{triple[1]:{form}}, {triple[2]:{form}}]"


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Sum up the ratios of what was measured in pairs."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def in_turn(runs: Mapping[str, Callable[[], Rate]], repeats: int) -> dict[str, list[Rate]]:
    """Measure one after the other, again and again, so that a noisy moment meets all alike; each once before, to warm up."""
    for run in runs.values():
        run()
    found: dict[str, list[Rate]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            found[name].append(run())
    return found


class Child(NamedTuple):
    """A process that has ended well: what it printed, how long it took, and what it held at most."""

    out: str
    wall_s: float
    cpu_s: float
    peak_bytes: int  # resident


def child(words: Sequence[str], **environment: str) -> Child:
    """Run a command in the repository's root with other environment variables; SystemExit with its last words when it fails."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, **environment}, stdout=out, stderr=errors)
        peak, status = 0, 0
        while status == 0:
            peak = max(peak, resident_bytes("VmHWM", process.pid))
            time.sleep(0.02)
            status, code, usage = os.wait4(process.pid, os.WNOHANG)
        wall_s = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(code)
        out.seek(0)
        errors.seek(0)
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(words)}: ended with {process.returncode}\n{errors.read()[-2000:]}")
        return Child(out.read(), wall_s, usage.ru_utime + usage.ru_stime, peak)


def resident_bytes(field: str, pid: int | str = "self") -> int:
    """Read what a process holds in memory (VmRSS) or has held at most (VmHWM), in bytes; 0 when it is gone. Linux only.

    rusage will not do: a child's greatest size there begins with that of the process that started it.
    """
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is the name of its row."""
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=WIDTH).print(table)


def report(name: str, figures: Mapping[str, Any], path: Path | None = None) -> None:
    """Print the figures of a benchmark as its last line, in JSON, with how busy the machine was; keep the line in `path` too."""
    line = json.dumps({"benchmark": name, "cpus": os.cpu_count(), "load": list(os.getloadavg()), **figures})
    if path is not None:
        path.write_text(line + "\n", encoding="utf-8")
    print(line)
