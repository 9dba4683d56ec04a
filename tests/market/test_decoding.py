"""A request that is taken out of the engine, against a scheduler written token by token; the rest of decoding: test_serving.py."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market import serving
from market.decoding import abort
from market.rule import rule, to_array
from tests.market import oracle
from tests.market.workload import Workload, build, column, draw, sizes

CLOSE = 1e-9
EMPTY = ("running", "kv_tokens", "blocks_used", "due_tokens", "waiting", "waiting_prompt", "waiting_output")


@rule
def serve(engine, profile, requests, arrivals_s, leaves_s, taken):
    """Serve all requests, taking request i out at leaves_s[i]; taken[i]: whether it was still there."""
    left = 0
    for i in range(len(arrivals_s)):
        requests[i].order = -1
    while left < 2 * len(arrivals_s):
        now = math.inf
        what = 0
        for i in range(len(arrivals_s)):
            if requests[i].order == -1 and arrivals_s[i] < now:
                now = arrivals_s[i]
                what = i
            if requests[i].order != -1 and taken[i] == -1 and leaves_s[i] < now:
                now = leaves_s[i]
                what = i
        if now == math.inf:
            break
        serving.advance(engine[0], profile[0], requests, now)
        if requests[what].order == -1:
            requests[what].order = 0
            serving.enqueue(engine[0], requests, what, now)
        else:
            taken[what] = 1 if abort(engine[0], requests, what) else 0
        left += 1
    serving.advance(engine[0], profile[0], requests, serving.NEVER)


def judged(load: Workload, leaves_s: list[float]) -> list[oracle.Job]:
    """Serve a workload with the oracle, taking job i out between iterations, at the first that starts at or after leaves_s[i]."""
    jobs = [oracle.Job(*row) for row in zip(load.arrivals_s, load.prompts, load.outputs, strict=True)]
    engine = oracle.Oracle(SimpleNamespace(**load.profile))
    events = sorted([(at, 0, i) for i, at in enumerate(load.arrivals_s)] + [(at, 1, i) for i, at in enumerate(leaves_s)])
    while events or engine.waiting or engine.running:
        if not engine.waiting and not engine.running:
            engine.clock = max(engine.clock, events[0][0]) if events else engine.clock
        while events and events[0][0] <= engine.clock:
            _, leaves, index = events.pop(0)
            job = jobs[index]
            if not leaves:
                engine.waiting.append(job)
                continue
            job.blocks = 0
            for queue in (engine.waiting, engine.running):
                queue[:] = [other for other in queue if other is not job]
        if engine.waiting or engine.running:
            engine.step()
    return jobs


def served(load: Workload, leaves_s: list[float]) -> tuple[np.ndarray, Any, list[int]]:
    """Serve with the rules: requests, engine, whether each was taken out before its end."""
    world = build(load)
    taken = column([-1.0] * len(leaves_s))
    serve(*world, column(load.arrivals_s), column(leaves_s), taken)
    return to_array(world.requests, serving.REQUEST), to_array(world.engine, serving.ENGINE)[0], [int(gone) for gone in taken]


@st.composite
def cases(draw_: st.DrawFn) -> tuple[Workload, list[float]]:
    """Engines that are short of places and blocks, and users who lose patience."""
    engine = sizes(draw_(st.integers(4, 120)), draw_(st.integers(1, 12)), draw_(st.sampled_from([32, 128, 2048])))
    gap_s = draw_(st.sampled_from([0.005, 0.05, 0.4]))
    load = draw(engine, draw_(st.integers(0, 2**32)), draw_(st.integers(1, 40)), gap_s, draw_(st.sampled_from([4, 60])))
    rng = np.random.default_rng(draw_(st.integers(0, 2**32)))
    patience = rng.exponential(draw_(st.sampled_from([0.02, 0.3, 2.0])), len(load.prompts))
    return load, (np.array(load.arrivals_s) + patience).tolist()


@settings(max_examples=150, deadline=None)
@given(cases())
def test_a_request_that_leaves_makes_room_as_in_vllm(case: tuple[Workload, list[float]]) -> None:
    load, leaves_s = case
    requests, engine, taken = served(load, leaves_s)
    jobs = judged(load, leaves_s)
    for row, job, gone in zip(requests, jobs, taken, strict=True):
        assert (row["finish_s"] == math.inf) == (job.finish_s == math.inf)
        assert (gone == 1) == (job.finish_s == math.inf)
        if job.finish_s < math.inf:
            assert row["finish_s"] == pytest.approx(job.finish_s, rel=CLOSE)
            assert row["preemptions"] == job.preemptions
    assert {name: engine[name] for name in EMPTY} == dict.fromkeys(EMPTY, 0)


def test_a_finished_request_cannot_be_taken_out() -> None:
    load = draw(sizes(100, 4, 512), 3, 1, 0.0, 20)
    requests, engine, taken = served(load, [1e6])
    assert taken == [0]
    assert requests["finish_s"][0] < 1e6
    assert engine["done_head"] == 0
