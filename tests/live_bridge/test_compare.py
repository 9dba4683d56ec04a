"""A difference that luck cannot explain is found, one that luck explains is not called an error, and bounds follow the load."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.metrics import METRICS, measure
from live_bridge.compare import BOUNDS, Comparison, Line, busiest_load, capacities_tps, compare, floor_s, makespan_s
from live_bridge.episode import FAILED, UNFINISHED, Course
from tests.live_bridge.episodes import HORIZON_S, asks, course, episode

DEMAND = asks()


def compared(live: Course | list[Course], *, spread: float = 0.0, floor: float = 0.0, replays: int = 20, **how: Any) -> Comparison:
    simulated = [course(DEMAND, seed=seed, spread=spread, **how) for seed in range(replays)]
    return compare("x", episode({"x": simulated}, DEMAND), live if isinstance(live, list) else [live], floor)


def line(found: Comparison, metric: str) -> Line:
    return next(one for one in found.lines if one.metric == metric)


def test_equal_worlds_keep_every_bound() -> None:
    found = compared(course(DEMAND))
    assert found.missed == [] and {one.verdict for one in found.lines if one.metric != "duels"} == {"within"}
    assert all(one.difference == pytest.approx(0.0, abs=1e-12) for one in found.lines)
    assert [one.metric for one in found.lines] == [bound.metric for bound in BOUNDS]


@pytest.mark.parametrize(("factor", "verdict"), [(1.02, "within"), (0.98, "within"), (1.08, "missed"), (0.92, "missed")])
def test_a_slower_or_faster_engine_is_found_out(factor: float, verdict: str) -> None:
    found = compared(course(DEMAND, factor=factor))
    assert found.load < 0.7
    for metric in ("latency_s_mean", "latency_s_p50", "latency_s_p95", "latency_s_p99"):
        assert line(found, metric).verdict == verdict, line(found, metric)
        assert line(found, metric).difference == pytest.approx(factor - 1.0, abs=1e-9)


def test_what_luck_explains_is_not_called_an_error_and_what_it_does_not_is() -> None:
    lucky = line(compared(course(DEMAND, factor=1.08), spread=0.04), "latency_s_mean")
    assert lucky.verdict == "luck" and 0.05 < lucky.luck < 0.12
    wrong = line(compared(course(DEMAND, factor=1.25), spread=0.04), "latency_s_mean")
    assert wrong.verdict == "missed"


def test_more_repetitions_leave_less_to_luck() -> None:
    once = line(compared(course(DEMAND), spread=0.04), "latency_s_mean")
    often = line(compared([course(DEMAND)] * 9, spread=0.04), "latency_s_mean")
    assert often.luck < 0.45 * once.luck
    ratio = math.sqrt((1 / 20 + 1 / 9) / (1 / 20 + 1))
    assert often.luck == pytest.approx(ratio * once.luck)


def test_luck_is_what_separate_plays_of_the_simulator_differ_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of plays that differ by chance alone, about one in twenty lies outside two standard deviations."""
    monkeypatch.setattr("live_bridge.compare.busiest_load", lambda *_: 0.5)  # it takes longest, and is not asked about
    outside = 0
    simulated = [course(DEMAND, seed=seed, spread=0.03) for seed in range(20)]
    for seed in range(100, 300):
        found = compare("x", episode({"x": simulated}, DEMAND), [course(DEMAND, seed=seed, spread=0.03)], 0.0)
        mean = line(found, "latency_s_mean")
        outside += abs(mean.difference) > mean.luck
    assert 2 <= outside <= 24


def test_a_metric_in_which_luck_is_greater_than_its_bound_is_named() -> None:
    assert compared(course(DEMAND)).blind == []
    assert "latency_s_mean" in compared(course(DEMAND), spread=0.2).blind


@pytest.mark.parametrize(
    ("load", "limit", "ttft"), [(0.3, 0.05, 0.05), (0.7, 0.05, 0.05), (0.71, 0.10, None), (0.9, 0.10, None), (0.91, None, None)]
)
def test_bounds_follow_the_load(load: float, limit: float | None, ttft: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("live_bridge.compare.busiest_load", lambda *_: load)
    found = compared(course(DEMAND))
    assert found.load == pytest.approx(load)
    wanted = {"latency_s_mean": limit, "latency_s_p99": limit, "ttft_s_mean": ttft, "slo_attainment": 0.03, "makespan_s": 0.03}
    for metric, bound in wanted.items():
        got = line(found, metric).bound
        assert got is None if bound is None else got == pytest.approx(bound, rel=1e-6)


def test_above_the_highest_load_times_are_shown_and_capacity_is_judged() -> None:
    demand = asks(tokens=20_000)
    slow = course(demand, factor=1.5)
    found = compare("x", episode({"x": [course(demand)] * 2}, demand), [slow], 0.0)
    assert found.load > 0.9 and line(found, "latency_s_mean").verdict == "shown"
    assert line(found, "makespan_s").verdict == "missed"


def test_a_fast_clock_has_a_floor_under_short_times() -> None:
    assert line(compared(course(DEMAND)), "ttft_s_mean").bound == pytest.approx(0.05)
    floor = floor_s(20.0, emulated=True)
    assert floor == pytest.approx(0.4) and floor_s(1.0, emulated=False) == pytest.approx(0.01)
    found = compared(course(DEMAND), floor=floor)
    mean = line(found, "ttft_s_mean").simulated
    assert mean is not None and line(found, "ttft_s_mean").bound == pytest.approx(0.05 + 0.4 / mean)
    assert line(found, "slo_attainment").bound == 0.03


def test_requests_that_fail_live_alone_are_found() -> None:
    live = course(DEMAND)
    live.rows["status"][:5], live.rows["latency_s"][:5] = FAILED, np.inf
    found = compared(live)
    assert line(found, "failed_share").difference == pytest.approx(5 / 200)
    assert {"failed_share", "latency_s_mean"} <= set(found.missed)


def test_an_unfinished_request_counts_with_its_age() -> None:
    live = course(DEMAND)
    live.rows["status"][0], live.rows["latency_s"][0] = UNFINISHED, np.inf
    found = line(compared(live), "latency_s_mean")
    assert found.live is not None and found.simulated is not None and found.live > found.simulated + 0.9 * HORIZON_S / 200


def test_a_single_micro_credit_from_nowhere_is_found() -> None:
    assert line(compared(course(DEMAND, wealth=np.array([101.0, 103.0]))), "money").verdict == "within"
    leak = line(compared(course(DEMAND, wealth=np.array([102.0, 102.000001]))), "money")
    assert leak.verdict == "missed" and leak.difference == pytest.approx(1e-6)


def test_a_leak_in_one_repetition_is_not_made_good_by_another() -> None:
    lives = [course(DEMAND, wealth=np.array([102.0, 102.0 + drift])) for drift in (0.5, -0.5)]
    assert line(compared(lives), "money").verdict == "missed"


def test_money_in_other_pockets_is_a_difference_of_wealth() -> None:
    assert line(compared(course(DEMAND, wealth=np.array([100.0, 104.0]))), "wealth").verdict == "within"
    moved = line(compared(course(DEMAND, wealth=np.array([82.0, 122.0]))), "wealth")
    assert moved.verdict == "missed" and moved.difference == pytest.approx(20 / 102)


def test_other_decisions_are_found_and_rules_have_none() -> None:
    shifted = np.full((3, 5), 40, np.int64)
    shifted[1] = [100, 40, 40, 20, 0]
    other = line(compared(course(DEMAND, actions=shifted)), "actions")
    assert other.verdict == "missed" and other.difference == pytest.approx(0.3)
    ruled = compared(course(DEMAND, actions=None), actions=None)
    assert "actions" not in [one.metric for one in ruled.lines]


def test_twice_as_many_decisions_in_the_same_shares_are_no_difference() -> None:
    assert line(compared(course(DEMAND, actions=np.full((3, 5), 80, np.int64))), "actions").difference == pytest.approx(0.0)


def test_who_executed_is_compared() -> None:
    live = course(DEMAND)
    live.rows["executor"][:20], live.rows["delegated"][:20] = 1 - live.rows["origin"][:20], 1
    found = line(compared(live), "delegated_share")
    assert found.verdict == "missed" and found.difference == pytest.approx(0.1)


@pytest.mark.parametrize(("replays", "live"), [(1, 1), (0, 1), (5, 0)])
def test_one_play_cannot_tell_luck_from_error(replays: int, live: int) -> None:
    with pytest.raises(ValueError, match=f"x: needs 2 or more replays and a live play to compare, got {replays} and {live}"):
        compared([course(DEMAND)] * live, replays=replays)


def test_numbers_are_those_of_the_one_dictionary() -> None:
    found, known = compared(course(DEMAND)), measure(course(DEMAND).rows, horizon_s=HORIZON_S)
    judged = [one for one in found.lines if one.metric in METRICS]
    assert len(judged) == 9
    judged = [one for one in judged if one.metric != "duels"]
    assert all(one.live == pytest.approx(known[one.metric]) for one in judged)


def test_every_bound_has_a_reason_and_grows_with_the_load() -> None:
    for bound in BOUNDS:
        assert len(bound.reason) > 20
        limits = [math.inf if limit is None else limit for limit in (bound.easy, bound.middle, bound.hard)]
        assert limits == sorted(limits) and (limits[0] < math.inf) == (bound.metric != "duels")


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 90), st.booleans()), min_size=1, max_size=20))
def test_the_makespan_is_the_last_answer_or_the_horizon(drawn: list[tuple[float, float, bool]]) -> None:
    demand = [DEMAND[0]._replace(arrival_s=arrival) for arrival, _, _ in drawn]
    play = course(demand)
    for i, (_, latency, done) in enumerate(drawn):
        play.rows["latency_s"][i], play.rows["status"][i] = (latency, 1) if done else (np.inf, 0)
    expected = max(a + t for a, t, _ in drawn) if all(done for _, _, done in drawn) else HORIZON_S
    assert makespan_s(play.rows, HORIZON_S) == pytest.approx(expected)


def test_load_is_that_of_the_busiest_engine_and_doubles_with_the_work() -> None:
    one, two = asks(tokens=50), asks(tokens=100)
    low, high = (busiest_load(episode({"x": []}, demand), course(demand)) for demand in (one, two))
    capacity = [capacities_tps(episode({"x": []}, demand))[0] for demand in (one, two)]
    assert high * capacity[1] == pytest.approx(2 * low * capacity[0], rel=0.01)
    moved = course(two)
    moved.rows["executor"][:] = 1
    assert busiest_load(episode({"x": []}, two), moved) == pytest.approx(2 * high, rel=0.05)


def test_an_engine_that_answers_nobody_has_no_load_and_one_that_never_ends_has() -> None:
    play = course(DEMAND)
    play.rows["executor"][:] = -1
    assert busiest_load(episode({"x": []}), play) == 0.0
    stuck = course(DEMAND)
    stuck.rows["latency_s"][1::2], stuck.rows["status"][1::2] = np.inf, UNFINISHED
    stuck.rows["executor"][:] = 0
    assert busiest_load(episode({"x": []}), stuck) > busiest_load(episode({"x": []}), course(DEMAND))


def test_duels_are_counted_in_both_worlds_and_not_judged() -> None:
    live = course(DEMAND, counters={"duels_won": [1, 0]})
    found = line(compared(live), "duels")
    assert (found.simulated, found.live, found.difference, found.verdict) == (4.0, 1.0, -0.75, "shown")
