"""Speed of the node core: `python -m benchmarks.serving`.

Eight nodes on one core, every node advanced at every arrival, requests handed out in turn, finished ones collected and
their records used again. The peer is the same engine without jumps: every iteration stepped. Compiled and plain Python, each
in its own process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.measure import command_line, median_s, report
from envs.wwwserve import lengths
from market import serving
from market.rule import COMPILED, fill, records, rule

ROOT = Path(__file__).parent.parent
NODES = 8
PROFILE = "a100_qwen3_8b"
LOADS = {"mixed": (("chat", "reasoning"), 0.7), "chat": (("chat",), 4.0), "overload": (("chat", "reasoning"), 1.5)}
"""Name -> length tables drawn from with equal chance, and requests/s a node."""


@rule
def step(engine, profile, requests, until):
    """Advance as `market.serving.advance` does, but one iteration at a time."""
    while engine.clock_s < until and not serving.is_idle(engine):
        serving.iterate(engine, profile, requests)


@rule
def drive(engines, profile, requests, spare, arrivals_s, prompts, outputs, jump):
    """Serve all requests; returns the sum of their latencies (s).

    requests   records of the requests in flight; spare: the indices of all of them, used as a stack
    jump       whether to jump over stretches that only decode
    """
    nodes = len(engines)
    left = len(spare)
    total = 0.0
    for i in range(len(arrivals_s) + 1):
        now = arrivals_s[i] if i < len(arrivals_s) else serving.NEVER
        for node in range(nodes):
            engine = engines[node]
            if jump:
                serving.advance(engine, profile, requests, now)
            else:
                step(engine, profile, requests, now)
            index = serving.collect(engine, requests, now)
            while index != serving.NONE:
                total += requests[index].finish_s
                spare[left] = index
                left += 1
                index = serving.collect(engine, requests, now)
        if i == len(arrivals_s):
            break
        left -= 1
        index = spare[left]
        request = requests[index]
        request.prompt_tokens = prompts[i]
        request.output_tokens = outputs[i]
        request.forecast_tokens = outputs[i]
        serving.enqueue(engines[i % nodes], requests, index, now)
        total -= now
    return total


def profile_of(name: str) -> Any:
    """Read the engine's fields of a profile in conf/serving into one record."""
    values = yaml.safe_load((ROOT / "conf" / "serving" / f"{name}.yaml").read_text(encoding="utf-8"))
    table = records(serving.PROFILE, 1)
    fill(table, np.array([tuple(values[field] for field in serving.PROFILE.names or ())], serving.PROFILE))
    return table[0]


def workload(load: str, count: int, seed: int) -> tuple[np.ndarray, ...]:
    """Draw Poisson arrivals (s), prompt and output lengths (tokens), each of shape (count,)."""
    tables, rate = LOADS[load]
    rng = np.random.default_rng(seed)
    which = rng.integers(len(tables), size=count)
    columns = [rng.exponential(1.0 / (rate * NODES), count).cumsum()]
    for column in (1, 2):
        drawn = [np.interp(rng.random(count), table[:, 0], table[:, column]) for table in map(lengths.load, tables)]
        columns.append(np.choose(which, drawn).round().astype(np.int64))
    return tuple(columns)


def requests_per_s(load: str, count: int, jump: bool, repeats: int) -> float:
    """Measure how many requests a second `drive` serves (median of `repeats`, after one run to warm up)."""
    drawn = workload(load, count, 0)
    arrivals_s, prompts, outputs = drawn if COMPILED else tuple(column.tolist() for column in drawn)
    profile, engines, requests = profile_of(PROFILE), records(serving.ENGINE, NODES), records(serving.REQUEST, count)
    full = np.arange(count)[::-1]

    def serve() -> float:
        for engine in engines:
            serving.open_engine(engine, 0.0)
        spare = full.copy() if COMPILED else full.tolist()
        return float(drive(engines, profile, requests, spare, arrivals_s, prompts, outputs, jump))

    serve()
    return count / median_s(serve, repeats)


def measure(count: int, repeats: int) -> dict[str, dict[str, float]]:
    """Measure every load in this process: requests/s with jumps, and one iteration at a time."""
    start = time.perf_counter()
    requests_per_s("chat", 8, True, 1)
    first_s = time.perf_counter() - start
    figures = {"first_call": {"s": first_s}}
    for load in LOADS:
        jump, stepped = requests_per_s(load, count, True, repeats), requests_per_s(load, count, False, min(repeats, 3))
        figures[load] = {"jump": jump, "stepped": stepped, "ratio": jump / stepped}
    return figures


def elsewhere(count: int, repeats: int, **environment: str) -> Any:
    """Run `measure` in a fresh process with other environment variables."""
    command = [sys.executable, "-m", "benchmarks.serving", "--part", str(count), str(repeats)]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=True, capture_output=True, text=True)
    return json.loads(run.stdout)


def main() -> None:
    """Print one line a load and the figures in JSON; a part prints its raw figures only."""
    parser = command_line("serving", __doc__, "fewer requests and repeats")
    parser.add_argument("--part", type=int, nargs=2, metavar=("COUNT", "REPEATS"), help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.part:
        print(json.dumps(measure(*words.part)))
        return
    many, few, repeats = (10_000, 500, 2) if words.quick else (100_000, 2_000, 5)
    with tempfile.TemporaryDirectory() as empty:
        compiled = elsewhere(many, repeats, RULES="compiled", NUMBA_CACHE_DIR=empty)
        warm_s = elsewhere(50, 1, RULES="compiled", NUMBA_CACHE_DIR=empty)["first_call"]["s"]
    plain = elsewhere(few, min(repeats, 3), RULES="python")
    print(f"first call: {compiled['first_call']['s']:.1f} s cold (all rules of the engine compiled), {warm_s:.2f} s from the cache")
    print(f"{NODES} nodes ({PROFILE}), all advanced at every arrival, one core; requests/s")
    for load, (tables, rate) in LOADS.items():
        for name, figures in (("compiled", compiled[load]), ("plain Python", plain[load])):
            print(
                f"{load:9} ({' + '.join(tables)}, {rate}/s a node)  {name:12}  {figures['jump']:>12,.0f}"
                f"  one iteration at a time {figures['stepped']:>9,.0f}  ratio {figures['ratio']:.1f}"
            )
    report("serving", {"compiled": compiled, "plain": plain, "warm_s": warm_s}, words.json)


if __name__ == "__main__":
    main()
