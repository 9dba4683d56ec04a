"""Fitting numbers: against the optimality conditions, and on functions whose minimum is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from live_bridge.backends.fitting import nnls, simplex


def problem(seed: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-8, 3, columns)
    return rng.normal(size=(rows, columns)) * scale, rng.normal(size=rows)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 8))
def test_no_move_from_the_answer_makes_it_better(seed: int, rows: int, columns: int) -> None:
    matrix, target = problem(seed, rows, columns)
    x, left = nnls(matrix, target)
    assert (x >= 0.0).all()
    assert left == pytest.approx(np.linalg.norm(matrix @ x - target), abs=1e-9)
    # Karush, Kuhn, Tucker: what is free lies in a valley, and what is bound would only climb
    slope = matrix.T @ (matrix @ x - target) / np.linalg.norm(matrix, axis=0)
    assert (slope >= -1e-7).all()
    assert (np.abs(slope[x > 0.0]) <= 1e-7).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_exact_answers_are_found_whatever_the_units(seed: int, columns: int) -> None:
    matrix, _ = problem(seed, 30, columns)
    rng = np.random.default_rng(seed + 1)
    truth = np.where(rng.uniform(size=columns) < 0.3, 0.0, rng.uniform(0.1, 5.0, columns)) / np.linalg.norm(matrix, axis=0)
    x, left = nnls(matrix, matrix @ truth)
    assert left <= 1e-9
    assert x * np.linalg.norm(matrix, axis=0) == pytest.approx(truth * np.linalg.norm(matrix, axis=0), abs=1e-8)


def test_a_column_of_zeros_does_no_harm() -> None:
    x, left = nnls(np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([1.0, 2.0]))
    assert x.tolist() == [pytest.approx(1.0), 0.0]
    assert left <= 1e-12


def test_a_target_of_the_wrong_sign_gives_nothing() -> None:
    x, left = nnls(np.ones((4, 1)), -np.ones(4))
    assert (x.tolist(), left) == ([0.0], 2.0)


@pytest.mark.parametrize("start", [[3.0, -2.0, 0.5], [-8.0, 9.0, 1.0]])
def test_the_simplex_finds_the_bottom_of_a_bowl(start: list[float]) -> None:
    goal = np.array([1.0, 2.0, -0.5])

    def bowl(point: np.ndarray) -> float:
        return float(((point - goal) ** 2 * [1.0, 10.0, 3.0]).sum())

    found = simplex(bowl, np.array(start), 0.5, 2000, 1e-12)
    assert found.at == pytest.approx(goal, abs=1e-4)
    assert found.value == pytest.approx(bowl(found.at))


def test_the_simplex_follows_a_crooked_valley() -> None:
    def valley(point: np.ndarray) -> float:
        x, y = point
        return float(100.0 * (y - x * x) ** 2 + (1.0 - x) ** 2)

    assert simplex(valley, np.array([-1.2, 1.0]), 0.5, 2000, 1e-14).at == pytest.approx([1.0, 1.0], abs=1e-3)


def test_the_simplex_minds_kinks_and_its_budget() -> None:
    calls = []

    def kink(point: np.ndarray) -> float:
        calls.append(1)
        return float(np.abs(point - [0.3, -0.2]).sum())

    found = simplex(kink, np.zeros(2), 0.1, 60, 0.0)
    assert len(calls) == found.evaluations <= 60 + 4
    assert found.value < 0.01
