"""The same users before real engines under one policy after another: what became of their requests.

A play is one of `live_bridge check`: real nodes, sockets and orders, and the demand of one episode of the simulator. Engines go on
from play to play. The policies of one load and seed follow each other at once, in an order that changes, so that a drift of the
host meets all alike.
"""

import argparse
import itertools
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.metrics import measure
from benchmarks.proof.engines import pace_ms, until_idle
from benchmarks.proof.kept import Kept
from live_bridge import stage as staging
from live_bridge.check import LATE_MS, Play, play
from live_bridge.episode import FAILED, Episode, rehearse
from live_bridge.http.client import Client
from live_bridge.stage import Stage

SHOWN = (
    "slo_attainment",
    "latency_s_mean",
    "latency_s_p50",
    "latency_s_p99",
    "ttft_s_mean",
    "delegated_share",
    "failed_share",
    "unfinished_share",
    "requests",
)
"""Metrics of agents.metrics that are kept of a play."""
FORETOLD = ("slo_attainment", "latency_s_mean", "delegated_share")
"""Those that are kept of the simulator's replays of it."""


class Plan(NamedTuple):
    """What all plays of a series have in common. Times are market seconds."""

    backend: str  # vllm | emulated
    speed: float
    policies: tuple[str, ...]  # as --policies of `live_bridge check`
    loads: tuple[float, ...]  # demand at the busy node, as a share of its capacity
    quiet: float  # the same at the other one
    seeds: tuple[int, ...]
    arrivals_s: float
    horizon_s: float
    slo_s: float
    max_tokens: int
    replays: int  # plays in the simulator
    profiles: tuple[str, ...]


class Turn(NamedTuple):
    """One play of a series."""

    load: float
    seed: int
    policy: str

    @property
    def name(self) -> str:
        """Name of its record."""
        return f"load-{self.load:g}_seed-{self.seed}_{Path(self.policy).name}"


def turns(plan: Plan) -> list[Turn]:
    """List all plays in the order in which they are played: policies side by side, and each equally often first."""
    orders = itertools.cycle(itertools.permutations(plan.policies))
    out = []
    for number, seed in enumerate(plan.seeds):
        first = number % len(plan.loads)
        for load in (*plan.loads[first:], *plan.loads[:first]):
            out += [Turn(load, seed, policy) for policy in next(orders)]
    return out


def words(plan: Plan, load: float, seed: int) -> list[str]:
    """Say an episode in words of `live_bridge check`."""
    until = plan.arrivals_s
    return [
        *("--scenario", "tiny", "--nodes", "2", "--backend", plan.backend, "--speed", f"{plan.speed:g}", "--seed", str(seed)),
        *(("--profiles", ",".join(plan.profiles)) if plan.profiles else ()),
        "env.providers.0.count=1",
        f"env.horizon_s={plan.horizon_s:g}",
        f"env.arrivals_until_s={until:g}",
        f"env.kinds.reasoning.max_tokens={plan.max_tokens}",
        f"env.kinds.reasoning.slo_s={plan.slo_s:g}",
        f"env.providers.0.demand.schedule=[[{until:g},{load:g},{load:g}]]",
        f"env.providers.1.demand.schedule=[[{until:g},{plan.quiet:g},{plan.quiet:g}]]",
    ]


def stage_of(plan: Plan, load: float, seed: int, urls: Sequence[str]) -> Stage:
    """Read these words as `check` does; `urls` are those of the engines, none for emulated ones.

    errors   SettingsError
    """
    parser = argparse.ArgumentParser()
    staging.add_arguments(parser)
    given = ["--urls", ",".join(urls)] if urls else []
    return staging.read(parser.parse_args([*given, *words(plan, load, seed)]))


def rehearsed(plan: Plan, load: float, seed: int) -> Episode:
    """Let the simulator play one episode under every policy."""
    stage = stage_of(plan, load, seed, ["http://127.0.0.1:1"] * 2 if plan.backend != "emulated" else [])
    return rehearse([*stage.scenario, f"policies=[{','.join(plan.policies)}]", f"replays={plan.replays}"])


Player = Callable[[Stage, Episode, str, Path], Any]
"""Plays an episode under a policy: an awaitable of a Play."""


async def play_all(
    plan: Plan,
    urls: Sequence[str],
    episodes: Mapping[tuple[float, int], Episode],
    kept: Kept,
    tell: Callable[[Turn, Mapping[str, Any]], None],
    player: Player = play,
) -> list[dict[str, Any]]:
    """Play what is not kept yet, and keep it; returns all records in the order of play.

    urls      of the engines; none where they are emulated
    episodes  by load and seed
    tell      told of each play that is done
    player    who plays
    errors    FleetError, EpisodeError, ProbeError
    """
    client, found = Client(), []
    try:
        for turn in turns(plan):
            record = kept.find(turn.name)
            if record is None:
                record = await _one(plan, turn, urls, episodes[turn.load, turn.seed], client, player)
                kept.put(turn.name, record)
                tell(turn, record)
            found.append(record)
    finally:
        await client.close()
    return found


async def _one(plan: Plan, turn: Turn, urls: Sequence[str], episode: Episode, client: Client, player: Player) -> dict[str, Any]:
    """Wait until the engines have nothing to do, take their pace, and play."""
    before = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "load_average": round(os.getloadavg()[0], 2)}
    if urls:
        await until_idle(client, urls)
        before["step_ms"] = await pace_ms(client, urls)
    stage = stage_of(plan, turn.load, turn.seed, urls)
    with tempfile.TemporaryDirectory(prefix="proof_") as folder:
        played = await player(stage, episode, turn.policy, Path(folder) / "play")
    return record_of(turn, episode, played) | before


def record_of(turn: Turn, episode: Episode, played: Play) -> dict[str, Any]:
    """Write a play down as plain values."""
    name = Path(turn.policy).name  # as agents.policy calls it
    live = measure(played.course.rows, horizon_s=episode.horizon_s)
    simulated = [measure(course.rows, horizon_s=episode.horizon_s) for course in episode.played[name]]
    minted = len(episode.places) * (episode.terms["initial_credit"] + episode.terms["initial_stake"])
    actions = played.course.actions
    return {
        "load": turn.load,
        "seed": turn.seed,
        "policy": name,
        "live": {key: round(live[key], 4) for key in SHOWN},
        "simulated": {key: round(float(np.mean([one[key] for one in simulated])), 4) for key in FORETOLD},
        "failures": sorted({one.why[:120] for one in played.outcomes if one.status == FAILED}),
        "money_difference": round(float(played.course.wealth.sum()) - minted, 6),
        "decisions": played.ruled + (0 if actions is None else int(actions[0].sum())),
        "decisions_by_rules": played.ruled,
        "offers_accepted": sum(played.course.counters["offers_accepted"]),
        "late_ms_p99": round(played.punctuality.p99_ms, 1),
        "too_busy": played.punctuality.p99_ms > LATE_MS,
    }
