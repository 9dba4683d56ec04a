"""What a few seeds allow to be said: interquartile mean, stratified bootstrap intervals, probability of improvement.

Definitions are those of rliable (Agarwal et al. 2021, arXiv 2108.13264), in NumPy alone. A score matrix has shape (seeds, tasks);
every statistic works on the last two axes, so that all bootstrap resamples are computed in one call. Knows nothing of markets.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agents.protocol import LEVEL, RESAMPLES, TRIM

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]


class Estimate(NamedTuple):
    """A point estimate and its bootstrap interval."""

    point: float
    low: float
    high: float

    def disjoint(self, other: "Estimate") -> bool:
        """Whether the two intervals share no value."""
        return self.low > other.high or other.low > self.high


def iqm(scores: Array) -> Array:
    """Average the middle half of all scores: a quarter of them is cut off at each end, seeds and tasks together.

    scores   (..., seeds, tasks)
    returns  (...)
    """
    flat = scores.reshape(*scores.shape[:-2], -1)
    cut = int(TRIM * flat.shape[-1])
    return np.asarray(np.sort(flat, axis=-1)[..., cut : flat.shape[-1] - cut].mean(axis=-1))


def mean(scores: Array) -> Array:
    """Average all scores; (..., seeds, tasks) -> (...)."""
    return np.asarray(scores.mean(axis=(-2, -1)))


def improvement(x: Array, y: Array) -> Array:
    """Average over tasks the share of pairs of seeds in which x beats y; a tie counts one half (Mann-Whitney's U).

    x, y     (..., seeds, tasks); the numbers of seeds may differ
    returns  (...) in [0, 1]
    """
    wins = np.sign(x[..., :, None, :] - y[..., None, :, :]).mean(axis=(-3, -2))
    return np.asarray((0.5 + 0.5 * wins).mean(axis=-1))


def estimate(
    scores: ArrayLike, statistic: Statistic = iqm, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Estimate:
    """Estimate a statistic and its stratified bootstrap percentile interval.

    scores     (seeds, tasks), or (seeds,) for one task; at least 2 seeds, all finite
    statistic  (..., seeds, tasks) -> (...)
    level      share of the resamples that the interval holds
    seed       of the resampling
    errors     ValueError for fewer than 2 seeds or scores that are not finite
    """
    matrix = _matrix(scores, "scores")
    draws = statistic(_resample(matrix, resamples, np.random.default_rng(seed)))
    return _percentiles(float(statistic(matrix)), draws, level)


def paired_difference(
    x: ArrayLike, y: ArrayLike, statistic: Statistic = iqm, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Estimate:
    """Estimate a statistic of x - y, seed by seed: what the seeds have in common drops out.

    x, y    same shape, (seeds, tasks) or (seeds,); row i of both was played on the same seed
    errors  ValueError when the shapes differ, and as in `estimate`
    """
    first, second = _matrix(x, "x"), _matrix(y, "y")
    if first.shape != second.shape:
        raise ValueError(f"paired_difference: x and y must hold the same seeds and tasks, got {first.shape} and {second.shape}")
    return estimate(first - second, statistic, resamples=resamples, level=level, seed=seed)


def crossed(scores: ArrayLike, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Estimate the interquartile mean where trainings and episodes are both samples, and its percentile interval.

    A resample draws as many trainings with replacement, and as many episodes, the same for all trainings; each draw of a
    training takes all that it scored. The interval so holds the luck of a training, which all its episodes share.

    scores  (trainings, episodes), at least 2 trainings, all finite
    source  Owen 2007, The pigeonhole bootstrap (doi 10.1214/07-AOAS122); with few trainings it ends at the best and the worst
    errors  as in `estimate`
    """
    return _cross([_matrix(scores, "scores")], resamples, level, seed)


def crossed_difference(x: ArrayLike, y: ArrayLike, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Estimate the difference of two interquartile means, as `crossed`: trainings drawn apart, episodes in common.

    x, y    (trainings, episodes); column i of both was played on the same seed, the numbers of trainings may differ
    errors  ValueError when the numbers of episodes differ, and as in `estimate`
    """
    first, second = _matrix(x, "x"), _matrix(y, "y")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"crossed_difference: x has {first.shape[1]} episodes and y {second.shape[1]}; play both on the same")
    return _cross([first, second], resamples, level, seed)


def _cross(matrices: list[Array], resamples: int, level: float, seed: int) -> Estimate:
    """Estimate the interquartile mean of one matrix, or that of the first less that of the second."""
    random = np.random.default_rng(seed)
    episodes = matrices[0].shape[1]
    columns = random.integers(episodes, size=(resamples, 1, episodes))
    point, draws = 0.0, np.zeros(resamples)
    for sign, matrix in zip((1.0, -1.0), matrices, strict=False):
        rows = random.integers(len(matrix), size=(resamples, len(matrix), 1))
        point += sign * float(iqm(matrix))
        draws += sign * iqm(matrix[rows, columns])
    return _percentiles(point, draws, level)


def probability_of_improvement(
    x: ArrayLike, y: ArrayLike, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Estimate:
    """Estimate the probability that a seed of x scores higher than a seed of y on a task drawn at random.

    x, y    (seeds, tasks) or (seeds,), the same tasks; resampled independently of each other
    errors  ValueError when the numbers of tasks differ, and as in `estimate`
    """
    first, second = _matrix(x, "x"), _matrix(y, "y")
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"probability_of_improvement: x has {first.shape[1]} tasks and y {second.shape[1]}; give both the same tasks"
        )
    random = np.random.default_rng(seed)
    draws = np.zeros(resamples)
    for task in range(first.shape[1]):
        wins = 0.5 + 0.5 * np.sign(first[:, None, task] - second[None, :, task])
        # A resample only repeats rows and columns of `wins`: with how often each is drawn, its mean is one product.
        mine, theirs = (_drawn(len(matrix), resamples, random) for matrix in (first, second))
        draws += ((mine @ wins) * theirs).sum(axis=1) / wins.size / first.shape[1]
    return _percentiles(float(improvement(first, second)), draws, level)


def ratio_of_means(
    x: ArrayLike, y: ArrayLike, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Estimate | None:
    """Estimate mean(x) / mean(y) over seeds that both have played; None where in a resample x is below 0, or y not above it.

    x, y    (seeds,), the same seeds
    errors  as in `paired_difference`
    """
    first, second = _matrix(x, "x"), _matrix(y, "y")
    if first.shape != second.shape or first.shape[1] != 1:
        raise ValueError(
            f"ratio_of_means: x and y must have shape (seeds,) and hold the same seeds, got {np.shape(x)} and {np.shape(y)}"
        )
    rows = np.random.default_rng(seed).integers(len(first), size=(resamples, len(first)))
    over, under = first[rows, 0].mean(axis=1), second[rows, 0].mean(axis=1)
    if min(over.min(), first.mean()) < 0 or min(under.min(), second.mean()) <= 0:
        return None
    return _percentiles(float(first.mean() / second.mean()), over / under, level)


class Profile(NamedTuple):
    """A performance profile: the share of scores above each threshold, and its interval."""

    thresholds: Array  # (thresholds,)
    point: Array  # (thresholds,) in [0, 1]
    low: Array
    high: Array


def performance_profile(
    scores: ArrayLike, thresholds: ArrayLike, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Profile:
    """Give the share of all scores, seeds and tasks together, that lie above each threshold.

    scores      (seeds, tasks) or (seeds,)
    thresholds  (thresholds,)
    errors      as in `estimate`
    """
    matrix, limits = _matrix(scores, "scores"), np.asarray(thresholds, np.float64)
    random = np.random.default_rng(seed)
    draws = np.concatenate([_above(_resample(matrix, part, random), limits) for part in _parts(resamples, 64)])
    low, high = np.percentile(draws, _bounds(level), axis=0)
    return Profile(limits, _above(matrix, limits), low, high)


def band(curves: ArrayLike, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> tuple[Array, Array, Array]:
    """Give the interquartile mean over seeds of a curve, and its interval, at every point on its own.

    curves   (seeds, points); at least 2 seeds, all finite
    returns  point, low, high, each (points,)
    errors   as in `estimate`
    """
    matrix = _matrix(curves, "curves")
    rows = np.random.default_rng(seed).integers(len(matrix), size=(resamples, len(matrix)))
    cut = int(TRIM * len(matrix))
    kept = slice(cut, len(matrix) - cut)
    columns = [np.percentile(np.sort(column[rows], axis=-1)[:, kept].mean(axis=-1), _bounds(level)) for column in matrix.T]
    low, high = np.array(columns).T
    return np.sort(matrix, axis=0)[kept].mean(axis=0), low, high


def _matrix(scores: ArrayLike, name: str) -> Array:
    """Check a score matrix and give it its two axes."""
    matrix = np.asarray(scores, np.float64)
    matrix = matrix[:, None] if matrix.ndim == 1 else matrix
    if matrix.ndim != 2 or matrix.shape[0] < 2 or matrix.shape[1] < 1:
        raise ValueError(f"{name} must have shape (seeds, tasks) with at least 2 seeds, got {np.shape(scores)}; run more seeds")
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0]
        raise ValueError(f"{name} must be finite, got {matrix[row, column]} at seed {row}, task {column}; leave that metric out")
    return matrix


def _resample(matrix: Array, resamples: int, random: np.random.Generator) -> Array:
    """Draw seeds with replacement within each task (the strata): (resamples, seeds, tasks)."""
    rows = random.integers(matrix.shape[0], size=(resamples, *matrix.shape))
    return np.take_along_axis(np.broadcast_to(matrix, rows.shape), rows, axis=1)


def _drawn(seeds: int, resamples: int, random: np.random.Generator) -> Array:
    """Draw how often each seed stands in a resample: (resamples, seeds)."""
    rows = random.integers(seeds, size=(resamples, seeds))
    counts = np.zeros((resamples, seeds))
    np.add.at(counts, (np.arange(resamples)[:, None], rows), 1.0)
    return counts


def _parts(total: int, size: int) -> list[int]:
    """Split `total` resamples, so that memory stays small."""
    return [size] * (total // size) + ([total % size] if total % size else [])


def _above(scores: Array, limits: Array) -> Array:
    """Share of scores above each limit: (..., seeds, tasks) -> (..., limits)."""
    return np.asarray((scores[..., None] > limits).mean(axis=(-3, -2)))


def _bounds(level: float) -> tuple[float, float]:
    return 50.0 * (1.0 - level), 50.0 * (1.0 + level)


def _percentiles(point: float, draws: Array, level: float) -> Estimate:
    low, high = np.percentile(draws, _bounds(level))
    return Estimate(point, float(low), float(high))
