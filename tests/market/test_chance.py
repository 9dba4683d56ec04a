"""Chance: uniform, independent between streams, the same for ever and in both modes."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from market import chance
from market.rule import rule

ROOT = Path(__file__).parents[2]
KEY = chance.key_of(1, 2)
GOLDEN_KEYS = (-2653508690321835841, 5061563556724077661)
GOLDEN_UNIFORMS = [0.5062266757013276, 0.5276542656356469, 0.3468420101562515]
GOLDEN_GAMMA = 4.27218046169657


@rule
def fill_uniform(key, stream, out):
    """Fill `out` with the first draws of a stream."""
    for i in range(len(out)):
        out[i] = chance.uniform(key, stream, i)


@rule
def fill_gamma(key, stream, shape, out):
    """Fill `out` with Gamma variates of one stream; returns how many draws they took."""
    draw = 0
    for i in range(len(out)):
        out[i], draw = chance.gamma(key, stream, draw, shape)
    return draw


def uniforms(key: int, stream: int, count: int) -> np.ndarray:
    """Take the first `count` draws of a stream."""
    out = np.empty(count)
    fill_uniform(key, stream, out)
    return out


def chi_square(counts: np.ndarray) -> float:
    """Distance of counts from equal counts, as a standard normal variate (Wilson and Hilferty)."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    ratio = ((counts - expected) ** 2 / expected).sum() / freedom
    return float((ratio ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom)))


@pytest.mark.parametrize("stream", [0, 1, 2**20])
def test_draws_are_uniform_in_the_open_interval(stream: int) -> None:
    u = uniforms(KEY, stream, 20_000)
    assert u.min() > 0.0 and u.max() < 1.0
    assert abs(chi_square(np.histogram(u, 64, (0.0, 1.0))[0])) < 4.0
    assert u.mean() == pytest.approx(0.5, abs=0.01) and u.var() == pytest.approx(1 / 12, rel=0.03)


def test_the_smallest_and_largest_word_stay_inside_the_interval() -> None:
    assert 0.5 * 2.3283064365386963e-10 > 0.0
    assert (0xFFFF_FFFF + 0.5) * 2.3283064365386963e-10 < 1.0


@pytest.mark.parametrize(
    ("other_key", "other_stream", "lag"), [(KEY, 1, 0), (chance.key_of(1, 3), 0, 0), (chance.key_of(2, 2), 0, 0), (KEY, 0, 1)]
)
def test_streams_networks_seeds_and_neighbours_are_independent(other_key: int, other_stream: int, lag: int) -> None:
    """Pairs fall evenly on a 16 x 16 board, and their correlation is that of chance."""
    left, right = uniforms(KEY, 0, 20_000), uniforms(other_key, other_stream, 20_000 + lag)[lag:]
    board = np.histogram2d(left, right, 16, ((0.0, 1.0), (0.0, 1.0)))[0]
    assert abs(chi_square(board)) < 4.0
    assert abs(np.corrcoef(left, right)[0, 1]) < 0.03


def test_a_draw_can_be_replayed_alone() -> None:
    assert [chance.uniform(KEY, 5, i) for i in (3, 0, 3)] == [uniforms(KEY, 5, 4)[i] for i in (3, 0, 3)]


def test_golden_values_never_change() -> None:
    """A journal written today must replay for ever; these are the values of the first release."""
    assert chance.key_of(0, 0) == GOLDEN_KEYS[0] and chance.key_of(7, 3) == GOLDEN_KEYS[1]
    assert [chance.uniform(GOLDEN_KEYS[1], stream, draw) for stream, draw in ((0, 0), (0, 1), (9, 2**32 - 1))] == GOLDEN_UNIFORMS
    value, draw = chance.gamma(GOLDEN_KEYS[1], 4, 0, 0.5)
    assert (value, draw) == (pytest.approx(GOLDEN_GAMMA, rel=1e-14), 4)


def test_keys_are_odd_and_differ_between_seeds_and_networks() -> None:
    keys = [chance.key_of(seed, network) for seed in range(30) for network in range(30)]
    assert all(key % 2 == 1 for key in keys) and len(set(keys)) == 900


def test_exponential_variates_have_mean_one() -> None:
    values = np.array([chance.exponential(u) for u in uniforms(KEY, 6, 5_000).tolist()])
    assert values.min() >= 0.0 and values.mean() == pytest.approx(1.0, abs=0.06) and values.var() == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("shape", [0.25, 0.5, 1.0, 4.0])
def test_gamma_variates_have_mean_one_and_variance_one_over_shape(shape: float) -> None:
    out = np.empty(20_000)
    draws = fill_gamma(KEY, 8, shape, out)
    error = math.sqrt(1.0 / shape / out.size)
    assert out.min() > 0.0 and abs(out.mean() - 1.0) < 4.0 * error
    assert out.var() == pytest.approx(1.0 / shape, rel=0.12)
    assert 3 * out.size <= draws < 5 * out.size


def test_compiled_and_plain_rules_draw_the_same() -> None:
    """Uniforms bit for bit; a Gamma variate, which goes through the C library's logarithm, to the last digits."""
    program = (
        "import numpy as np, sys; from tests.market import test_chance as t\n"
        "out = np.empty(500); t.fill_gamma(t.KEY, 8, 0.5, out)\n"
        "sys.stdout.buffer.write(t.uniforms(t.KEY, 3, 500).tobytes() + out.tobytes())"
    )
    outputs = []
    for mode in ("compiled", "python"):
        run = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "RULES": mode}, check=True, capture_output=True
        )
        outputs.append(np.frombuffer(run.stdout))
    assert (outputs[0][:500] == outputs[1][:500]).all()
    assert np.allclose(outputs[0][500:], outputs[1][500:], rtol=1e-12, atol=0.0)
