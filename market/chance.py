"""Chance as a pure function: the n-th draw of a stream depends on its key and on n alone, so any draw can be replayed.

source   Widynski, "Squares: A Fast Counter-Based RNG" (arXiv 2004.06278), the 32-bit form with four rounds
"""

import math

import numpy as np

from market.rule import COMPILED, rule

STREAM_BITS = 32
"""Draws a stream may hold, as a power of two: counter = stream << STREAM_BITS | draw."""

if COMPILED:
    _word = np.uint64
else:

    def _word(value):  # type: ignore[no-redef]
        return int(value) & 0xFFFF_FFFF_FFFF_FFFF


_MASK = _word(0xFFFF_FFFF_FFFF_FFFF)
_HALF = _word(32)


@rule
def _square(x, add):
    """One round: square, add, and swap the halves of a 64-bit word."""
    x = (x * x + add) & _MASK
    return ((x >> _HALF) | (x << _HALF)) & _MASK


@rule
def uniform(key, stream, draw):
    """Draw number `draw` of `stream`: a uniform in the open interval (0, 1), with 32 bits.

    key      int64, odd, digits well mixed (see `key_of`)
    stream   int64 >= 0, what the draw is for
    draw     int64 in [0, 2**32)
    """
    k = _word(key)
    x = (_word((stream << STREAM_BITS) | draw) * k) & _MASK
    y = x
    z = (y + k) & _MASK
    x = _square(x, y)
    x = _square(x, z)
    x = _square(x, y)
    x = (x * x + z) & _MASK
    return (float(x >> _HALF) + 0.5) * 2.3283064365386963e-10


@rule
def exponential(u):
    """Turn a uniform into an exponential variate of mean 1."""
    return -math.log(u)


@rule
def gamma(key, stream, draw, shape):
    """Draw a Gamma variate of mean 1 by Marsaglia and Tsang's rejection; returns (value, the next unused draw).

    shape    > 0; the squared coefficient of variation is 1 / shape
    source   Marsaglia and Tsang, ACM TOMS 26 (2000), with their boost for shape < 1
    """
    boosted = shape if shape >= 1.0 else shape + 1.0
    d = boosted - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    value = d
    while True:
        radius = math.sqrt(-2.0 * math.log(uniform(key, stream, draw)))
        normal = radius * math.cos(6.283185307179586 * uniform(key, stream, draw + 1))
        u = uniform(key, stream, draw + 2)
        draw += 3
        cube = 1.0 + c * normal
        if cube <= 0.0:
            continue
        cube = cube * cube * cube
        if math.log(u) < 0.5 * normal * normal + d - d * cube + d * math.log(cube):
            value = d * cube
            break
    if shape < 1.0:
        value *= math.exp(math.log(uniform(key, stream, draw)) / shape)
        draw += 1
    return value / shape, draw


def key_of(seed: int, network: int) -> int:
    """Make the key of one network from a seed: the same for every batch that the network stands in."""
    words = np.random.SeedSequence([seed, network]).generate_state(1, np.uint64)
    return int((words[0] | np.uint64(1)).astype(np.int64))
