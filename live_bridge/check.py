"""`live_bridge check`: the same demand through the simulator and through real nodes, and how far the two lie apart."""

import argparse
import asyncio
import json
import math
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from live_bridge import stage as staging
from live_bridge import tables
from live_bridge.clock import Clock
from live_bridge.compare import BOUNDS, Comparison, compare, floor_s
from live_bridge.episode import UNFINISHED, Ask, Course, Episode, rehearse, rows
from live_bridge.fleet import Fleet, FleetError, on_signals, tail
from live_bridge.http.client import Client
from live_bridge.http.message import HttpClient
from live_bridge.load import Load, Outcome, Punctuality, Target
from live_bridge.stage import Stage
from live_bridge.states import State, states_of, wealth_of
from settings import SettingsError, Slip

FORMAT = 1
LATE_MS = 50.0
"""Lateness of this process (p99, on the wall) above which the host was too busy to measure anything."""
WIDTH = 130
"""Columns of a table where no terminal says how many there are."""


class Play(NamedTuple):
    """One live play of a policy."""

    course: Course
    outcomes: list[Outcome]
    ruled: int  # decisions by rules: all of them, or those for which a policy was too slow or broken
    punctuality: Punctuality


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the words of the command line."""
    parser.add_argument(
        "--policies",
        default="paper,single,policies_trained/ppo_wwwserve",
        metavar="A,B",
        help="default: paper,single,policies_trained/ppo_wwwserve",
    )
    parser.add_argument(
        "--repetitions", type=int, default=1, metavar="N", help="live plays of each policy: more leave less to luck (default: 1)"
    )
    parser.add_argument("--replays", type=int, default=20, metavar="N", help="plays of each policy in the simulator (default: 20)")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="for check.json and check.png (default: runs/check/SCENARIO/TIME)"
    )
    parser.add_argument(
        "--wandb", action="store_true", help="log to Weights & Biases too: online with an API key, offline without one"
    )
    staging.add_arguments(parser)


def HELP() -> str:  # noqa: N802 - a constant that is worked out when it is asked for
    """Every bound with its reason."""
    return "bounds (by the load of the busiest engine), and why:\n" + tables.bounds_text()


def run(args: argparse.Namespace) -> int:
    """Play, compare, show and write; 1 when a bound is missed."""
    stage = staging.read(args)
    policies = staging.policies(args.policies)
    slips = [("--repetitions", args.repetitions, 1), ("--replays", args.replays, 2)]
    if wrong := [Slip("command line", key, f"must be >= {low}, got {value}") for key, value, low in slips if value < low]:
        raise SettingsError(*wrong)
    console = Console(width=None if Console().is_terminal else WIDTH)
    with console.status("the simulator rehearses ..."):
        episode = rehearse([*stage.scenario, f"policies=[{','.join(policies)}]", f"replays={args.replays}"])
    console.print(tables.headline(episode, stage))
    import uvloop

    names = dict(zip(episode.played, policies, strict=True))
    plays = uvloop.run(_play_all(stage, episode, names, args.repetitions, console))
    floor = floor_s(stage.speed, emulated=stage.backend == "emulated")
    found = [compare(name, episode, [play.course for play in plays[name]], floor) for name in names]
    folder = args.out or Path("runs/check") / episode.scenario / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    return conclude(stage, episode, found, plays, folder, console, log=args.wandb)


def conclude(
    stage: Stage,
    episode: Episode,
    found: Sequence[Comparison],
    plays: dict[str, list[Play]],
    folder: Path,
    console: Console,
    *,
    log: bool,
) -> int:
    """Show and write what was found; returns the exit status."""
    from live_bridge.chart import draw

    for comparison in found:
        console.print(tables.comparison(comparison))
    for name, mine in plays.items():
        for line in tables.failures(name, [fate for play in mine for fate in play.outcomes]):
            console.print(line, markup=False)
        for play in mine:
            for line in tables.relieved(name, play.course.actions, play.ruled):
                console.print(line)
    for line in tables.remarks(found, {name: [play.punctuality for play in mine] for name, mine in plays.items()}, LATE_MS):
        console.print(line)
    folder.mkdir(parents=True, exist_ok=True)
    content = report(stage, episode, found, plays)
    (folder / "check.json").write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")
    draw(episode, {name: [play.course for play in mine] for name, mine in plays.items()}, found, folder / "check.png")
    for file in ("check.json", "check.png"):
        console.print(f"wrote {folder / file}", soft_wrap=True)
    if log:
        from live_bridge.diary import write

        console.print(write(content, folder), soft_wrap=True)
    return 1 if any(comparison.missed for comparison in found) else 0


async def _play_all(
    stage: Stage, episode: Episode, names: dict[str, str], repetitions: int, console: Console
) -> dict[str, list[Play]]:
    """Play every policy on real nodes, one after the other; Ctrl-C ends all of it."""
    task = asyncio.current_task()
    assert task is not None
    on_signals(task.cancel, task.cancel)
    plays: dict[str, list[Play]] = {}
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeElapsedColumn())
    try:
        with (
            Progress(*columns, console=console, transient=True) as progress,
            tempfile.TemporaryDirectory(prefix="live_bridge_") as folder,
        ):
            for name, policy in names.items():
                for turn in range(repetitions):
                    label = name if repetitions == 1 else f"{name} {turn + 1} of {repetitions}"
                    bar = progress.add_task(label, total=len(episode.demand), said="nodes start")
                    tell = _teller(progress, bar, len(episode.demand))
                    plays.setdefault(name, []).append(await play(stage, episode, policy, Path(folder) / f"{name}-{turn}", tell))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    return plays


def _teller(progress: Progress, bar: Any, total: int) -> Callable[[Outcome], None]:
    """What advances a bar with each outcome."""

    def tell(_: Outcome) -> None:
        done = int(progress.tasks[bar].completed) + 1
        progress.update(bar, completed=done, said=f"{done} of {total} requests answered")

    return tell


async def play(
    stage: Stage, episode: Episode, policy: str, folder: Path, on_done: Callable[[Outcome], None] = lambda _: None
) -> Play:
    """Play an episode on real nodes, from the first request to the horizon.

    folder   for config files, homes and logs of the nodes
    errors   FleetError when a node does not start, or ends before the play does
    """
    members = staging.members(stage, episode, policy, folder)
    urls = [member.url for member in members]
    client = Client()
    try:
        async with Fleet(client, ready_s=stage.ready_s, stop_s=staging.STOP_S) as fleet:
            await fleet.start(members[:1])
            await fleet.start(members[1:])
            targets = await targets_of(client, urls)
            before = await states_of(client, urls)
            clock = Clock(stage.speed)
            load = Load(targets, client, clock, on_done)
            await load.play(episode.demand, episode.horizon_s)
            await clock.sleep(episode.horizon_s - clock.now())
            if fleet.ended():
                member, status = fleet.ended()[0]
                raise FleetError(f"{member.name}: has ended with status {status} in mid-play\n{tail(member)}")
            after, wealth = await states_of(client, urls), await wealth_of(client, urls[0])
        ruled = sum(state.ruled(then.actions) for then, state in zip(before, after, strict=True))
        return Play(course_of(episode, load.outcomes, before, after, wealth), load.outcomes, ruled, load.punctuality)
    finally:
        await client.close()


async def targets_of(client: HttpClient, urls: Sequence[str]) -> list[Target]:
    """Where users ask, and for which model: for none where nodes serve different ones, since any node may execute."""
    models = [await model_of(client, url) for url in urls]
    model = models[0] if len(set(models)) == 1 else None
    return [Target(url, model) for url in urls]


async def model_of(client: HttpClient, url: str) -> str:
    """The name of the model that a node serves."""
    with await client.request("GET", f"{url}/v1/models", first_byte_s=10.0) as reply:
        body = await reply.body(1 << 20)
        if reply.status != 200:
            raise FleetError(f"{url}/v1/models: status must be 200, got {reply.status}: {body[:200].decode('utf-8', 'replace')}")
    return str(json.loads(body)["data"][0]["id"])


def course_of(
    episode: Episode, outcomes: Sequence[Outcome], before: Sequence[State], after: Sequence[State], wealth: Mapping[str, float]
) -> Course:
    """Write a live play down as the simulator does its own; requests that were not sent in time are unfinished.

    before   states of the nodes when the play began
    after    when it ended
    wealth   credits by node id, as the ledger had them in the end
    """
    nobody = Outcome(UNFINISHED, math.inf, math.inf, -1, "", 0, 0.0, "")
    fates = [*outcomes, *[nobody] * (len(episode.demand) - len(outcomes))]
    index = {state.id: i for i, state in enumerate(after)}
    executors = [_executor(index, ask, fate) for ask, fate in zip(episode.demand, fates, strict=True)]
    ends = ([fate.latency_s for fate in fates], [fate.ttft_s for fate in fates], [fate.status for fate in fates])
    levels = np.sum([state.levels(then.actions) for then, state in zip(before, after, strict=True)], axis=0)
    actions = levels if levels.any() else None
    counters = {
        name: [state.counters[name] - then.counters[name] for then, state in zip(before, after, strict=True)]
        for name in after[0].counters
    }
    return Course(rows(episode.demand, executors, *ends), np.array([wealth[state.id] for state in after]), actions, counters)


def _executor(index: dict[str, int], ask: Ask, fate: Outcome) -> int:
    """Who answered; the origin for a request that nobody has answered, as in the simulator."""
    return index.get(fate.executor, -1) if fate.executor else ask.provider


def report(stage: Stage, episode: Episode, found: Sequence[Comparison], plays: dict[str, list[Play]]) -> dict[str, Any]:
    """All of it as plain values."""
    versions = {name: metadata.version(name) for name in ("wwwserve", "numpy", "uvloop")}
    return {
        "format": FORMAT,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": {"machine": platform.machine(), "system": platform.platform(), "python": platform.python_version(), **versions},
        "source": episode.source,
        "stage": stage._asdict(),
        "scenario": episode.scenario,
        "seed": episode.seed,
        "horizon_s": episode.horizon_s,
        "requests": len(episode.demand),
        "verdict": "missed" if any(comparison.missed for comparison in found) else "within",
        "bounds": [bound._asdict() for bound in BOUNDS],
        "policies": {comparison.policy: _policy(comparison, plays[comparison.policy]) for comparison in found},
    }


def _policy(comparison: Comparison, plays: Sequence[Play]) -> dict[str, Any]:
    lines = [{key: _plain(value) for key, value in line._asdict().items()} for line in comparison.lines]
    return {
        "load": comparison.load,
        "replays": comparison.replays,
        "missed": comparison.missed,
        "lines": lines,
        "plays": [_one_play(play) for play in plays],
    }


def _one_play(play: Play) -> dict[str, Any]:
    fates = [{key: _plain(value) for key, value in fate._asdict().items()} for fate in play.outcomes]
    return {
        "punctuality": play.punctuality._asdict(),
        "ruled": play.ruled,
        "wealth": play.course.wealth.tolist(),
        "actions": None if play.course.actions is None else play.course.actions.tolist(),
        "counters": dict(play.course.counters),
        "executor": play.course.rows["executor"].tolist(),
        "outcomes": {key: [fate[key] for fate in fates] for key in Outcome._fields},
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it: null where there is no number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
