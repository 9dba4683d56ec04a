"""`live_bridge up`: a whole market on this machine, with users that ask, until the time is over or Ctrl-C."""

import argparse
import asyncio
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from live_bridge import stage as staging
from live_bridge import tables
from live_bridge.check import WIDTH, targets_of
from live_bridge.clock import Clock
from live_bridge.episode import FAILED, FINISHED, Ask, Episode, rehearse
from live_bridge.fleet import Fleet, Member, on_signals
from live_bridge.http.client import Client
from live_bridge.http.message import HttpError
from live_bridge.load import Load, Outcome, repeated
from live_bridge.stage import Stage
from live_bridge.states import State, state_of
from settings import SettingsError, Slip

LOOK_S = 2.0
"""Time on the wall between two tables."""


class Show(NamedTuple):
    """A market that runs, and what is known of it."""

    episode: Episode
    members: list[Member]
    load: Load
    asks: list[Ask]  # sent, one for each outcome
    ids: dict[str, int]  # node id -> provider


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the words of the command line."""
    parser.add_argument(
        "--duration", type=float, default=0.0, metavar="S", help="seconds on the wall; 0 = until Ctrl-C (default: 0)"
    )
    parser.add_argument(
        "--policy", default="policies_trained/ppo_wwwserve", metavar="NAME", help="default: policies_trained/ppo_wwwserve"
    )
    parser.add_argument("--home", type=Path, metavar="FOLDER", help="keeps configs, logs and ledger (default: a temporary folder)")
    staging.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Put a market up; returns when it is down again. 1 when a node ended of itself."""
    stage = staging.read(args)
    policy, *more = staging.policies(args.policy)
    if more:
        raise SettingsError(Slip("command line", "--policy", f"must be one, got {1 + len(more)}"))
    if not args.duration >= 0.0:
        raise SettingsError(Slip("command line", "--duration", f"must be >= 0 s, got {args.duration:g}"))
    console = Console(width=None if Console().is_terminal else WIDTH)
    episode = rehearse([*stage.scenario, "policies=[]"])
    import uvloop

    with tempfile.TemporaryDirectory(prefix="live_bridge_") as folder:
        return uvloop.run(_up(stage, episode, policy, args.home or Path(folder), args.duration, console))


async def _up(stage: Stage, episode: Episode, policy: str, folder: Path, duration_s: float, console: Console) -> int:
    """Start nodes, let users ask, show, stop."""
    task = asyncio.current_task()
    assert task is not None
    members = staging.members(stage, episode, policy, folder)
    client = Client()
    over = asyncio.Event()
    on_signals(over.set, task.cancel)
    try:
        async with Fleet(client, ready_s=stage.ready_s, stop_s=staging.STOP_S) as fleet:
            starting = asyncio.create_task(_start(fleet, members))
            await _first_of(starting, over)
            if not starting.done():
                starting.cancel()
                return 130
            await starting
            show = await _open(stage, episode, members, client)
            console.print(f"{len(members)} nodes, policy {policy}, {stage.speed:g} times as fast as real; Ctrl-C ends it")
            console.print(f"live page: [bold]{members[0].url}/[/]   OpenAI API: {members[0].url}/v1", soft_wrap=True)
            await _watch(stage, show, fleet, client, duration_s, over, console)
            console.print(_nodes(show, await _states(client, members), fleet))
            console.print(summary(show))
            for line in tables.failures(policy, show.load.outcomes):
                console.print(line, markup=False)
            ended = [f"{member.name} has ended with status {status}" for member, status in fleet.ended()]
    except asyncio.CancelledError:
        return 130
    finally:
        await client.close()
    console.print("all nodes have stopped")
    for line in ended:
        console.print(f"[bold red]{line}[/]")
    return 1 if ended else 0


async def _start(fleet: Fleet, members: Sequence[Member]) -> None:
    """The first node founds the network that the others join."""
    await fleet.start(members[:1])
    await fleet.start(members[1:])


async def _first_of(task: asyncio.Task[None], over: asyncio.Event) -> None:
    waiting = asyncio.create_task(over.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def _open(stage: Stage, episode: Episode, members: list[Member], client: Client) -> Show:
    """Find out who is who, and let users come."""
    targets = await targets_of(client, [member.url for member in members])
    ids = {(await state_of(client, member.url)).id: i for i, member in enumerate(members)}
    return Show(episode, members, Load(targets, client, Clock(stage.speed)), [], ids)


async def _watch(
    stage: Stage, show: Show, fleet: Fleet, client: Client, duration_s: float, over: asyncio.Event, console: Console
) -> None:
    """Let users ask until the time is over or somebody says so, with a table now and then."""

    def asks() -> Iterator[Ask]:
        for ask in repeated(show.episode.demand, show.episode.arrivals_until_s):
            show.asks.append(ask)
            yield ask

    until_s = duration_s * stage.speed if duration_s > 0.0 else math.inf
    playing = asyncio.create_task(show.load.play(asks(), until_s))
    terminal = console.is_terminal
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while not (playing.done() or over.is_set()):
            await _pause(playing, over)
            table = Group(_nodes(show, await _states(client, show.members), fleet), Text(_line(show)))
            if terminal:
                live.update(table, refresh=True)
            else:
                console.print(_line(show))
    playing.cancel()
    with suppress(asyncio.CancelledError):
        await playing


async def _pause(playing: "asyncio.Task[list[Outcome]]", over: asyncio.Event) -> None:
    waiting = asyncio.create_task(over.wait())
    await asyncio.wait({playing, waiting}, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def _states(client: Client, members: Sequence[Member]) -> list[State | None]:
    """What each node says of itself; None for one that does not answer."""

    async def one(member: Member) -> State | None:
        try:
            return await state_of(client, member.url)
        except HttpError:  # it has crashed, and the table says so
            return None

    return list(await asyncio.gather(*(one(member) for member in members)))


def _line(show: Show) -> str:
    """All users in one line."""
    outcomes = show.load.outcomes
    done = [one for one in outcomes if one.status == FINISHED]
    failed = sum(one.status == FAILED for one in outcomes)
    mean = f", mean latency {np.mean([one.latency_s for one in done]):.1f} s" if done else ""
    return f"{len(outcomes)} asked, {len(done)} answered, {failed} failed, {_attained(show):.1%} within SLO{mean}"


def _attained(show: Show) -> float:
    """Share of answered and failed requests that came within their SLO."""
    ended = [(ask, one) for ask, one in zip(show.asks, show.load.outcomes, strict=False) if one.status in {FINISHED, FAILED}]
    return sum(one.latency_s <= ask.slo_s for ask, one in ended) / len(ended) if ended else math.nan


def _nodes(show: Show, states: Sequence[State | None], fleet: Fleet) -> Table:
    """One row a node."""
    table = Table(title="the market (guests: requests of others)", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("node", "engine"):
        table.add_column(name)
    for name in ("asked", "busy", "queue", "in SLO", "guests", "credit", "stake"):
        table.add_column(name, justify="right")
    ended = {member.name: status for member, status in fleet.ended()}
    for i, (member, state) in enumerate(zip(show.members, states, strict=True)):
        asked = str(sum(ask.provider == i for ask in show.asks[: len(show.load.outcomes)]))
        engine = show.episode.places[i].profile_name
        if state is None:
            gone = f"ended ({ended[member.name]})" if member.name in ended else "no answer"
            table.add_row(member.name, engine, asked, f"[bold red]{gone}[/]")
            continue
        due = sum(state.totals[name] for name in ("attained", "missed", "failed"))
        row = [str(state.totals["in_flight"]), str(state.totals["queued"])]
        row += [f"{state.totals['attained'] / due:.1%}" if due else "-", str(state.totals["executed_for_others"])]
        row += [f"{state.balances[name]:.1f}" for name in ("credit", "stake")]
        table.add_row(member.name, engine, asked, *row)
    return table


def _is_guest(show: Show, ask: Ask, outcome: Outcome) -> bool:
    return bool(outcome.executor) and show.ids.get(outcome.executor) != ask.provider


def summary(show: Show) -> Table:
    """What users got, from all nodes and from each."""
    table = Table(title="what users got (away: answered elsewhere)", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("users of")
    for name in ("asked", "done", "failed", "in SLO", "mean (s)", "p95 (s)", "TTFT (s)", "away"):
        table.add_column(name, justify="right")
    pairs = list(zip(show.asks, show.load.outcomes, strict=False))
    groups = [("all", pairs)] + [
        (member.name, [pair for pair in pairs if pair[0].provider == i]) for i, member in enumerate(show.members)
    ]
    for name, mine in groups:
        table.add_row(name, str(len(mine)), *_service(show, mine))
    return table


def _service(show: Show, mine: Sequence[tuple[Ask, Outcome]]) -> list[str]:
    """What some users got: answered, failed, and where anybody was answered, how soon and by whom."""
    done = [(ask, one) for ask, one in mine if one.status == FINISHED]
    failed = sum(one.status == FAILED for _, one in mine)
    counts = [str(len(done)), str(failed)]
    if not done:
        return counts + ["-"] * 5
    latencies = [one.latency_s for _, one in done]
    within = sum(one.latency_s <= ask.slo_s for ask, one in done) / (len(done) + failed)
    times = [f"{np.mean(latencies):.1f}", f"{np.percentile(latencies, 95):.1f}", f"{np.mean([one.ttft_s for _, one in done]):.2f}"]
    guests = sum(_is_guest(show, ask, one) for ask, one in mine) / len(mine)
    return [*counts, f"{within:.1%}", *times, f"{guests:.1%}"]
