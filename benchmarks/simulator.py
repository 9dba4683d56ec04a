"""Speed and memory of the batched environment: `python -m benchmarks.simulator [--quick] [--json PATH]`.

Everything is on: gossip, duels, churn. The scenario is the default one, once as it is shipped and once with a decision at every
tick: an agent-step of the first lets five times as much of the market pass. Only `Batch.step` is timed. The peer is PettingZoo's
own `simple_spread_v3` (package mpe2), stepped in the same run.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.measure import Meter, Rate, Spread, child, command_line, in_turn, ratios, report, resident_bytes, show, spread
from envs.wwwserve import load
from envs.wwwserve.batch import Batch
from envs.wwwserve.scenario import Scenario
from envs.wwwserve.spaces import idle_where_masked
from market.rule import COMPILED

BEHAVIOURS = {"idle": (0, 0, 0), "typical": (3, 2, 2), "busy": (4, 4, 3)}
"""Levels of accept, forward, commit that everybody takes, where the mask allows them."""
NETWORKS = 64
SIZES = (16, 64, 256)
CROWD = 64
"""Providers of the large market; it has an eighth of the networks, so that the agents are as many."""
MEMORY_NETWORKS = 1024
PEERS = (3, 8)
"""Agents of PettingZoo's simple_spread: as it comes, and as many as ours."""
CLOCKS = ("by the clock", "of CPU time")


def default(*, every_tick: bool) -> Scenario:
    """Read the default scenario, with a decision at every tick or as it is."""
    scenario = load.scenario("wwwserve")
    return replace(scenario, control_s=scenario.tick_s) if every_tick else scenario


def crowd(scenario: Scenario) -> Scenario:
    """Make the same market of 64 providers, with room for as many requests and duels a provider."""
    more = CROWD // scenario.population
    groups = [replace(group, count=group.count * more) for group in scenario.providers]
    return replace(scenario, providers=groups, requests_max=scenario.requests_max * more, duels_max=scenario.duels_max * more)


def batch_of(scenario: Scenario, networks: int, threads: int = 1) -> Batch:
    """Make a batch whose networks stand at all hours of the day, as in training."""
    return Batch(scenario, load.terms(), load.profiles(), networks=networks, seed=1, stagger=True, threads=threads)


def play(batch: Batch, levels: Sequence[int], agent_steps: int) -> Rate:
    """Let everybody take the same levels for about `agent_steps`; returns agent-steps/s inside `Batch.step`."""
    everyone = batch.networks * batch.providers
    steps = max(1, agent_steps // everyone)
    wanted = np.tile(np.array(levels, np.int64), (everyone, 1))
    masks = batch.masks.reshape(everyone, -1)
    meter = Meter()
    for _ in range(steps):
        actions = idle_where_masked(wanted, masks)
        with meter:
            batch.step(actions)
    return Rate(steps * everyone / meter.wall_s, steps * everyone / meter.cpu_s)


def runner(scenario: Scenario, networks: int, behaviour: str, agent_steps: int, threads: int = 1) -> Callable[[], Rate]:
    """Prepare one measurement; its first call plays an episode first, so that queues are as long as they get."""
    batch = batch_of(scenario, networks, threads)
    play(batch, BEHAVIOURS[behaviour], batch.networks * batch.providers * batch.steps_per_episode)
    return lambda: play(batch, BEHAVIOURS[behaviour], agent_steps)


def walls(rates: Sequence[Rate]) -> list[float]:
    """Rates by the wall clock."""
    return [rate.wall for rate in rates]


def cpus(rates: Sequence[Rate]) -> list[float]:
    """Rates a second of CPU time."""
    return [rate.cpu for rate in rates]


def summary(rates: Sequence[Rate]) -> dict[str, Spread]:
    """Sum up repeats by both clocks."""
    return {"wall": spread(walls(rates)), "cpu": spread(cpus(rates))}


def behaviours(repeats: int, agent_steps: int) -> dict[str, Any]:
    """Measure the three behaviours, with a decision every tick and as shipped, and the batch's size."""
    figures: dict[str, Any] = {}
    rows = []
    for title, every_tick in (("every tick", True), ("as shipped", False)):
        scenario = default(every_tick=every_tick)
        names = [(behaviour, NETWORKS) for behaviour in BEHAVIOURS] + [("typical", size) for size in SIZES if size != NETWORKS]
        runs = {f"{name}, {size} networks": runner(scenario, size, name, agent_steps) for name, size in names}
        found = {name: summary(rates) for name, rates in in_turn(runs, repeats).items()}
        figures[title] = found
        ticks = round(scenario.control_s / scenario.tick_s)
        rows += [
            (
                f"{title}: {name}",
                both["wall"].over(1e6).text(".2f"),
                both["cpu"].over(1e6).text(".2f"),
                f"{both['cpu'].median * ticks / 1e6:.2f}",
            )
            for name, both in found.items()
        ]
    show("Batch.step, one core, millions of agent-steps a second", ("case", *CLOCKS, "agent-ticks"), rows)
    return figures


def pairs(repeats: int, agent_steps: int) -> dict[str, Any]:
    """Measure what is best said as a ratio: 64 providers against 8, two threads against one."""
    scenario = default(every_tick=True)
    runs = {
        "8 providers": runner(scenario, NETWORKS, "typical", agent_steps),
        "64 providers": runner(crowd(scenario), NETWORKS * scenario.population // CROWD, "typical", agent_steps),
        "2 threads": runner(scenario, NETWORKS, "typical", agent_steps, threads=2),
    }
    found = in_turn(runs, repeats)
    cost = ratios(cpus(found["8 providers"]), cpus(found["64 providers"]))
    gain = ratios(walls(found["2 threads"]), walls(found["8 providers"]))
    show(
        "Ratios in the same run",
        ("what", "ratio"),
        [("cost of an agent-step, 64 providers over 8", cost.text(".2f")), ("speed, 2 threads over 1", gain.text(".2f"))],
    )
    return {"64 over 8 providers, cost": cost, "2 over 1 threads, speed": gain}


def market_view(steps: int) -> Rate:
    """Step the ParallelEnv; returns agent-steps/s."""
    from envs.wwwserve.env import parallel_env

    env = parallel_env(default(every_tick=True), masked="idle")
    env.reset(seed=0)
    actions = {agent: np.array(BEHAVIOURS["typical"]) for agent in env.agents}
    return _rate(lambda: env.step(actions) if env.agents else env.reset(), steps, len(env.possible_agents))


def turn_view(steps: int) -> Rate:
    """Step the AEC environment, looking before every turn; returns agent-steps/s."""
    from envs.wwwserve.env import env as turns

    env = turns(default(every_tick=True), masked="idle")
    env.reset(seed=0)
    action = np.array(BEHAVIOURS["typical"])

    def turn() -> None:
        _, _, _, over, _ = env.last()
        if over:
            env.reset()
        env.step(action)

    return _rate(turn, steps * len(env.possible_agents), 1)


def spread_view(agents: int) -> Callable[[int], Rate]:
    """Prepare PettingZoo's simple_spread with that many agents."""
    from mpe2 import simple_spread_v3

    def measure(steps: int) -> Rate:
        env = simple_spread_v3.parallel_env(N=agents, max_cycles=1_000)
        env.reset(seed=0)
        actions = dict.fromkeys(env.agents, 1)
        return _rate(lambda: env.step(actions) if env.agents else env.reset(), steps, agents)

    return measure


def _rate(step: Callable[[], object], steps: int, agents: int) -> Rate:
    step()
    with Meter() as meter:
        for _ in range(steps):
            step()
    return Rate(steps * agents / meter.wall_s, steps * agents / meter.cpu_s)


def views(repeats: int, steps: int) -> dict[str, Any]:
    """Measure PettingZoo's interfaces beside PettingZoo's own environment."""
    peers = {f"simple_spread_v3, {agents} agents": spread_view(agents) for agents in PEERS}
    scenario = default(every_tick=True)
    runs: dict[str, Callable[[], Rate]] = {
        "Batch, 64 networks": runner(scenario, NETWORKS, "typical", 50 * steps),
        "ParallelEnv": lambda: market_view(steps),
        "AEC": lambda: turn_view(steps),
        **{name: partial(peer, max(1, steps // 10)) for name, peer in peers.items()},
    }
    found = in_turn(runs, repeats)
    names = list(peers)
    over = {name: [ratios(cpus(rates), cpus(found[peer])) for peer in names] for name, rates in found.items()}
    rows = [
        (
            name,
            both["wall"].over(1e3).text(",.1f"),
            both["cpu"].over(1e3).text(",.1f"),
            *(f"{ratio.median:,.1f}" for ratio in over[name]),
        )
        for name, both in ((name, summary(rates)) for name, rates in found.items())
    ]
    title = "Interfaces, a decision every tick, thousands of agent-steps a second, and over simple_spread_v3"
    show(title, ("interface", *CLOCKS, *(f"over {agents}" for agents in PEERS)), rows)
    return {name: {**summary(rates), "over": dict(zip(names, over[name], strict=True))} for name, rates in found.items()}


def elsewhere(repeats: int) -> dict[str, Any]:
    """Measure what needs a fresh process: plain rules, memory, the time to a first step."""
    part = [sys.executable, "-m", "benchmarks.simulator", "--part"]
    plain = json.loads(child([*part, "rate"], RULES="python").out)
    compiled = json.loads(child([*part, "rate"], RULES="compiled").out)
    memory = [json.loads(child([*part, "memory"], RULES="compiled").out)["bytes"] / 1e6 for _ in range(min(repeats, 3))]
    with tempfile.TemporaryDirectory() as empty:
        cold = child([*part, "first"], RULES="compiled", NUMBA_CACHE_DIR=empty)
        warm = [child([*part, "first"], RULES="compiled", NUMBA_CACHE_DIR=empty) for _ in range(min(repeats, 3))]
    warm_s = spread([one.wall_s for one in warm])
    rows = [
        ("plain Python rules, agent-steps/s", f"{plain['cpu']:,.0f}  (compiled: {compiled['cpu'] / plain['cpu']:,.0f} x)"),
        (f"memory of {MEMORY_NETWORKS:,} networks of 8, MB resident", spread(memory).text()),
        ("process to first step, nothing compiled yet, s", f"{cold.wall_s:.1f}  (CPU {cold.cpu_s:.1f})"),
        (
            "process to first step, compiled before, s",
            f"{warm_s.text('.2f')}  (CPU {statistics.median(c.cpu_s for c in warm):.2f})",
        ),
    ]
    show("In fresh processes", ("what", "found"), rows)
    return {
        "plain": plain["cpu"],
        "compiled over plain": compiled["cpu"] / plain["cpu"],
        "memory_mb": spread(memory),
        "cold": {"wall_s": cold.wall_s, "cpu_s": cold.cpu_s},
        "warm": {"wall_s": warm_s, "cpu_s": spread([one.cpu_s for one in warm])},
    }


def part_of(name: str) -> dict[str, float]:
    """Do one part in this process, of which the caller wants nothing else."""
    scenario = default(every_tick=True)
    if name == "first":
        play(batch_of(scenario, 1), BEHAVIOURS["typical"], 1)
        return {}
    if name == "memory":
        play(batch_of(scenario, 1), BEHAVIOURS["typical"], 1)
        before = resident_bytes("VmRSS")
        batch = batch_of(scenario, MEMORY_NETWORKS)
        play(batch, BEHAVIOURS["busy"], 20 * batch.networks * batch.providers)
        return {"bytes": resident_bytes("VmRSS") - before}
    networks, agent_steps = (NETWORKS, 200_000) if COMPILED else (1, 2_000)
    return runner(scenario, networks, "typical", agent_steps)()._asdict()


def main() -> None:
    """Print the tables and one JSON line."""
    parser = command_line("simulator", __doc__, "fewer and shorter repeats")
    parser.add_argument("--part", choices=("first", "memory", "rate"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(part_of(arguments.part)))
        return
    if not COMPILED:
        raise SystemExit("benchmarks.simulator: needs compiled rules; unset RULES")
    repeats, agent_steps, steps = (3, 100_000, 500) if arguments.quick else (9, 400_000, 3_000)
    figures = {
        "behaviours": behaviours(repeats, agent_steps),
        "ratios": pairs(repeats, agent_steps),
        "views": views(repeats, steps),
        "elsewhere": elsewhere(repeats),
    }
    report("simulator", figures, arguments.json)


if __name__ == "__main__":
    main()
