"""Every metric of requests is what a loop over the rows, written from docs/metrics.md alone, counts."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from stand_ins import OUTCOME

from agents import metrics

HORIZON_S = 100.0
PROVIDERS = 4
UNFINISHED, FINISHED, FAILED = 0, 1, 2


@st.composite
def requests(draw: Any) -> dict[str, Any]:
    """One request with a fate that an episode can give it."""
    arrival_s = draw(st.floats(0, HORIZON_S))
    status = draw(st.sampled_from([UNFINISHED, FINISHED, FINISHED, FAILED]))
    latency_s = draw(st.floats(0.01, HORIZON_S)) if status == FINISHED else math.inf
    first = draw(st.floats(0, 1)) if status == FINISHED or draw(st.booleans()) else math.inf
    return {
        "network": 0,
        "origin": draw(st.integers(0, PROVIDERS - 1)),
        "executor": draw(st.integers(0, PROVIDERS - 1)),
        "arrival_s": arrival_s,
        "prompt_tokens": 10,
        "output_tokens": draw(st.integers(1, 5)),
        "latency_s": latency_s,
        "ttft_s": first * min(latency_s, HORIZON_S - arrival_s) if math.isfinite(first) else math.inf,
        "slo_s": draw(st.sampled_from([5.0, 20.0, 60.0])),
        "status": status,
        "delegated": draw(st.integers(0, 1)),
    }


EPISODES = st.lists(requests(), min_size=1, max_size=25)


def table(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.array([tuple(row[name] for name in OUTCOME.names or ()) for row in rows], OUTCOME)


def judged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A request counts when its deadline lies within the episode."""
    return [row for row in rows if row["arrival_s"] + row["slo_s"] <= HORIZON_S]


def attained(row: dict[str, Any]) -> bool:
    return row["status"] == FINISHED and row["latency_s"] <= row["slo_s"]


def waited(row: dict[str, Any], key: str = "latency_s") -> float:
    """Who has none waits from arrival to the end."""
    known = row["status"] == FINISHED if key == "latency_s" else math.isfinite(row[key])
    return float(row[key]) if known else HORIZON_S - row["arrival_s"]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def percentile(values: list[float], percent: float) -> float:
    """The straight line between the two values that stand around the place."""
    ordered = sorted(values)
    place = percent / 100 * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def counted(rows: list[dict[str, Any]]) -> dict[str, float]:
    """All metrics of requests, one loop each."""
    due = judged(rows)
    latency, first = [waited(row) for row in due], [waited(row, "ttft_s") for row in due]
    by_origin = {row["origin"]: [attained(one) for one in due if one["origin"] == row["origin"]] for row in due}
    pace = [
        (row["latency_s"] - row["ttft_s"]) / (row["output_tokens"] - 1)
        for row in due
        if row["status"] == FINISHED and row["output_tokens"] >= 2
    ]
    return {
        "slo_attainment": mean([attained(row) for row in due]),
        "worst_provider_slo_attainment": min(map(mean, by_origin.values())),  # type: ignore[arg-type]
        "goodput_rps": sum(1 / (HORIZON_S - row["slo_s"]) for row in due if attained(row)),
        "latency_s_mean": mean(latency),
        "latency_s_p50": percentile(latency, 50),
        "latency_s_p95": percentile(latency, 95),
        "latency_s_p99": percentile(latency, 99),
        "ttft_s_mean": mean(first),
        "ttft_s_p99": percentile(first, 99),
        "tpot_s_mean": mean(pace),
        "unfinished_share": mean([row["status"] == UNFINISHED for row in due]),
        "failed_share": mean([row["status"] == FAILED for row in due]),
        "delegated_share": mean([row["delegated"] == 1 for row in due]),
        "requests": len(due),
    }


@settings(max_examples=150, deadline=None)
@given(EPISODES)
def test_the_metrics_of_an_episode_are_what_a_loop_counts(rows: list[dict[str, Any]]) -> None:
    assume(judged(rows))
    found = metrics.measure(table(rows), horizon_s=HORIZON_S)
    assert found == pytest.approx(counted(rows), nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(EPISODES)
def test_what_is_told_of_a_provider_is_what_a_loop_over_its_own_counts(rows: list[dict[str, Any]]) -> None:
    found = metrics.measure_seats(table(rows), PROVIDERS, horizon_s=HORIZON_S)
    due = judged(rows)
    for provider in range(PROVIDERS):
        own = [row for row in due if row["origin"] == provider]
        assert found["slo_attainment"][provider] == pytest.approx(mean([attained(row) for row in own]), nan_ok=True)
        assert found["latency_s_mean"][provider] == pytest.approx(mean([waited(row) for row in own]), nan_ok=True)
        given_by_it = sum(row["status"] == FINISHED and row["executor"] == provider for row in rows)
        assert found["executed"][provider] == given_by_it, "an answer is work done, whether its request is judged or not"


@settings(max_examples=100, deadline=None)
@given(EPISODES)
def test_latency_over_time_is_the_mean_of_those_who_came_in_that_part(rows: list[dict[str, Any]]) -> None:
    long_s = HORIZON_S / metrics.TIME_BINS
    parts = [row["arrival_s"] / long_s for row in rows]
    assume(all(abs(part - round(part)) > 1e-9 for part in parts))  # on a border, the last bit of a division would decide
    found = metrics.latency_over_time(table(rows), HORIZON_S)
    for part in range(metrics.TIME_BINS):
        came = [row for row in judged(rows) if part * long_s <= row["arrival_s"] < (part + 1) * long_s]
        assert found[part] == pytest.approx(mean([waited(row) for row in came]), nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(EPISODES, st.sampled_from([0.25, 1.0, 1.5]))
def test_a_relative_curve_is_the_attainment_with_all_objectives_stretched(rows: list[dict[str, Any]], stretch: float) -> None:
    stretched = [row | {"slo_s": stretch * row["slo_s"]} for row in rows]
    assume(judged(stretched))
    (found,) = metrics.attainment_curve(table(rows), [stretch], HORIZON_S, relative=True)
    assert found == pytest.approx(mean([attained(row) for row in judged(stretched)]))


@settings(max_examples=100, deadline=None)
@given(EPISODES)
def test_the_latencies_of_a_picture_are_those_of_the_answers_and_infinite_for_the_others(rows: list[dict[str, Any]]) -> None:
    found = metrics.latencies(table(rows), HORIZON_S)
    assert list(found) == [row["latency_s"] if row["status"] == FINISHED else math.inf for row in judged(rows)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12))
def test_gini_is_half_the_mean_difference_of_all_pairs_over_the_mean(wealth: list[float]) -> None:
    apart = mean([abs(a - b) for a in wealth for b in wealth])
    assert metrics.gini(wealth) == pytest.approx(apart / (2 * mean(wealth)) if sum(wealth) else 0.0, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 9), st.floats(-10, 10)), min_size=1, max_size=8))
def test_the_markets_own_figures_are_sums_over_its_providers(told: list[tuple[int, int, int, float]]) -> None:
    received, declined, won, rewards = (list(column) for column in zip(*told, strict=True))
    counters = {"offers_received": received, "offers_declined": declined, "duels_won": won}
    found = metrics.measure_market(wealth=[1.0] * len(told), rewards=rewards, counters=counters)
    share = sum(declined) / sum(received) if sum(received) else math.nan
    expected = {"offers_declined_share": share, "duels": sum(won), "gini_wealth": 0.0, "welfare": sum(rewards)}
    assert found == pytest.approx(expected, nan_ok=True)
