"""Scores of an evaluation of which every number is known: two metrics, four seeds, three policies."""

import math
from typing import Any

import numpy as np
import pytest

from agents.findings import BRIEF, summarise
from agents.metrics import METRICS, TIME_BINS
from agents.scores import Evaluation, Played, rounded, to_json

SEEDS = 4
ATTAINMENT = {"paper": [0.5, 0.6, 0.7, 0.8], "central": [0.9, 0.9, 0.9, 0.9], "ours": [0.6, 0.8, 0.8, 0.9]}
LATENCY_S = {"paper": [100.0, 120.0, 140.0, 160.0], "central": [50.0, 60.0, 70.0, 80.0], "ours": [90.0, 100.0, 140.0, 200.0]}
WELFARE = {"paper": [1.0, 2.0, 3.0, 4.0], "central": [4.0, 4.0, 4.0, 8.0], "ours": [2.0, 2.0, 2.0, 4.0]}
PROVIDERS = ("reward", "earned", "executed", "executed_tokens", "slo_attainment", "latency_s_mean", "stake")


def played(name: str, **more: list[float]) -> Played:
    """A policy of two providers; a metric that is not named is 0 on every seed."""
    metrics = {metric: np.zeros(SEEDS) for metric in METRICS if metric != "price_of_anarchy"}
    told = {"slo_attainment": ATTAINMENT[name], "latency_s_mean": LATENCY_S[name], "welfare": WELFARE[name]} | more
    seats = {key: np.arange(2.0 * SEEDS).reshape(SEEDS, 2) for key in PROVIDERS}
    seats |= {"duels_won": np.array([[1, 0], [2, 0], [3, 0], [4, 0]]), "duels_lost": np.array([[0, 1], [0, 2], [0, 3], [0, 4]])}
    return Played(
        name=name,
        brain="policy",
        dispatch="market",
        agent_steps=None,
        metrics=metrics | {key: np.array(values, np.float64) for key, values in told.items()},
        curve=np.array([ATTAINMENT[name]]).T * [0.5, 1.0],
        latencies_s=tuple(np.array([1.0]) for _ in range(SEEDS)),
        over_time=np.full((SEEDS, TIME_BINS), math.nan),
        wealth=np.array([[[1.0, 3.0]] * SEEDS, [[2.0, 2.0]] * SEEDS]),
        providers=seats,
    )


def evaluation(**more: Any) -> Evaluation:
    """The three policies, in the order of their names above."""
    rounds = {name: played(name, **more) for name in ATTAINMENT}
    return Evaluation(
        "by hand", 7, SEEDS, 900.0, np.array([100.0, 250.0]), relative=False, slo=250.0, times_s=np.array([0.0]), played=rounds
    )


def test_an_estimate_is_the_mean_of_the_middle_half_of_the_seeds() -> None:
    found = evaluation().estimate("ours", "latency_s_mean")
    assert found is not None and found.point == pytest.approx((100.0 + 140.0) / 2)
    assert 90.0 <= found.low <= found.point <= found.high <= 200.0


def test_a_difference_is_taken_seed_by_seed() -> None:
    found = evaluation().difference("ours", "paper", "latency_s_mean")  # -10, -20, 0, +40: the middle half is -10 and 0
    assert found is not None and found.point == pytest.approx(-5.0)


def test_a_policy_is_better_where_its_attainment_is_higher_and_its_latency_lower() -> None:
    scores = evaluation()
    higher, lower = (scores.improvement("central", "paper", metric) for metric in ("slo_attainment", "latency_s_mean"))
    assert higher is not None and higher.point == 1.0
    assert lower is not None and lower.point == 1.0
    ours = scores.improvement("ours", "paper", "latency_s_mean")
    wins = [1 if a < b else 0.5 if a == b else 0 for a in LATENCY_S["ours"] for b in LATENCY_S["paper"]]
    assert ours is not None and ours.point == pytest.approx(sum(wins) / 16)
    assert scores.improvement("ours", "paper", "delegated_share") is None, "no way of delegating is better"


def test_the_price_of_anarchy_is_the_mean_welfare_of_the_scheduler_over_that_of_the_market() -> None:
    found = evaluation().price_of_anarchy("ours")
    assert found is not None and found.point == pytest.approx(20.0 / 10.0)
    own = evaluation().price_of_anarchy("central")
    assert own is not None and tuple(own) == (1.0, 1.0, 1.0)
    without = evaluation()
    del without.played["central"]  # type: ignore[attr-defined]
    assert without.price_of_anarchy("ours") is None


def test_the_price_of_anarchy_of_a_market_without_welfare_is_no_number() -> None:
    assert evaluation(welfare=[-1.0, -1.0, 0.5, 0.5]).price_of_anarchy("ours") is None


def test_a_metric_that_one_seed_lacks_is_told_of_no_policy_and_compared_with_none() -> None:
    scores = evaluation(tpot_s_mean=[0.1, 0.1, math.nan, 0.1])
    assert scores.estimate("ours", "tpot_s_mean") is None
    assert scores.difference("ours", "paper", "tpot_s_mean") is None
    assert scores.improvement("ours", "paper", "tpot_s_mean") is None
    rows = {(row[0], row[1]): row[3:] for row in scores.rows()[1]}
    assert all(math.isnan(float(value)) for value in rows["ours", "tpot_s_mean"])
    assert rows["ours", "slo_attainment"][0] == pytest.approx(0.8)


def test_the_json_compares_with_the_references_that_were_played_and_never_with_itself() -> None:
    found = to_json(evaluation(), source={"commit": "abc"})
    assert found["source"] == {"commit": "abc"} and found["first_seed"] == 7
    assert found["policies"]["paper"]["difference"] == {}
    assert set(found["policies"]["ours"]["difference"]) == {"paper"}
    assert found["policies"]["ours"]["difference"]["paper"]["slo_attainment"][0] == pytest.approx(0.1)
    assert [point for point, _, _ in found["policies"]["ours"]["curve"]] == pytest.approx([0.4, 0.8])
    assert found["policies"]["ours"]["per_provider"]["stake"] == [3.0, 4.0]


def test_numbers_are_kept_to_six_digits_and_nothing_stays_nothing() -> None:
    assert rounded((1 / 3, 123456.7, -0.000123456789)) == [0.333333, 123457.0, -0.000123457]
    assert rounded(None) is None


def test_a_group_is_told_of_by_the_mean_of_its_members_and_all_its_duels() -> None:
    found = summarise(evaluation(), {"first": [0], "second": [1], "both": [0, 1]}, ())["entrants"]["ours"]
    first, both = found["groups"]["first"], found["groups"]["both"]
    assert first["stake"][0] == pytest.approx((2.0 + 4.0) / 2), "0, 2, 4, 6 on the four seeds"
    assert both["stake"][0] == pytest.approx((2.5 + 4.5) / 2)
    assert first["duel_win_rate"] == [1.0, 1.0, 1.0] and both["duel_win_rate"] == [0.5, 0.5, 0.5]
    assert first["duels"][0] == pytest.approx(10 / 4) and both["duels"][0] == pytest.approx(20 / 4)
    assert found["groups"]["second"]["duel_win_rate"] == [0.0, 0.0, 0.0], "who loses all has won none, which is a number"
    assert found["wealth"]["first"][0] == 1.0 and found["wealth"]["first"][-1] == 2.0
    assert found["wealth"]["both"] == [2.0] * len(found["wealth"]["both"])
    assert found["over_time"] == [None] * TIME_BINS


@pytest.mark.parametrize("fought", [0, 1])
def test_a_group_that_fought_no_duel_on_some_seeds_has_no_rate_of_wins(fought: int) -> None:
    scores = evaluation()
    for one in scores.played.values():
        one.providers["duels_won"][fought:] = one.providers["duels_lost"][fought:] = 0
    group = summarise(scores, {"first": [0]}, ())["entrants"]["ours"]["groups"]["first"]
    assert group["duel_win_rate"] is None and group["duels"][0] == fought / 4


def test_an_entrant_in_brief_is_compared_with_each_that_is_told_of_in_full() -> None:
    found = summarise(evaluation(), {}, {"ours"})["entrants"]
    assert set(found["ours"]) == {"summary", "difference"}
    assert set(found["ours"]["summary"]) == set(BRIEF)
    assert list(found["ours"]["difference"]) == ["paper", "central"]
    assert found["ours"]["difference"]["central"]["slo_attainment"][0] == pytest.approx(-0.1)
