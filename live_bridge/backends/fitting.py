"""Two ways to fit numbers to measurements: least squares that are never negative, and a simplex that needs no derivative."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Minimum(NamedTuple):
    """Where a search has ended."""

    at: Array
    value: float
    evaluations: int


def nnls(matrix: Array, target: Array) -> tuple[Array, float]:
    """Minimise |matrix x - target| over x >= 0.

    matrix   (rows, columns), finite; columns may differ in scale by any factor
    returns  x (columns,), the norm of what is left
    source   Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23
    """
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0.0] = 1.0
    scaled = matrix / scale
    x = np.zeros(scaled.shape[1])
    free = np.zeros(len(x), bool)
    tolerance = 1e-12 * max(float(np.abs(scaled.T @ target).max()), 1e-300)
    for _ in range(10 * len(x) + 10):
        gain = scaled.T @ (target - scaled @ x)
        gain[free] = -np.inf
        best = int(gain.argmax())
        if gain[best] <= tolerance:
            break
        free[best] = True
        x = _settle(scaled, target, x, free)
    return x / scale, float(np.linalg.norm(scaled @ x - target))


def _settle(matrix: Array, target: Array, x: Array, free: Array) -> Array:
    """Solve for the free columns; those that would turn negative are bound again, the nearest first. Changes `free`."""
    while True:
        solved = np.zeros(len(x))
        solved[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
        below = free & (solved <= 0.0)
        if not below.any():
            return solved
        share = float((x[below] / np.maximum(x[below] - solved[below], 1e-300)).min())
        x = x + share * (solved - x)
        free &= x > 1e-15
        x[~free] = 0.0


def simplex(loss: Callable[[Array], float], start: Array, step: float, evaluations: int, tolerance: float = 1e-5) -> Minimum:
    """Minimise `loss` from `start` on, by a simplex whose first edges are `step` long.

    evaluations  at most about so many calls of `loss`
    tolerance    ends when the losses of the simplex differ by less
    source       Nelder and Mead (1965), with the usual 1, 2, 1/2, 1/2
    """
    size = len(start)
    points = np.vstack([start, start + step * np.eye(size)])
    values = np.array([loss(point) for point in points])
    calls = size + 1
    while calls < evaluations:
        order = np.argsort(values, kind="stable")
        points, values = points[order], values[order]
        if values[-1] - values[0] < tolerance:
            break
        centre = points[:-1].mean(axis=0)
        point, value, used = _move(loss, centre, points[-1], values)
        calls += used
        if value < values[-1]:
            points[-1], values[-1] = point, value
            continue
        points[1:] = points[0] + 0.5 * (points[1:] - points[0])
        values[1:] = [loss(other) for other in points[1:]]
        calls += size
    best = int(values.argmin())
    return Minimum(points[best], float(values[best]), calls)


def _move(loss: Callable[[Array], float], centre: Array, worst: Array, values: Array) -> tuple[Array, float, int]:
    """Try to replace the worst point: mirrored, mirrored further, or pulled in; returns the point, its loss, calls made."""
    mirrored = centre + (centre - worst)
    value = loss(mirrored)
    if value < values[0]:
        further = centre + 2.0 * (centre - worst)
        farther = loss(further)
        return (further, farther, 2) if farther < value else (mirrored, value, 2)
    if value < values[-2]:
        return mirrored, value, 1
    inner = centre + 0.5 * ((mirrored if value < values[-1] else worst) - centre)
    return inner, loss(inner), 2
