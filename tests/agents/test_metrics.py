"""Metrics keep failures in the denominator, judge only what is due, and never turn a missing value into 0."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from stand_ins import OUTCOME

from agents import metrics
from agents.metrics import FAILED, FINISHED, UNFINISHED

HORIZON_S = 100.0
INF = math.inf


def request(
    arrival_s: float = 0.0,
    latency_s: float = INF,
    slo_s: float = 10.0,
    *,
    origin: int = 0,
    status: int | None = None,
    ttft_s: float = INF,
    output_tokens: int = 11,
    delegated: int = 0,
) -> tuple[float, ...]:
    """One row of outcomes; without a status it is finished when its latency is finite."""
    state = (FINISHED if latency_s < INF else UNFINISHED) if status is None else status
    first = latency_s / 2 if latency_s < INF and ttft_s == INF else ttft_s
    return (0, origin, origin, arrival_s, 100, output_tokens, latency_s, first, slo_s, state, delegated)


def outcomes(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(list(rows), OUTCOME)


def measured(*rows: tuple[float, ...], threshold_s: float | None = None) -> dict[str, float]:
    return metrics.measure(outcomes(*rows), horizon_s=HORIZON_S, threshold_s=threshold_s)


def test_attainment_is_the_share_of_due_requests_answered_within_their_slo() -> None:
    found = measured(request(0, 10.0), request(0, 10.1), request(5, 3.0), request(89, INF))
    assert found["slo_attainment"] == 0.5
    assert found["requests"] == 4


def test_a_request_that_is_due_after_the_window_counts_nowhere_even_when_it_was_answered() -> None:
    alone, joined = measured(request(0, 5.0)), measured(request(0, 5.0), request(91, 2.0), request(95, INF))
    assert alone == joined


def test_a_deadline_at_the_very_end_of_the_window_is_due() -> None:
    assert measured(request(0, 5.0), request(90, INF))["slo_attainment"] == 0.5


def test_a_failed_request_stays_in_the_denominator() -> None:
    found = measured(request(0, 5.0), request(0, status=FAILED))
    assert (found["slo_attainment"], found["failed_share"], found["unfinished_share"]) == (0.5, 0.5, 0.0)


def test_a_failed_request_is_missed_even_when_a_latency_stands_in_its_row() -> None:
    assert measured(request(0, 5.0), request(0, 5.0, status=FAILED))["slo_attainment"] == 0.5


def test_an_unfinished_request_counts_with_its_age_in_the_mean_latency() -> None:
    found = measured(request(0, 4.0), request(40, INF))
    assert found["latency_s_mean"] == pytest.approx((4.0 + 60.0) / 2)
    assert found["unfinished_share"] == 0.5


def test_a_first_token_counts_even_when_the_answer_is_unfinished() -> None:
    assert measured(request(0, INF, ttft_s=3.0), request(50, INF))["ttft_s_mean"] == pytest.approx((3.0 + 50.0) / 2)


def test_time_per_output_token_leaves_out_the_first_token_and_one_token_answers() -> None:
    found = measured(request(0, 7.0, ttft_s=2.0, output_tokens=11), request(0, 9.0, ttft_s=9.0, output_tokens=1))
    assert found["tpot_s_mean"] == pytest.approx(0.5)


def test_time_per_output_token_is_missing_not_zero_when_nothing_has_finished() -> None:
    assert math.isnan(measured(request(0, INF))["tpot_s_mean"])


def test_a_threshold_replaces_the_slo_of_every_request_and_its_due_rule() -> None:
    rows = request(0, 15.0), request(85, 12.0), request(60, INF)
    assert measured(*rows)["requests"] == 3
    found = measured(*rows, threshold_s=20.0)
    assert (found["requests"], found["slo_attainment"]) == (2, 0.5)


def test_goodput_is_the_rate_of_attained_requests_over_the_time_in_which_they_could_become_due() -> None:
    found = measured(*(request(9.0 * k, 5.0) for k in range(10)), request(0, 50.0))
    assert found["goodput_rps"] == pytest.approx(10 / 90.0)


def test_the_worst_provider_is_the_one_whose_users_are_served_worst() -> None:
    rows = request(0, 5.0, origin=0), request(0, 50.0, origin=3), request(0, 5.0, origin=3), request(95, INF, origin=7)
    assert measured(*rows)["worst_provider_slo_attainment"] == 0.5


def test_no_due_request_is_an_error_and_says_what_to_change() -> None:
    with pytest.raises(ValueError, match="none of 1 requests is due within 100 s under their SLO; use a longer horizon"):
        measured(request(95, 2.0))
    with pytest.raises(ValueError, match="under a threshold of 200 s"):
        metrics.attainment_curve(outcomes(request(0, 2.0)), [10.0, 200.0], HORIZON_S)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (request(math.nan, 2.0), "arrival_s must be >= 0 seconds, got nan in row 1"),
        (request(-1.0, 2.0), "arrival_s must be >= 0 seconds, got -1.0 in row 1"),
        (request(0.0, 2.0, slo_s=INF), "slo_s must be >= 0 seconds, got inf in row 1"),
        (request(0.0, INF, status=FINISHED), "status 1 does not go with latency inf s in row 1"),
        (request(0.0, 2.0, status=9), "status 9 does not go with"),
    ],
)
def test_an_impossible_row_is_refused_by_field_value_and_row(row: tuple[float, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        measured(request(0, 5.0), row)


def test_outcomes_without_a_needed_field_are_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match="has no field origin, output_tokens"):
        metrics.measure(
            outcomes(request(0, 1.0))[["arrival_s", "latency_s", "ttft_s", "slo_s", "status", "delegated"]], horizon_s=9.0
        )


def test_a_window_of_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match="horizon_s must be a number of seconds > 0, got 0"):
        metrics.measure(outcomes(request()), horizon_s=0.0)


def test_every_measured_name_is_in_the_dictionary() -> None:
    names = set(measured(request(0, 5.0))) | set(
        metrics.measure_market(
            wealth=[1.0, 2.0],
            rewards=[0.0, 1.0],
            counters={"offers_received": [2, 0], "offers_declined": [1, 0], "duels_won": [0, 1]},
        )
    )
    assert names | {"price_of_anarchy"} == set(metrics.METRICS)
    assert all(metric.meaning and metric.unit and metric.direction for metric in metrics.METRICS.values())


def test_the_docs_table_has_a_row_for_every_name() -> None:
    text = metrics.markdown()
    assert all(f"| `{name}` |" in text for name in metrics.METRICS | metrics.TRAINING_METRICS)


def test_the_declined_share_of_no_offers_is_missing_not_zero() -> None:
    none = {"offers_received": [0, 0], "offers_declined": [0, 0], "duels_won": [0, 0]}
    assert math.isnan(metrics.measure_market(wealth=[1.0, 1.0], rewards=[0.0, 0.0], counters=none)["offers_declined_share"])


def test_gini_is_zero_when_all_own_the_same_and_near_one_when_one_owns_all() -> None:
    assert metrics.gini([5.0] * 7) == 0.0
    assert metrics.gini([0.0] * 4) == 0.0
    assert metrics.gini([0.0, 0.0, 0.0, 8.0]) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="finite values >= 0"):
        metrics.gini([1.0, -2.0])


def test_the_latency_distribution_keeps_unanswered_requests_as_infinite() -> None:
    found = metrics.latencies(
        outcomes(request(0, 3.0), request(0, INF), request(0, 2.0, status=FAILED), request(99, 1.0)), HORIZON_S
    )
    assert sorted(found) == [3.0, INF, INF]


ROWS = st.lists(
    st.builds(
        request,
        arrival_s=st.floats(0, 99),
        latency_s=st.one_of(st.floats(0.01, 99), st.just(INF)),
        slo_s=st.floats(0.5, 60),
        origin=st.integers(0, 3),
        status=st.sampled_from([None, FAILED]),
        delegated=st.integers(0, 1),
    ),
    min_size=1,
    max_size=40,
).map(lambda rows: outcomes(*rows))


def _anything_due(rows: np.ndarray) -> bool:
    return bool(metrics.due(rows["arrival_s"], rows["slo_s"], HORIZON_S).any())


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_shares_lie_between_zero_and_one_and_percentiles_do_not_cross(rows: np.ndarray) -> None:
    assume(_anything_due(rows))
    found = metrics.measure(rows, horizon_s=HORIZON_S)
    assert all(0 <= value <= 1 for name, value in found.items() if metrics.METRICS[name].unit == "share")
    assert found["latency_s_p50"] <= found["latency_s_p95"] <= found["latency_s_p99"]
    assert found["slo_attainment"] + found["unfinished_share"] + found["failed_share"] <= 1 + 1e-12
    assert found["worst_provider_slo_attainment"] <= found["slo_attainment"]


@settings(max_examples=100, deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(rows: np.ndarray, random: object) -> None:
    assume(_anything_due(rows))
    order = np.arange(len(rows))
    random.shuffle(order)  # type: ignore[attr-defined]
    found, shuffled = metrics.measure(rows, horizon_s=HORIZON_S), metrics.measure(rows[order], horizon_s=HORIZON_S)
    assert found == pytest.approx(shuffled, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(0, 39))
def test_losing_an_answer_never_raises_attainment_or_goodput(rows: np.ndarray, at: int) -> None:
    assume(_anything_due(rows))
    lost = rows.copy()
    lost["status"][at % len(rows)] = FAILED
    before, after = metrics.measure(rows, horizon_s=HORIZON_S), metrics.measure(lost, horizon_s=HORIZON_S)
    assert after["slo_attainment"] <= before["slo_attainment"]
    assert after["goodput_rps"] <= before["goodput_rps"]
    assert after["requests"] == before["requests"]


@settings(max_examples=60, deadline=None)
@given(ROWS, st.floats(0.5, 60))
def test_a_curve_at_one_threshold_is_the_attainment_at_that_threshold(rows: np.ndarray, threshold: float) -> None:
    assume(metrics.due(rows["arrival_s"], threshold, HORIZON_S).any())
    curve = metrics.attainment_curve(rows, [threshold], HORIZON_S)
    assert curve[0] == pytest.approx(metrics.measure(rows, horizon_s=HORIZON_S, threshold_s=threshold)["slo_attainment"])


def test_a_relative_curve_judges_each_request_by_multiples_of_its_own_slo() -> None:
    rows = outcomes(request(0, 15.0, slo_s=10.0), request(0, 25.0, slo_s=20.0), request(0, 90.0, slo_s=50.0))
    assert metrics.attainment_curve(rows, [1.0, 1.25, 1.5, 2.0], HORIZON_S, relative=True) == pytest.approx([0, 1 / 3, 2 / 3, 1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 50), min_size=1, max_size=30))
def test_a_curve_rises_with_the_threshold_when_all_requests_are_due_under_all(latency: list[float]) -> None:
    rows = outcomes(*(request(0.0, value) for value in latency))
    assert (np.diff(metrics.attainment_curve(rows, np.linspace(1, 100, 25), HORIZON_S)) >= 0).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.floats(0.01, 100))
def test_gini_does_not_depend_on_the_unit_of_wealth(wealth: list[float], scale: float) -> None:
    assert metrics.gini(wealth) == pytest.approx(metrics.gini(np.array(wealth) * scale), abs=1e-9)
    assert 0 <= metrics.gini(wealth) <= 1 - 1 / len(wealth) + 1e-9
