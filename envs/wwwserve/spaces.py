"""Spaces that the interfaces show, and the mapping between a learner's actions and levels. Knows no simulator."""

import functools
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from numpy.typing import NDArray

from market.action import ACTION_NVEC, LEVELS, MASK_SIZE
from market.observation import OBSERVATION_TABLE

HEADS = len(ACTION_NVEC)
FLAT_SIZE = LEVELS**HEADS
FLAT_LEVELS: NDArray[np.int64] = np.stack(np.unravel_index(np.arange(FLAT_SIZE), ACTION_NVEC), axis=1).astype(np.int64)
"""(125, 3) levels that each flat action stands for: 25 * accept + 5 * forward + commit."""
_FIRST = np.arange(0, MASK_SIZE, LEVELS)


def observation_box() -> Box:
    """Make the space of one provider's observation, with the bounds of the table."""
    low = np.array([entry.low for entry in OBSERVATION_TABLE], np.float32)
    high = np.array([entry.high for entry in OBSERVATION_TABLE], np.float32)
    return Box(low, high, dtype=np.float32)


def mask_box(size: int = MASK_SIZE) -> Box:
    """Make the space of one provider's action mask: 1 = possible."""
    return Box(0, 1, (size,), np.int8)


class Levels(MultiDiscrete[np.int64]):
    """MultiDiscrete([5, 5, 5]) whose `sample` takes the mask as it stands in an observation: 15 entries in a row."""

    def __init__(self) -> None:
        super().__init__(list(ACTION_NVEC))

    def sample(self, mask: Any = None, probability: Any = None) -> NDArray[np.int64]:
        """Draw levels; a mask or probabilities may be a row of 15 or a tuple of three rows of 5."""
        return super().sample(_per_head(mask), _per_head(probability))


def _per_head(row: Any) -> Any:
    return tuple(row.reshape(HEADS, LEVELS)) if isinstance(row, np.ndarray) else row


def flat_space() -> "Discrete[np.int64]":
    """Make the space of flat actions."""
    return Discrete(FLAT_SIZE)


def flat_masks(masks: NDArray[np.int8]) -> NDArray[np.int8]:
    """Turn masks of three heads, (n, 15), into masks of flat actions, (n, 125)."""
    accept, forward, commit = np.split(masks, HEADS, axis=-1)
    product = accept[..., :, None, None] & forward[..., None, :, None] & commit[..., None, None, :]
    return product.reshape(*masks.shape[:-1], FLAT_SIZE)


@functools.cache
def _places(rows: int) -> NDArray[np.int64]:
    """Where level 0 of each head stands in `rows` masks one after another, (rows, 3)."""
    return MASK_SIZE * np.arange(rows)[:, None] + _FIRST


def idle_where_masked(levels: NDArray[np.int64], masks: NDArray[np.int8]) -> NDArray[np.int64]:
    """Put level 0, which no mask forbids, where a mask forbids the level chosen; levels out of range stay, to be refused.

    levels   (rows, 3)
    masks    (rows, 15)
    """
    levels = np.ascontiguousarray(levels, np.int64)
    allowed = masks.reshape(-1).take(_places(len(levels)) + levels, mode="clip")
    outside = levels.view(np.uint64) >= LEVELS  # a negative level is a great one without its sign
    return np.where(outside | (allowed == 1), levels, 0)
