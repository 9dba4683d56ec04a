"""The part `plays` as a command: settings, engines, progress, and the file that it writes."""

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from agents.provenance import source
from benchmarks.measure import ROOT, cell, report, show
from benchmarks.proof import engines
from benchmarks.proof.kept import Kept, write
from benchmarks.proof.plays import Plan, Turn, play_all, rehearsed, turns
from benchmarks.proof.summary import drift, summarise
from benchmarks.proof.terminal import say, unless_stopped
from live_bridge import check
from live_bridge.fleet import on_signals
from live_bridge.http.client import Client
from settings import SettingsError, Slip

KEEP = ROOT / "runs" / "proof"
RESULTS = ROOT / "benchmarks" / "results" / "live"
LEARNED = "ppo_wwwserve"
POLICIES = f"paper,single,{LEARNED}"
LOADS = "0.6,1.2,1.8"
QUIET = 0.1
REPETITIONS = 3
ARRIVALS_S, HORIZON_S, SLO_S, MAX_TOKENS = 45.0, 65.0, 10.0, 384
REPLAYS = 20
KV_BLOCK_TOKENS, KV_BLOCKS = 32, 96
"""A KV cache that six or seven requests of these users fill, so that it binds before the eight places do, as on GPUs. The paper's
rules look at its use and at nothing else: with a large one they would never hand on a request. In the simulator they do best by
this size."""
DUMMY = engines.Model(
    ("random", "--hidden", "768", "--layers", "6"),
    (
        *("--load-format", "dummy", "--max-model-len", "2048", "--max-num-seqs", "8", "--stream-interval", "4"),
        *("--block-size", str(KV_BLOCK_TOKENS), "--num-gpu-blocks-override", str(KV_BLOCKS)),
    ),
    core=0,
)
MODELS = [DUMMY, DUMMY._replace(core=1)]
PROFILES = tuple(f"benchmarks/results/live/vllm_cpu_llama768_core{core}.yaml" for core in (0, 1))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what this part takes."""
    parser.add_argument("--policies", default=POLICIES, metavar="A,B", help="default: %(default)s")
    parser.add_argument(
        "--loads", default=LOADS, metavar="X,X", help="demand over capacity at the busy node (default: %(default)s)"
    )
    parser.add_argument(
        "--repetitions", type=int, default=REPETITIONS, metavar="N", help="seeds, at least 2 (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: benchmarks/results/live/plays.json; quick: in --keep")
    parser.add_argument(
        "--quick", action="store_true", help="emulated engines, five times as fast as real, one load, two repetitions"
    )


def plan_of(args: argparse.Namespace) -> Plan:
    """Read the command line.

    errors   SettingsError
    """
    loads = _numbers(args.loads)
    slips = [Slip("command line", "--loads", f"must be numbers above 0, got {args.loads}")] if not loads else []
    if args.repetitions < 2:
        slips.append(Slip("command line", "--repetitions", f"must be >= 2, as an interval needs, got {args.repetitions}"))
    policies = tuple(part for part in args.policies.split(",") if part)
    if LEARNED not in policies or len(set(policies)) != len(policies) or len(policies) < 2:
        slips.append(Slip("command line", "--policies", f"must name {LEARNED} and others, each once, got {args.policies}"))
    if slips:
        raise SettingsError(*slips)
    common = Plan("vllm", 1.0, policies, loads, QUIET, (), ARRIVALS_S, HORIZON_S, SLO_S, MAX_TOKENS, REPLAYS, PROFILES)
    if args.quick:
        return common._replace(
            backend="emulated", speed=5.0, loads=loads[:1], seeds=(0, 1), arrivals_s=10.0, horizon_s=20.0, replays=2
        )
    return common._replace(seeds=tuple(range(args.repetitions)))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        return ()
    return found if all(0.0 < each < 100.0 for each in found) else ()


def run(args: argparse.Namespace, out: Path | None) -> int:
    """Play all, sum up, write."""
    import uvloop

    plan = plan_of(args)
    folder: Path = args.keep or KEEP / ("quick-plays" if args.quick else "plays")
    kept = Kept(folder, _settings(plan))
    plays, engine = uvloop.run(unless_stopped(_played(plan, kept, folder, args.interpreter)))
    found: dict[str, Any] = {"part": "plays", "command": "python -m benchmarks.proof plays"}
    found |= {**engine, **_settings(plan), "step_ms": drift(plays)}
    found |= {"summary": summarise(plays, LEARNED), "plays": plays}
    file = out or (folder / "plays.json" if args.quick else RESULTS / "plays.json")
    write(file, found)
    _tell(found["summary"])
    print(f"wrote {file}")
    report("proof plays", {**engine, "step_ms": found["step_ms"], **found["summary"]})
    return 0


def _settings(plan: Plan) -> dict[str, Any]:
    """What is said of a series: settings, and how its engines were started."""
    return {"settings": plan._asdict(), "serving": list(DUMMY.serving) if plan.backend != "emulated" else []}


async def _played(plan: Plan, kept: Kept, folder: Path, interpreter: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Start engines where any play is left to be played, and play."""
    order = turns(plan)
    left = [turn for turn in order if kept.find(turn.name) is None]
    episodes = {}
    for load, seed in dict.fromkeys((turn.load, turn.seed) for turn in left):
        print(f"the simulator rehearses load {load:g}, seed {seed}", flush=True)
        episodes[load, seed] = await asyncio.to_thread(rehearsed, plan, load, seed)
    progress = Progress(order, len(left))
    async with AsyncExitStack() as stack:
        urls: Sequence[str] = []
        engine = kept.find("engine") or {"engine": "emulated", "source": source()._asdict()}
        if left and plan.backend != "emulated":
            client = Client()
            stack.push_async_callback(client.close)
            urls = await stack.enter_async_context(engines.serving(MODELS, interpreter, folder, client, say))
            engine |= {"engine": await engines.version(client, urls[0])}
            for _ in range(2):
                say(f"an iteration takes {await engines.pace_ms(client, urls)} ms")
        kept.put("engine", engine)
        plays = await play_all(plan, urls, episodes, kept, progress.done, check.play)
    return plays, engine


def serve(args: argparse.Namespace, out: Path | None) -> int:
    """Serve the engines of the plays until Ctrl-C, for a calibration."""
    import uvloop

    uvloop.run(_serve(args.keep or KEEP / "engines", args.interpreter))
    return 0


async def _serve(folder: Path, interpreter: Path) -> None:
    over = asyncio.Event()
    on_signals(over.set, over.set)
    client = Client()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        async with engines.serving(MODELS, interpreter, folder, client, print) as urls:
            print(f"serving at {' and '.join(urls)} until Ctrl-C", flush=True)
            await over.wait()
    finally:
        await client.close()


class Progress:
    """Tells on the terminal what is done, and how long the rest will take."""

    def __init__(self, order: Sequence[Turn], left: int) -> None:
        self._all, self._left, self._begun_s, self._done = len(order), left, time.monotonic(), 0
        say(f"{left} of {len(order)} plays are left")

    def done(self, turn: Turn, record: Mapping[str, Any]) -> None:
        """Write a line on a play."""
        self._done += 1
        if self._done == 1:
            self._begun_s = time.monotonic()  # engines and first play are not as long as the others
            rest = ""
        else:
            rest = f", {(time.monotonic() - self._begun_s) / (self._done - 1) * (self._left - self._done) / 60:.0f} min left"
        live, place = record["live"], self._all - self._left + self._done
        busy = f"; host late by {record['late_ms_p99']:g} ms" if record["too_busy"] else ""
        say(
            f"[{place}/{self._all}] load {turn.load:g}, seed {turn.seed}, {record['policy']}: "
            f"attainment {live['slo_attainment']:.3f}, "
            f"mean latency {live['latency_s_mean']:.1f} s, {live['delegated_share']:.0%} delegated{busy}{rest}"
        )


def _tell(summary: Mapping[str, Any]) -> None:
    """Show the summary as a table."""
    rows = []
    for where in summary["loads"]:
        for name in summary["policies"]:
            part = summary["estimates"][where][name]
            cells = [cell(part[key], ".3g") for key in ("slo_attainment", "latency_s_mean", "latency_s_p99", "delegated_share")]
            rows.append([f"load {where}: {name}", *cells])
    show("what users got", ("policy", "SLO attainment", "mean latency, s", "p99, s", "delegated"), rows)
