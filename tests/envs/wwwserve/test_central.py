"""The central schedulers choose as a plain loop over what is true at the moment, and never one who is offline."""

import random
from dataclasses import replace
from typing import Any

import pytest

from envs.wwwserve.central import schedule
from envs.wwwserve.pool import delay_s, take_slot
from envs.wwwserve.serve import put
from envs.wwwserve.state import CENTRAL, PAPER_CENTRAL, REMOTE, USER
from market import provider, serving
from tests.envs.stage import PROFILES, Tables, market, who
from tests.envs.wwwserve.play import Batch
from tests.market.rows import TERMS

PROVIDERS = 4
SEEDS = range(6)


def busy(dispatch: str, luck: random.Random, target: float = 0.5) -> Any:
    """A world whose engines have more and less to do, and one of whose providers may be offline."""
    scenario = market(*(who() for _ in range(PROVIDERS)))
    terms = replace(TERMS, central_usage_target=target)
    world = Batch(scenario, terms, PROFILES, networks=1, seed=1, dispatch=dispatch, autoreset=False).world
    for q in range(PROVIDERS):
        for _ in range(luck.randrange(8)):
            put(world, 0, q, job(world, q, luck), 0.0, 1)
    if luck.random() < 0.5:
        Tables(world).node[1 + luck.randrange(PROVIDERS - 1)].online = 0
    return world


def job(world: Any, origin: int, luck: random.Random) -> int:
    """A user's request of some size."""
    r = take_slot(world, 0, 0)
    request = Tables(world).request[r]
    request.kind, request.origin, request.executor, request.deadline_s = USER, origin, origin, 1e6
    request.prompt_tokens, request.output_tokens = luck.randrange(10, 400), luck.randrange(10, 400)
    request.forecast_tokens = request.output_tokens
    return r


def online(world: Any) -> list[int]:
    return [q for q in range(PROVIDERS) if Tables(world).node[q].online == 1]


def placed(world: Any, r: int) -> int:
    """Who has got it: the origin at once, another by a message."""
    request = Tables(world).request[r]
    return int(request.executor) if request.state == REMOTE else int(request.origin)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_aware_scheduler_sends_a_request_where_it_is_forecast_to_be_done_first(seed: int) -> None:
    luck = random.Random(seed)
    world = busy("central", luck)
    assert Tables(world).setting[0].dispatch == CENTRAL
    r, now = job(world, 0, luck), 1.0
    tables = Tables(world)
    done = {}
    for q in online(world):
        serving.advance(world.engine[q], world.profile[q], world.request, now)
        sizes = tables.request[r].prompt_tokens, tables.request[r].forecast_tokens
        here = provider.forecast_here(world.node[q], world.engine[q], world.profile[q], *sizes)
        done[q] = 2.0 * delay_s(world, 0, 0, q) + here
    schedule(world, 0, 0, r, now)
    assert done[placed(world, r)] == min(done.values())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("target", [0.0, 0.02, 1.0])
def test_the_papers_scheduler_keeps_work_at_home_below_the_target_and_else_takes_the_least_used(seed: int, target: float) -> None:
    luck = random.Random(seed)
    world = busy("paper_central", luck, target)
    assert Tables(world).setting[0].dispatch == PAPER_CENTRAL
    r, now, load = job(world, 0, luck), 1.0, {}
    for q in online(world):
        serving.advance(world.engine[q], world.profile[q], world.request, now)
        engine, node = Tables(world).engine[q], Tables(world).node[q]
        load[q] = serving.usage(world.engine[q], world.profile[q]), int(engine.running + engine.waiting + node.queued)
    schedule(world, 0, 0, r, now)
    chosen = placed(world, r)
    if load[0][0] < target:
        assert chosen == 0
    else:
        assert load[chosen] == min(load.values())


def test_work_that_is_sent_away_is_counted_on_both_sides() -> None:
    luck = random.Random(0)
    scenario = market(*(who() for _ in range(PROVIDERS)))
    world = Batch(scenario, TERMS, PROFILES, networks=1, seed=1, dispatch="central", autoreset=False).world
    for _ in range(12):
        put(world, 0, 0, job(world, 0, luck), 0.0, 1)
    r = job(world, 0, luck)
    schedule(world, 0, 0, r, 1.0)
    tables = Tables(world)
    executor = placed(world, r)
    assert executor != 0 and tables.request[r].state == REMOTE
    assert tables.node[0].away == 1 and tables.node[executor].guests == 1
    assert tables.net[0].events == 1 and tables.event[0].time_s == pytest.approx(1.0 + delay_s(world, 0, 0, executor))


@pytest.mark.parametrize(("way_s", "stays"), [(0.001, False), (500.0, True)])
def test_the_aware_scheduler_counts_the_way_there_and_back(way_s: float, stays: bool) -> None:
    delay = {"lab": {"lab": 0.0005, "far": way_s}, "far": {"lab": way_s, "far": 0.0005}}
    scenario = market(who(), replace(who(), regions=["far"]), delay_s=delay)
    world = Batch(scenario, TERMS, PROFILES, networks=1, seed=1, dispatch="central", autoreset=False).world
    luck = random.Random(0)
    for _ in range(12):
        put(world, 0, 0, job(world, 0, luck), 0.0, 1)
    r = job(world, 0, luck)
    schedule(world, 0, 0, r, 1.0)
    assert (placed(world, r) == 0) == stays
