"""How a benchmark times and reports: the median of repeats, and one JSON line at the end."""

import json
import statistics
import time
from collections.abc import Callable


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


def report(name: str, figures: dict[str, object]) -> None:
    """Print the figures of a benchmark as its last line, in JSON."""
    print(json.dumps({"benchmark": name, **figures}))
