"""What a node costs a request: `python -m benchmarks.gateway [--quick] [--cells direct,plain,...] [--json PATH]`.

An instant engine, and before it, in turn: nothing, our HTTP code as a proxy, the same over aiohttp, a whole node, and the PyPI
package vllm-router (in an environment of its own). Server on one core; engine and load on another. The load is ours (volley.py).
CPU time a request is the figure to compare by: rates swing with whatever else the machine does.
"""

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gateway.servers import NAMES, Missing, Running, cores, engine, server
from benchmarks.measure import ROOT, command_line, report, show

CONNECTIONS = (1, 32, 256)
STREAMS = 128
Figures = dict[str, dict[str, float]]
"""Load -> measure -> median of the repeats."""


def volley(running: Running, *words: str) -> dict[str, float]:
    """Put one load on a server, from the engine's core."""
    command = [sys.executable, "-m", "benchmarks.gateway.volley", running.url, "--pid", str(running.pid), *words]
    pinned = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); os.execv(sys.argv[2], sys.argv[2:])"
    done = subprocess.run(
        [sys.executable, "-c", pinned, str(cores()[1]), *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: ended with {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def loads(*, quick: bool) -> dict[str, list[str]]:
    """List the loads by name, with the words that volley.py takes."""
    seconds, waves = ("1", "2") if quick else ("3", "5")
    rates = {f"c={count}": ["--connections", str(count), "--seconds", seconds] for count in CONNECTIONS}
    return {**rates, "streams": ["--connections", str(STREAMS), "--waves", waves]}


def measured(servers: Mapping[str, Running], cases: Mapping[str, Sequence[str]], repeats: int) -> dict[str, Figures]:
    """Put every load on every server in turn, again and again, so that a noisy moment meets all alike; returns medians."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {case: [] for case in cases} for name in servers}
    for _ in range(repeats):
        for case, words in cases.items():
            for name, running in servers.items():
                found[name][case].append(volley(running, *words))
    return {
        name: {case: {key: statistics.median(one[key] for one in runs) for key in runs[0]} for case, runs in by_case.items()}
        for name, by_case in found.items()
    }


def against(found: Mapping[str, Figures]) -> dict[str, float]:
    """Set the node, or the plain proxy where there is no node, beside a direct call and the router."""
    ours = next((name for name in ("node", "plain") if name in found), None)
    if ours is None or "direct" not in found:
        return {}
    mine, bare = found[ours], found["direct"]
    figures = {
        "added_p50_ms_c1": mine["c=1"]["p50_ms"] - bare["c=1"]["p50_ms"],
        "added_gap_p99_ms": mine["streams"]["gap_p99_ms"] - bare["streams"]["gap_p99_ms"],
        "added_ttft_p50_ms": mine["streams"]["ttft_p50_ms"] - bare["streams"]["ttft_p50_ms"],
    }
    router = found.get("vllm-router")
    if router is not None:
        for case in ("c=32", "c=256"):
            figures[f"rps_over_router_{case}"] = mine[case]["rps"] / router[case]["rps"]
            figures[f"cpu_over_router_{case}"] = mine[case]["cpu_us"] / router[case]["cpu_us"]
        figures["cpu_over_router_streams"] = mine["streams"]["cpu_us"] / router["streams"]["cpu_us"]
    return {f"{ours}: {name}": value for name, value in figures.items()}


def tables(found: Mapping[str, Figures], servers: Mapping[str, Running]) -> None:
    """Print what was found."""
    rows = []
    for name, by_case in found.items():
        cells = [by_case[f"c={count}"] for count in CONNECTIONS]
        rows.append((name, *(f"{c['rps']:,.0f} / {c['p50_ms']:.2f} / {c['p99_ms']:.1f} / {c['cpu_us']:.0f}" for c in cells)))
    title = "Not streaming, by connections: requests/s / p50, ms / p99, ms / CPU of the server, us a request"
    show(title, ("server", *map(str, CONNECTIONS)), rows)
    rows = []
    for name, by_case in found.items():
        c, one = by_case["streams"], servers[name]
        idle = (f"{one.ready_s:.1f}", f"{one.rss_mb:.0f}") if one.pid else ("-", "-")
        rows.append((name, f"{c['ttft_p50_ms']:.1f}", f"{c['gap_p99_ms']:.1f}", f"{c['cpu_us']:.1f}", *idle))
    columns = ("server", "TTFT p50, ms", "gap p99, ms", "CPU, us a chunk", "ready after, s", "idle, MB")
    show(f"{STREAMS} streams of 64 chunks, 10 ms apart", columns, rows)


def main() -> None:
    """Print the tables and one line of JSON."""
    parser = command_line("gateway", __doc__, "one repeat of a second each")
    parser.add_argument("--cells", default=",".join(NAMES), help=f"rows, of {', '.join(NAMES)}")
    words = parser.parse_args()
    names = words.cells.split(",")
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        parser.error(f"--cells: {unknown[0]} is not a row; one of {', '.join(NAMES)}")
    skipped: dict[str, str] = {}
    servers: dict[str, Running] = {}
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(engine())
        for name in names:
            try:
                servers[name] = stack.enter_context(server(name, url))
            except Missing as reason:
                skipped[name] = str(reason)
                print(f"{name} is left out: {reason}", file=sys.stderr)
        found = measured(servers, loads(quick=words.quick), 1 if words.quick else 3)
        tables(found, servers)
    beside = against(found)
    if beside:
        show("Beside", ("what", "found"), [(name, f"{value:.2f}") for name, value in beside.items()])
    idle: dict[str, Any] = {name: {"ready_s": one.ready_s, "rss_mb": one.rss_mb} for name, one in servers.items() if one.pid}
    report("gateway", {"found": found, "idle": idle, "beside": beside, "skipped": skipped}, words.json)


if __name__ == "__main__":
    main()
