"""The statistics agree with rliable's numbers, and hold where rliable has none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agents import statistics as stats

X = np.array(
    [
        [0.81, 0.62, 0.40],
        [0.84, 0.58, 0.47],
        [0.79, 0.71, 0.35],
        [0.86, 0.66, 0.52],
        [0.83, 0.49, 0.44],
        [0.88, 0.64, 0.41],
        [0.80, 0.60, 0.58],
        [0.91, 0.57, 0.38],
    ]
)
Y = np.array(
    [
        [0.78, 0.64, 0.36],
        [0.80, 0.55, 0.41],
        [0.79, 0.59, 0.39],
        [0.82, 0.61, 0.44],
        [0.77, 0.52, 0.47],
        [0.85, 0.63, 0.33],
        [0.74, 0.58, 0.45],
        [0.83, 0.50, 0.40],
    ]
)
# The constants below come from rliable itself, in an environment of its own (it does not import with pandas 3):
#   pip install "rliable==1.2.0" "pandas<3"
#   from rliable import library, metrics
#   metrics.aggregate_iqm(X), metrics.aggregate_iqm(Y), metrics.aggregate_iqm(X[:7, :1]), metrics.aggregate_mean(X)
#   library.get_interval_estimates({"x": X, "y": Y, "one": X[:7, :1]}, lambda s: np.array([metrics.aggregate_iqm(s)]),
#                                  reps=50000, random_state=np.random.RandomState(0))
#   metrics.probability_of_improvement(X, Y), metrics.probability_of_improvement(X, Y[:6])
#   library.get_interval_estimates({"xy": (X, Y)}, lambda x, y: np.array([metrics.probability_of_improvement(x, y)]),
#                                  reps=10000, random_state=np.random.RandomState(0))
#   library.create_performance_profile({"x": X}, np.array([0.3, 0.41, 0.5, 0.6, 0.8, 0.9]), reps=20000)
RLIABLE_IQM = {"x": 0.63, "y": 0.5875, "one": 0.828}
RLIABLE_INTERVAL = {"x": (0.59583333, 0.65916667), "y": (0.56416667, 0.60916667), "one": (0.804, 0.858)}
RLIABLE_MEAN_X = 0.6308333333333334
RLIABLE_IMPROVEMENT = 0.6848958333333334
RLIABLE_IMPROVEMENT_UNEVEN = 0.6805555555555555
RLIABLE_IMPROVEMENT_INTERVAL = (0.52604167, 0.828125)
RLIABLE_THRESHOLDS = np.array([0.3, 0.41, 0.5, 0.6, 0.8, 0.9])
RLIABLE_PROFILE = (1.0, 0.83333333, 0.70833333, 0.5, 0.25, 0.04166667)
RLIABLE_PROFILE_LOW = (1.0, 0.70833333, 0.58333333, 0.375, 0.125, 0.0)
RLIABLE_PROFILE_HIGH = (1.0, 0.95833333, 0.83333333, 0.625, 0.33333333, 0.125)
SCORES = {"x": X, "y": Y, "one": X[:7, :1]}


@pytest.mark.parametrize("name", list(SCORES))
def test_the_interquartile_mean_is_that_of_rliable(name: str) -> None:
    assert float(stats.iqm(SCORES[name])) == pytest.approx(RLIABLE_IQM[name], rel=1e-12)


@pytest.mark.parametrize("name", list(SCORES))
def test_the_stratified_interval_is_that_of_rliable_up_to_resampling_noise(name: str) -> None:
    found = stats.estimate(SCORES[name], resamples=20_000)
    assert (found.low, found.high) == pytest.approx(RLIABLE_INTERVAL[name], abs=0.0025)


def test_the_mean_is_that_of_rliable() -> None:
    assert float(stats.mean(X)) == pytest.approx(RLIABLE_MEAN_X, rel=1e-12)


def test_the_probability_of_improvement_is_that_of_rliable() -> None:
    found = stats.probability_of_improvement(X, Y, resamples=10_000)
    assert found.point == pytest.approx(RLIABLE_IMPROVEMENT, rel=1e-12)
    assert (found.low, found.high) == pytest.approx(RLIABLE_IMPROVEMENT_INTERVAL, abs=0.01)


def test_the_two_sides_of_an_improvement_may_have_different_numbers_of_seeds() -> None:
    assert stats.probability_of_improvement(X, Y[:6]).point == pytest.approx(RLIABLE_IMPROVEMENT_UNEVEN, rel=1e-12)


def test_the_performance_profile_is_that_of_rliable() -> None:
    found = stats.performance_profile(X, RLIABLE_THRESHOLDS, resamples=5000)
    assert found.point == pytest.approx(RLIABLE_PROFILE, abs=1e-8)
    assert found.low == pytest.approx(RLIABLE_PROFILE_LOW, abs=0.042)  # one score of 24: the profile moves in such steps
    assert found.high == pytest.approx(RLIABLE_PROFILE_HIGH, abs=0.042)


# Below, the statistics by their definitions: loops over resamples that are drawn in the order in which the code draws them.


def middle_half(values: list[float]) -> float:
    """Sort, leave a quarter of the values out at each end (rounded down), and average."""
    ordered, cut = sorted(values), len(values) // 4
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept)


def bounds(draws: list[float]) -> tuple[float, float]:
    """2.5 % of the resamples lie below, 2.5 % above."""
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(low), float(high)


def test_an_estimate_resamples_seeds_within_each_task() -> None:
    random = np.random.default_rng(5)
    rows = random.integers(8, size=(300, 8, 3))
    draws = [middle_half([X[rows[k, i, task], task] for i in range(8) for task in range(3)]) for k in range(300)]
    found = stats.estimate(X, resamples=300, seed=5)
    assert found.point == pytest.approx(middle_half(list(X.ravel())))
    assert (found.low, found.high) == pytest.approx(bounds(draws))


def test_a_paired_difference_resamples_seeds_in_pairs() -> None:
    rows = np.random.default_rng(0).integers(8, size=(300, 8, 1))
    draws = [middle_half([X[i, 0] - Y[i, 0] for i in rows[k, :, 0]]) for k in range(300)]
    found = stats.paired_difference(X[:, 0], Y[:, 0], resamples=300)
    assert (found.low, found.high) == pytest.approx(bounds(draws))


def wins(x: list[float], y: list[float]) -> float:
    """Share of all pairs in which x beats y; a tie is half a win."""
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in x for b in y) / (len(x) * len(y))


def test_the_probability_of_improvement_resamples_both_sides_apart() -> None:
    ours, theirs = [0.8, 0.6, 0.6, 0.9, 0.1], [0.6, 0.7, 0.2]
    random = np.random.default_rng(2)
    first = random.integers(5, size=(300, 5))
    second = random.integers(3, size=(300, 3))
    draws = [wins([ours[i] for i in first[k]], [theirs[i] for i in second[k]]) for k in range(300)]
    found = stats.probability_of_improvement(ours, theirs, resamples=300, seed=2)
    assert found.point == pytest.approx(wins(ours, theirs))
    assert (found.low, found.high) == pytest.approx(bounds(draws))


def test_the_probability_of_improvement_of_several_tasks_is_their_mean() -> None:
    each = [wins(list(X[:, task]), list(Y[:, task])) for task in range(3)]
    assert stats.probability_of_improvement(X, Y, resamples=50).point == pytest.approx(sum(each) / 3)


def test_a_band_resamples_whole_curves() -> None:
    rows = np.random.default_rng(3).integers(8, size=(200, 8))
    _, low, high = stats.band(X, resamples=200, seed=3)
    for point in range(3):
        draws = [middle_half([X[i, point] for i in rows[k]]) for k in range(200)]
        assert (low[point], high[point]) == pytest.approx(bounds(draws))


def test_a_ratio_of_means_resamples_seeds_in_pairs() -> None:
    rows = np.random.default_rng(1).integers(8, size=(200, 8))
    draws = [sum(X[i, 0] for i in rows[k]) / sum(Y[i, 0] for i in rows[k]) for k in range(200)]
    found = stats.ratio_of_means(X[:, 0], Y[:, 0], resamples=200, seed=1)
    assert found is not None and found.point == pytest.approx(X[:, 0].sum() / Y[:, 0].sum())
    assert (found.low, found.high) == pytest.approx(bounds(draws))


def test_a_profile_counts_scores_strictly_above_each_threshold() -> None:
    scores, thresholds = [0.2, 0.4, 0.4, 0.9], [0.1, 0.4, 0.9]
    found = stats.performance_profile(scores, thresholds, resamples=50)
    assert list(found.point) == [sum(score > limit for score in scores) / 4 for limit in thresholds]
    assert (found.low <= found.point).all() and (found.point <= found.high).all()


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(11)
    held = [found.low <= 0.0 <= found.high for found in (stats.estimate(random.normal(size=40), resamples=200) for _ in range(200))]
    assert 0.88 <= float(np.mean(held)) <= 0.99


def test_the_same_seed_of_the_resampling_gives_the_same_interval() -> None:
    assert stats.estimate(X, seed=3) == stats.estimate(X, seed=3)
    assert stats.estimate(X, seed=3) != stats.estimate(X, seed=4)


def test_a_paired_difference_is_narrower_than_two_intervals_when_the_seeds_share_their_luck() -> None:
    luck = np.linspace(0.0, 1.0, 12)
    gain = stats.paired_difference(luck + 0.1 + 0.01 * np.sin(np.arange(12)), luck)
    assert 0.09 < gain.low <= gain.point <= gain.high < 0.11
    assert not stats.estimate(luck + 0.1).disjoint(stats.estimate(luck))


def test_a_constant_gain_has_an_interval_of_no_width() -> None:
    assert stats.paired_difference(X + 0.25, X) == pytest.approx((0.25, 0.25, 0.25))


def test_a_policy_improves_on_itself_with_probability_one_half() -> None:
    assert stats.probability_of_improvement(X, X).point == 0.5


def test_a_band_has_at_each_point_the_interquartile_mean_of_that_point() -> None:
    point, low, high = stats.band(X, resamples=500)
    assert point == pytest.approx([float(stats.iqm(X[:, [k]])) for k in range(3)])
    assert (low <= point).all() and (point <= high).all()


def test_a_ratio_of_means_keeps_the_pairs_of_seeds_together() -> None:
    luck = np.linspace(1.0, 9.0, 10)
    assert stats.ratio_of_means(2 * luck, luck) == pytest.approx((2.0, 2.0, 2.0))


def test_a_ratio_to_what_may_be_zero_or_less_is_no_number() -> None:
    assert stats.ratio_of_means([1.0, 2.0], [-1.0, 3.0]) is None
    assert stats.ratio_of_means([-1.0, -2.0], [1.0, 3.0]) is None
    assert stats.ratio_of_means([1.0, 2.0], [0.0, 3.0]) is None, "a resample of the first seed alone divides by 0"


def test_a_ratio_of_nothing_to_something_is_0() -> None:
    assert stats.ratio_of_means([0.0, 0.0], [1.0, 3.0]) == (0.0, 0.0, 0.0)


def test_a_ratio_needs_the_same_seeds() -> None:
    with pytest.raises(ValueError, match="the same seeds"):
        stats.ratio_of_means([1.0, 2.0], [1.0, 2.0, 3.0])


def test_disjoint_intervals_share_no_value() -> None:
    assert stats.Estimate(1.0, 0.9, 1.1).disjoint(stats.Estimate(2.0, 1.2, 3.0))
    assert stats.Estimate(2.0, 1.2, 3.0).disjoint(stats.Estimate(1.0, 0.9, 1.1))
    assert not stats.Estimate(1.0, 0.9, 1.1).disjoint(stats.Estimate(1.2, 1.1, 3.0))


def test_a_single_seed_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"at least 2 seeds, got \(1, 3\); run more seeds"):
        stats.estimate(X[:1])


def test_a_score_that_is_not_a_number_is_refused_by_its_place() -> None:
    broken = X.copy()
    broken[4, 2] = np.nan
    with pytest.raises(ValueError, match="got nan at seed 4, task 2"):
        stats.estimate(broken)


def test_pairs_of_different_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="same seeds"):
        stats.paired_difference(X, Y[:6])
    with pytest.raises(ValueError, match="same tasks"):
        stats.probability_of_improvement(X, Y[:, :2])


MATRICES = st.tuples(st.integers(2, 9), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(-100, 100, width=32))
)


@settings(max_examples=40, deadline=None)
@given(MATRICES, st.floats(-50, 50), st.floats(0.01, 10))
def test_statistics_follow_a_shift_and_a_scale_of_all_scores(scores: np.ndarray, shift: float, scale: float) -> None:
    before = stats.estimate(scores, resamples=50)
    after = stats.estimate(scale * scores + shift, resamples=50)
    assert after == pytest.approx([scale * value + shift for value in before], abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(MATRICES)
def test_an_interval_stays_within_the_scores(scores: np.ndarray) -> None:
    found = stats.estimate(scores, resamples=50)
    assert scores.min() - 1e-9 <= found.low <= found.high <= scores.max() + 1e-9


@settings(max_examples=40, deadline=None)
@given(MATRICES)
def test_improvements_of_both_sides_sum_to_one(scores: np.ndarray) -> None:
    other = np.roll(scores, 1, axis=0) + np.sign(scores)
    assert float(stats.improvement(scores, other)) + float(stats.improvement(other, scores)) == pytest.approx(1.0)
