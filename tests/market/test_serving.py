"""The engine against a scheduler written token by token, its books, its event protocol and its forecasts."""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market import serving
from market.rule import to_array
from tests.market import oracle
from tests.market.workload import Workload, World, build, column, draw, serve, serve_by_events, sizes

ROOT = Path(__file__).parents[2]
CLOSE = 1e-9
"""Share of a request's latency by which a jump may differ from stepping every iteration."""


def some(low: float, high: float) -> st.SearchStrategy[float]:
    """A coefficient: absent, or between `low` and `high`."""
    return st.one_of(st.just(0.0), st.floats(low, high))


@st.composite
def profiles(draw_: st.DrawFn) -> dict[str, float]:
    """Small engines: prompts are chunked, slots are few, and KV blocks run out."""
    seqs = draw_(st.integers(1, 24))
    return {
        "a_s": draw_(st.floats(1e-3, 5e-2)),
        "a2_s": draw_(some(1e-4, 2e-2)),
        "b_s": draw_(some(1e-6, 5e-4)),
        "c_s": draw_(some(1e-6, 1e-4)),
        "d_s": draw_(some(1e-9, 3e-7)),
        "e_s": draw_(some(1e-4, 5e-3)),
        "q_s": draw_(some(1e-9, 1e-7)),
        "h_s": 0.006,
        "kv_blocks": draw_(st.integers(2, 120)),
        "max_num_seqs": seqs,
        "max_num_batched_tokens": draw_(st.integers(seqs, 256)),
        "quality": 0.0,
    }


@st.composite
def workloads(draw_: st.DrawFn) -> Workload:
    """Up to 60 requests, from a burst to a trickle."""
    gap_s = draw_(st.sampled_from([0.0, 0.01, 0.1, 0.5, 3.0]))
    longest = draw_(st.sampled_from([3, 40, 300]))
    return draw(draw_(profiles()), draw_(st.integers(0, 2**32)), draw_(st.integers(1, 60)), gap_s, longest)


def served(load: Workload, looks_s: list[float] | None = None) -> tuple[np.ndarray, np.void, World, int]:
    """Serve a workload with `advance`; returns the requests, the engine, the world and the most KV blocks seen."""
    world, most = build(load), column([0])
    serve(*world, column(load.arrivals_s), column(looks_s or [-1.0]), most)
    return to_array(world.requests, serving.REQUEST), to_array(world.engine, serving.ENGINE)[0], world, int(most[0])


def judged(load: Workload) -> list[oracle.Job]:
    """Serve a workload with the oracle."""
    jobs = [oracle.Job(*row) for row in zip(load.arrivals_s, load.prompts, load.outputs, strict=True)]
    oracle.run(SimpleNamespace(**load.profile), jobs)
    return jobs


def assert_close(requests: np.ndarray, jobs: list[oracle.Job]) -> None:
    """Compare every request's first token, end and preemptions."""
    arrival = np.array([job.arrival_s for job in jobs])
    latency = np.array([job.finish_s for job in jobs]) - arrival
    assert np.isfinite(latency).all()
    for name in ("first_token_s", "finish_s"):
        assert (np.abs(requests[name] - [getattr(job, name) for job in jobs]) <= CLOSE * latency).all(), name
    assert requests["preemptions"].tolist() == [job.preemptions for job in jobs]


@settings(max_examples=150, deadline=None)
@given(workloads())
def test_jumping_equals_stepping_every_iteration(load: Workload) -> None:
    requests, _, _, _ = served(load)
    assert_close(requests, judged(load))


@pytest.mark.parametrize(
    ("kv_blocks", "seqs", "gap_s", "preempts"),
    [(3000, 64, 0.3, False), (400, 64, 0.25, True), (300, 200, 0.16, True), (3000, 8, 0.25, False)],
)
def test_jumping_equals_stepping_in_a_long_run(kv_blocks: int, seqs: int, gap_s: float, preempts: bool) -> None:
    load = draw(sizes(kv_blocks, seqs, 2048), 1, 300, gap_s, 800)
    requests, _, _, most = served(load)
    jobs = judged(load)
    assert_close(requests, jobs)
    assert (sum(job.preemptions for job in jobs) > 0) == preempts
    assert (most > 0.9 * kv_blocks) == preempts


@settings(max_examples=60, deadline=None)
@given(workloads(), st.integers(0, 2**32))
def test_looking_in_changes_nothing(load: Workload, seed: int) -> None:
    alone, _, _, _ = served(load)
    end_s = float(alone["finish_s"].max())
    watched, _, _, most = served(load, np.sort(np.random.default_rng(seed).uniform(0.0, end_s, 100)).tolist())
    latency = alone["finish_s"] - load.arrivals_s
    assert (np.abs(watched["finish_s"] - alone["finish_s"]) <= CLOSE * latency).all()
    assert (watched["preemptions"] == alone["preemptions"]).all()
    assert 0 <= most <= load.profile["kv_blocks"]


@settings(max_examples=60, deadline=None)
@given(workloads())
def test_an_engine_that_has_served_all_holds_nothing(load: Workload) -> None:
    requests, engine, world, most = served(load)
    for name in ("running", "kv_tokens", "blocks_used", "due_tokens", "waiting", "waiting_prompt", "waiting_output", "sure_steps"):
        assert engine[name] == 0, name
    assert engine["partial"] == serving.NONE and not engine["below"].any()
    assert most <= load.profile["kv_blocks"]
    assert serving.is_idle(world.engine[0])
    assert (requests["first_token_s"] <= requests["finish_s"]).all() and (requests["first_token_s"] > load.arrivals_s).all()
    if requests["preemptions"].sum() == 0:
        assert engine["executed_tokens"] == sum(load.prompts) + sum(load.outputs) - len(load.outputs)


@settings(max_examples=80, deadline=None)
@given(workloads())
def test_event_by_event_every_request_finishes_once_and_at_the_same_time(load: Workload) -> None:
    alone, _, _, _ = served(load)
    world, collected = build(load), column([-1] * len(load.prompts))
    assert serve_by_events(*world, column(load.arrivals_s), collected) == len(load.prompts)
    assert sorted(collected) == list(range(len(load.prompts)))
    requests = to_array(world.requests, serving.REQUEST)
    latency = alone["finish_s"] - load.arrivals_s
    for name in ("first_token_s", "finish_s"):
        assert (np.abs(requests[name] - alone[name]) <= CLOSE * latency).all(), name
    assert (np.diff(requests["finish_s"][np.array(collected)]) >= 0.0).all()


def test_compiled_and_plain_rules_write_the_same_bytes() -> None:
    """Every field of every record after four workloads, two of them with preemption."""
    outputs = []
    for mode in ("compiled", "python"):
        run = subprocess.run(
            [sys.executable, "-m", "tests.market.workload"],
            cwd=ROOT,
            env={**os.environ, "RULES": mode},
            check=True,
            capture_output=True,
        )
        outputs.append(run.stdout)
    assert len(outputs[0]) == 4 * (serving.ENGINE.itemsize + 120 * serving.REQUEST.itemsize)
    assert outputs[0] == outputs[1]


def forecast(world: World, prompt: int, output: int) -> float:
    """Forecast a request that would be handed to the engine now."""
    e = to_array(world.engine, serving.ENGINE)[0]
    names = ("running", "kv_tokens", "due_tokens", "waiting", "waiting_prompt", "waiting_output")
    return serving.forecast_s(world.profile[0], *(int(e[n]) for n in names), prompt, output)


@settings(max_examples=60, deadline=None)
@given(profiles(), st.integers(1, 200), st.integers(1, 200))
def test_the_forecast_of_an_empty_engine_is_what_happens(profile: dict[str, float], prompt: int, output: int) -> None:
    profile = {**profile, "kv_blocks": 100, "max_num_batched_tokens": 256}
    load = Workload(profile, [0.0], [prompt], [output], [output])
    expected = forecast(build(load), prompt, output)
    requests, _, _, _ = served(load)
    assert requests["finish_s"][0] + profile["h_s"] == pytest.approx(expected, rel=1e-9)


def test_a_forecast_does_not_see_the_true_length() -> None:
    """With all answers twice as long nothing has ended otherwise in the first tenth of a second: the forecasts are equal."""
    forecasts = []
    for scale in (1, 2):
        load = draw(sizes(2000, 8, 512), 3, 20, 0.0, 200)
        load = load._replace(forecasts=load.outputs, outputs=[20 + scale * output for output in load.outputs])
        world = build(load)
        for i in range(20):
            serving.enqueue(world.engine[0], world.requests, i, 0.0)
        serving.advance(world.engine[0], world.profile[0], world.requests, 0.1)
        assert to_array(world.engine, serving.ENGINE)[0]["running"] == 8
        forecasts.append(forecast(world, 100, 100))
    assert forecasts[0] == forecasts[1]


KNOWN: dict[str, Any] = {"running": 6, "kv_tokens": 1800, "due_tokens": 900, "ahead": 5, "ahead_prompt": 1000, "ahead_output": 1500}


@pytest.mark.parametrize("name", ["kv_tokens", "due_tokens", "ahead_prompt", "ahead_output", "prompt", "output", "queue"])
@pytest.mark.parametrize(("kv_blocks", "seqs"), [(5000, 256), (5000, 8), (300, 256), (100, 4)])
def test_more_load_never_shortens_a_forecast(name: str, kv_blocks: int, seqs: int) -> None:
    load = Workload(sizes(kv_blocks, seqs, 2048), [], [], [], [])
    profile = build(load).profile[0]
    last = 0.0
    for more in range(0, 4000, 50):
        known = {**KNOWN, "prompt": 200, "output": 300}
        if name == "queue":
            known |= {"ahead": 5 + more, "ahead_prompt": 200 * (5 + more), "ahead_output": 300 * (5 + more)}
        else:
            known[name] += more
        value = serving.forecast_s(profile, *known.values())
        assert math.isfinite(value) and value >= last > -1.0
        last = value
    assert last > serving.forecast_s(profile, *{**KNOWN, "prompt": 200, "output": 300}.values()) or name == "due_tokens"


@settings(max_examples=60, deadline=None)
@given(profiles(), st.lists(st.integers(0, 10**6), min_size=8, max_size=8))
def test_a_forecast_is_finite_and_not_negative(profile: dict[str, float], numbers: list[int]) -> None:
    running, kv_tokens, due_tokens, ahead, ahead_prompt, ahead_output, prompt, output = numbers
    load = Workload(profile, [], [], [], [])
    value = serving.forecast_s(
        build(load).profile[0], running, kv_tokens, -due_tokens, ahead, ahead_prompt, ahead_output, prompt + 1, output + 1
    )
    assert math.isfinite(value) and value > 0.0


@pytest.mark.parametrize(("kv_blocks", "seqs", "within"), [(2000, 8, 0.1), (150, 64, 0.25)], ids=["few slots", "few blocks"])
def test_forecasts_of_an_overloaded_engine_are_right_on_average(kv_blocks: int, seqs: int, within: float) -> None:
    """All requests come at once and their lengths are known; with few blocks preemption makes them later than forecast."""
    load = draw(sizes(kv_blocks, seqs, 2048), 5, 200, 1e-6, 200)
    load = load._replace(forecasts=load.outputs)
    world = build(load)
    forecasts = []
    for i, arrival_s in enumerate(load.arrivals_s):
        serving.advance(world.engine[0], world.profile[0], world.requests, arrival_s)
        forecasts.append(forecast(world, load.prompts[i], load.outputs[i]))
        serving.enqueue(world.engine[0], world.requests, i, arrival_s)
    requests, _, _, _ = served(load)
    latency = requests["finish_s"] - load.arrivals_s
    assert np.mean(forecasts) == pytest.approx(latency.mean(), rel=within)


def test_usage_is_the_share_of_blocks_in_use() -> None:
    load = draw(sizes(100, 8, 512), 3, 60, 0.05, 200)
    world = build(load)
    seen = []
    for i, arrival_s in enumerate(load.arrivals_s):
        serving.advance(world.engine[0], world.profile[0], world.requests, arrival_s)
        serving.enqueue(world.engine[0], world.requests, i, arrival_s)
        seen.append(serving.usage(world.engine[0], world.profile[0]))
        assert seen[-1] == to_array(world.engine, serving.ENGINE)[0]["blocks_used"] / 100
    assert min(seen) >= 0.0 and max(seen) <= 1.0 and max(seen) > 0.85


def test_a_request_that_can_never_fit_stops_the_run_instead_of_the_clock() -> None:
    load = Workload(sizes(4, 8, 512), [0.0], [60], [6], [6])
    with pytest.raises(AssertionError, match="does not fit"):
        served(load)
