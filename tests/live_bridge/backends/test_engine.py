"""The emulated engine's clockwork: what the rules say happens, when they say it, and is told at once."""

import asyncio
import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from live_bridge.backends.engine import GAP_S, Engine, Size, Ticket
from live_bridge.clock import Clock
from live_bridge.config import profile_named
from market.profile import Profile
from tests.live_bridge.backends.virtual import run
from tests.market.test_decoding import judged
from tests.market.workload import Workload, draw, sizes

CLOSE = 1e-9
TICK_S = 0.001
"""What a loop's timers count in, on the wall."""


def profile_of(values: dict[str, float]) -> Profile:
    return Profile(**values, kind="derived", error=0.0, source="a test")


class Played(NamedTuple):
    """What an engine did with a workload; all times in market s."""

    load: Workload
    leaves_s: list[float]
    tickets: list[Ticket]
    told_s: list[float]
    tokens: list[list[tuple[float, int]]]  # of each job: when so many were out
    engine: Engine


async def play(load: Workload, leaves_s: list[float], speed: float, *, watched: bool) -> Played:
    """Hand in a workload by a clock of this speed; request i is dropped at leaves_s[i] unless it has ended."""
    loop = asyncio.get_running_loop()
    clock = Clock(speed, loop.time)
    engine = Engine(profile_of(load.profile), clock)
    at_s, told_s, gone_s = [0.0] * len(load.prompts), [math.inf] * len(load.prompts), list(leaves_s)
    tickets: list[Ticket] = [None] * len(load.prompts)  # type: ignore[list-item]
    tokens: list[list[tuple[float, int]]] = [[] for _ in load.prompts]

    async def one(i: int) -> None:
        await clock.sleep(load.arrivals_s[i] - clock.now())
        at_s[i] = clock.now()
        ticket = tickets[i] = engine.submit([Size(load.prompts[i], load.outputs[i], load.forecasts[i])], watched)
        try:
            async with asyncio.timeout(clock.wall_s(max(leaves_s[i] - at_s[i], 0.0))):
                while ticket.left:
                    await ticket.change()
                    tokens[i].append((clock.now(), ticket.jobs[0].visible))
            told_s[i] = clock.now()
        except TimeoutError:
            gone_s[i] = clock.now()
        engine.abort(ticket)

    await asyncio.gather(*(one(i) for i in range(len(load.prompts))))
    await clock.sleep(1.0)  # an iteration under way is not cut short
    engine.close()
    return Played(load._replace(arrivals_s=at_s), gone_s, tickets, told_s, tokens, engine)


def assert_as_judged(played: Played, speed: float, late_s: float) -> None:
    """Compare every end with a scheduler written token by token, fed with the arrivals as they came."""
    h_s = played.load.profile["h_s"]
    shifted = played.load._replace(arrivals_s=[at + h_s for at in played.load.arrivals_s])
    leaves_s = np.maximum(played.leaves_s, shifted.arrivals_s).tolist()  # who leaves before entering is never seen
    for job, ticket, told_s in zip(judged(shifted, leaves_s), played.tickets, played.told_s, strict=True):
        mine = ticket.jobs[0]
        if told_s == math.inf:
            assert mine.finish_s == math.inf
            continue
        assert mine.finish_s == pytest.approx(job.finish_s, rel=CLOSE)
        assert mine.first_token_s == pytest.approx(job.first_token_s, rel=CLOSE)
        assert mine.preemptions == job.preemptions
        assert -1e-6 <= told_s - mine.finish_s <= (2 * TICK_S + 2 * late_s) * speed


def assert_idle(engine: Engine) -> None:
    load = engine.load()
    assert (load.running, load.waiting, load.usage) == (0, 0, 0.0)
    assert not engine._jobs and not engine._watched
    assert sorted(engine._free) == list(range(len(engine._requests)))


@st.composite
def workloads(draw_: st.DrawFn) -> Workload:
    values = sizes(draw_(st.integers(8, 200)), draw_(st.integers(1, 12)), draw_(st.sampled_from([32, 256, 2048])))
    gap_s = draw_(st.sampled_from([0.002, 0.05, 0.5]))
    return draw(values, draw_(st.integers(0, 2**32)), draw_(st.integers(1, 25)), gap_s, draw_(st.sampled_from([5, 60])))


@settings(max_examples=60, deadline=None)
@given(workloads(), st.sampled_from([1.0, 20.0]), st.sampled_from([0.0, 0.03]), st.booleans())
def test_ends_are_those_of_the_rules_however_late_the_timers(load: Workload, speed: float, late_s: float, watched: bool) -> None:
    played = run(play(load, [math.inf] * len(load.prompts), speed, watched=watched), late_s)
    assert_as_judged(played, speed, late_s)
    assert_idle(played.engine)
    totals = played.engine.totals
    assert (totals.finished, totals.aborted) == (len(load.prompts), 0)
    assert (totals.prompt, totals.generated) == (sum(load.prompts), sum(load.outputs))
    assert totals.latency_s == pytest.approx(
        sum(ticket.jobs[0].finish_s - at for ticket, at in zip(played.tickets, played.load.arrivals_s, strict=True))
    )


@settings(max_examples=60, deadline=None)
@given(workloads(), st.integers(0, 2**32), st.booleans())
def test_who_leaves_makes_room_and_leaves_nothing_behind(load: Workload, seed: int, watched: bool) -> None:
    patience = np.random.default_rng(seed).exponential(0.5, len(load.prompts))
    played = run(play(load, (np.array(load.arrivals_s) + patience).tolist(), 1.0, watched=watched))
    assert_as_judged(played, 1.0, 0.0)
    assert_idle(played.engine)
    assert played.engine.totals.finished + played.engine.totals.aborted == len(load.prompts)


@settings(max_examples=40, deadline=None)
@given(workloads(), st.sampled_from([1.0, 20.0]))
def test_tokens_come_one_after_another_and_none_is_kept_back(load: Workload, speed: float) -> None:
    played = run(play(load, [math.inf] * len(load.prompts), speed, watched=True))
    for ticket, told in zip(played.tickets, played.tokens, strict=True):
        job = ticket.jobs[0]
        counts = [count for _, count in told]
        assert counts == sorted(counts)
        assert counts[-1] == job.size.output
        assert told[0][0] - job.first_token_s <= (2 * TICK_S + GAP_S) * speed
        assert told[0][0] >= job.first_token_s - 1e-6


def alone(output: int, watched: bool, speed: float = 1.0) -> tuple[list[float], Profile]:
    """When the tokens of a lone request are told (market s after it came)."""
    profile = profile_named("a100_qwen3_8b")
    load = Workload({name: getattr(profile, name) for name in sizes(1, 1, 1)}, [0.0], [100], [output], [output])
    played = run(play(load, [math.inf], speed, watched=watched))
    return [at for at, _ in played.tokens[0]], profile


def test_each_token_of_a_lone_stream_is_told_when_it_is_due() -> None:
    told, profile = alone(20, watched=True)
    step_s = profile.a_s + profile.c_s + profile.d_s * 110
    assert len(told) == 20
    assert np.diff(told) == pytest.approx(np.full(19, step_s), abs=2 * TICK_S)


def test_tokens_due_together_on_the_wall_are_told_together() -> None:
    told, _ = alone(2000, watched=True, speed=100.0)
    wall_s = (told[-1] - told[0]) / 100.0
    assert wall_s / len(told) >= 0.95 * GAP_S
    assert len(told) < 400


def test_a_request_that_is_not_watched_wakes_nobody_before_its_end() -> None:
    told, _ = alone(500, watched=False)
    assert len(told) == 1


def test_the_choices_of_one_request_run_side_by_side() -> None:
    async def scenario() -> None:
        clock = Clock(1.0, asyncio.get_running_loop().time)
        engine = Engine(profile_named("a100_qwen3_8b"), clock)
        ticket = engine.submit([Size(100, 10, 10), Size(100, 30, 30), Size(100, 20, 20)], watched=False)
        ends = []
        while ticket.left:
            await ticket.change()
            ends.append([job.finish_s < math.inf for job in ticket.jobs])
        assert ends == [[True, False, False], [True, False, True], [True, True, True]]
        assert len({job.first_token_s for job in ticket.jobs}) == 1
        engine.close()

    run(scenario())


def test_load_counts_what_has_come_and_not_begun() -> None:
    async def scenario() -> None:
        clock = Clock(1.0, asyncio.get_running_loop().time)
        values = sizes(100, 2, 256) | {"h_s": 0.5}
        engine = Engine(profile_of(values), clock)
        tickets = [engine.submit([Size(160, 400, 400)], watched=False) for _ in range(3)]
        assert engine.load()[:3] == (0, 3, 0.0)
        await clock.sleep(0.6)
        load = engine.load()
        assert (load.running, load.waiting, load.kv_blocks, load.source) == (2, 1, 100, "metrics")
        assert 0.2 <= load.usage <= 0.3
        for ticket in tickets:
            engine.abort(ticket)
        await clock.sleep(0.1)
        assert_idle(engine)
        assert engine.totals.aborted == 3
        engine.close()

    run(scenario())


def test_aborting_twice_or_after_the_end_does_nothing() -> None:
    async def scenario() -> None:
        engine = Engine(profile_named("a100_qwen3_8b"), Clock(1.0, asyncio.get_running_loop().time))
        done = engine.submit([Size(10, 1, 1)], watched=False)
        while done.left:
            await done.change()
        engine.abort(done)
        left = engine.submit([Size(10, 9, 9)], watched=False)
        engine.abort(left)
        engine.abort(left)
        assert (engine.totals.finished, engine.totals.aborted) == (1, 1)
        assert_idle(engine)
        engine.close()

    run(scenario())


def test_what_cannot_fit_is_refused_with_the_limit() -> None:
    async def scenario() -> None:
        engine = Engine(profile_of(sizes(10, 4, 256)), Clock(1.0, asyncio.get_running_loop().time))
        with pytest.raises(ValueError, match="fit in 160 tokens"):
            engine.submit([Size(100, 61, 61)], watched=False)
        with pytest.raises(ValueError, match="must be > 0"):
            engine.submit([Size(0, 1, 1)], watched=False)
        assert_idle(engine)

    run(scenario())
