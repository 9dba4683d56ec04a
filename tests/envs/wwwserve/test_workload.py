"""Demand is what a scenario says: its rates, its bursts, its turns of the day, its shares of capacity, nothing after its end."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from envs.wwwserve import load
from envs.wwwserve.batch import Batch
from envs.wwwserve.scenario import Burst, Demand, Kind
from envs.wwwserve.state import JOB, NEVER
from envs.wwwserve.workload import draw_lengths, next_arrival_s
from market.rule import records
from tests.envs.stage import PROFILES, Tables, market, who

EPISODES = 48
HORIZON_S = 1200.0


def worlds(demand: Demand, **changes: Any) -> Any:
    """As many episodes of one provider with this demand, before anything has happened."""
    group = replace(who(), demand=demand)
    whole = {"horizon_s": HORIZON_S, "arrivals_until_s": HORIZON_S, "requests_max": 64} | changes
    return Batch(market(group, **whole), load.terms(), PROFILES, networks=EPISODES, seed=3, autoreset=False).world


def arrivals(world: Any, n: int, begin_s: float = 0.0) -> list[tuple[float, int]]:
    """All times at which a request would come in an episode, and whether the users were bursting then."""
    found, t = [], begin_s
    while (t := next_arrival_s(world, n, 0, t)) != NEVER:
        found.append((t, int(Tables(world).driver[n].bursting)))
    return found


def steady(rate: float, until_s: float = HORIZON_S, **more: Any) -> Demand:
    whole = {
        "unit": "requests_per_s",
        "schedule": [(until_s, rate, rate)],
        "shift_s": 0.0,
        "gap_cv": 1.0,
        "burst": None,
        "trace": None,
    }
    return Demand(**(whole | more))


def test_bursts_leave_the_mean_rate_as_it_is_and_crowd_the_requests() -> None:
    burst = Burst(factor=10.0, burst_s=50.0, calm_s=150.0)
    world, calm = worlds(steady(0.5, burst=burst)), worlds(steady(0.5))
    bursty = [arrivals(world, n) for n in range(EPISODES)]
    counts = np.array([len(one) for one in bursty])
    plain = np.array([len(arrivals(calm, n)) for n in range(EPISODES)])
    # A burst lasts 50 s in which 5 / 3.25 of a request a second come: one more or less is 77 requests. Six of them an episode.
    assert plain.mean() == pytest.approx(600.0, abs=4 * (600 / EPISODES) ** 0.5)
    assert counts.mean() == pytest.approx(600.0, rel=0.15)
    assert counts.var() > 10 * plain.var()
    inside = sum(flag for one in bursty for _, flag in one) / counts.sum()
    assert inside == pytest.approx(10 * 50 / (10 * 50 + 150), abs=0.06), "the share of requests that come in a burst"


def test_an_episode_begins_in_a_burst_as_often_as_bursts_last() -> None:
    world = worlds(steady(0.5, burst=Burst(factor=10.0, burst_s=100.0, calm_s=100.0)))
    begun = sum(int(Tables(world).driver[n].bursting) for n in range(EPISODES))
    assert 12 <= begun <= 36, "half of 48, by chance"
    assert all(Tables(world).driver[n].toggle_s > 0.0 for n in range(EPISODES))


def test_times_run_forward_and_end_where_arrivals_end() -> None:
    world = worlds(steady(0.5, burst=Burst(5.0, 20.0, 60.0)), arrivals_until_s=700.0)
    for n in range(EPISODES):
        times = [t for t, _ in arrivals(world, n)]
        assert times == sorted(times) and len(set(times)) == len(times)
        assert times[0] > 0.0 and times[-1] < 700.0


def test_a_provider_that_comes_back_finds_its_users_where_time_has_taken_them() -> None:
    world = worlds(steady(0.5, burst=Burst(10.0, 50.0, 150.0)))
    for n in range(EPISODES):
        first = next_arrival_s(world, n, 0, 900.0)
        assert first == NEVER or 900.0 < first < HORIZON_S
        assert Tables(world).driver[n].toggle_s > 900.0 or first == NEVER


def pieces(world: Any, n: int) -> list[tuple[float, float]]:
    """How long each piece of a provider's demand lasts, and its rate."""
    driver = Tables(world).driver[n]
    ends = [0.0, *(float(driver.until_s[k]) for k in range(driver.segments))]
    return [(end - begin, float(driver.rate[k])) for k, (begin, end) in enumerate(itertools.pairwise(ends))]


def test_a_shifted_schedule_is_the_schedule_begun_at_another_hour() -> None:
    schedule = [(100.0, 1.0, 1.0), (400.0, 2.0, 2.0), (600.0, 3.0, 3.0)]
    world = worlds(steady(0.0, schedule=schedule, shift_s=600.0))
    begins = set()
    for n in range(EPISODES):
        turned = pieces(world, n)
        spent = {rate: sum(long_s for long_s, other in turned if other == rate) for rate in (1.0, 2.0, 3.0)}
        assert spent == pytest.approx({1.0: 100.0, 2.0: 300.0, 3.0: 200.0})
        rates = [rate for _, rate in turned]
        first = rates.index(rates[0])
        ring = [1.0, 2.0, 3.0] * 2
        at = ring.index(rates[first])
        assert rates in (ring[at : at + 3], ring[at : at + 4]), "three pieces, the first of which may be cut in two"
        begins.add(round(turned[0][0], 6))
    assert len(begins) > EPISODES // 2, "each episode begins at an hour of its own"


def test_without_a_shift_the_schedule_stands_as_it_is_written() -> None:
    world = worlds(steady(0.0, schedule=[(100.0, 1.0, 1.0), (400.0, 2.0, 2.0)]))
    assert all(pieces(world, n) == [(100.0, 1.0), (300.0, 2.0)] for n in range(EPISODES))


def test_a_rate_is_drawn_anew_for_each_piece_between_its_bounds() -> None:
    world = worlds(steady(0.0, schedule=[(600.0, 1.0, 3.0), (1200.0, 1.0, 3.0)]))
    rates = np.array([[rate for _, rate in pieces(world, n)] for n in range(EPISODES)])
    assert rates.min() >= 1.0 and rates.max() <= 3.0
    assert rates.mean() == pytest.approx(2.0, abs=4 * (2 / 12**0.5) / (2 * EPISODES) ** 0.5)
    assert abs(np.corrcoef(rates.T)[0, 1]) < 0.5


def test_a_share_of_capacity_is_of_the_tokens_that_the_own_engine_can_write() -> None:
    world = worlds(steady(0.7, unit="share_of_capacity"))
    for n in range(EPISODES):
        node = Tables(world).node[n]
        [(_, rate)] = pieces(world, n)
        assert rate * node.mean_forecast == pytest.approx(0.7 * node.capacity_tps)


def job() -> Any:
    """A request's record, read by field in either mode."""
    table = records(JOB, 1)
    return table.view(np.recarray)[0] if isinstance(table, np.ndarray) else table[0]


def test_prompts_and_answers_fit_the_smallest_engine_and_the_limit_of_their_kind() -> None:
    world = worlds(steady(1.0))
    request = job()
    room, limit = int(Tables(world).net[0].room), int(Tables(world).kind[0].max_tokens)
    drawn = []
    for _ in range(400):
        draw_lengths(world, 0, 0, request)
        assert request.prompt_tokens >= 1 and 1 <= request.output_tokens <= limit
        assert request.prompt_tokens + request.output_tokens <= room
        assert 1 <= request.forecast_tokens <= limit
        drawn.append((int(request.prompt_tokens), int(request.output_tokens)))
    assert len(set(drawn)) > 200


@pytest.mark.parametrize("error", [0.0, 0.5])
def test_forecasts_err_by_the_sigma_of_the_predictor(error: float) -> None:
    world = worlds(steady(1.0), length_error=error, kinds={"reasoning": Kind("chat", 10.0, 4096)})
    request = job()
    logs = []
    limit = int(min(Tables(world).kind[0].max_tokens, Tables(world).net[0].room // 2))
    for _ in range(1500):
        draw_lengths(world, 0, 0, request)
        if 20 <= request.output_tokens < limit / 6:  # neither rounding nor the limit, 3.6 sigma away, cuts the error
            logs.append(float(np.log(request.forecast_tokens / request.output_tokens)))
    assert len(logs) > 100
    assert np.median(logs) == pytest.approx(0.0, abs=0.1)
    assert np.std(logs) == pytest.approx(error, abs=0.12)


def test_without_a_predictor_the_forecast_is_the_longest_answer() -> None:
    world = worlds(steady(1.0), length_error=None)
    request = job()
    for _ in range(50):
        draw_lengths(world, 0, 0, request)
        assert request.forecast_tokens == min(Tables(world).kind[0].max_tokens, Tables(world).net[0].room // 2)
