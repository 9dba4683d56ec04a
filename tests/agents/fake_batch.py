"""A batch of networks that stands in for the simulator in tests of our own learners: small, exact, able to save and restore itself.

A provider's observation holds a target level in its first entry; its reward counts the heads that hit it. Networks are staggered:
network n ends an episode in other steps than network n + 1.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from market.action import ACTION_NVEC, LEVELS, MASK_SIZE
from market.observation import OBSERVATION_SIZE


class FakeBatch:
    """Providers with targets that a multiplicative generator moves."""

    def __init__(
        self,
        networks: int = 4,
        providers: int = 2,
        horizon: int = 20,
        *,
        forbidden: int | None = None,
        broken_at: int | None = None,
        stopped_at: int | None = None,
    ) -> None:
        self.networks, self.providers, self.horizon = networks, providers, horizon
        self.forbidden, self.broken_at, self.stopped_at = forbidden, broken_at, stopped_at
        shape = (networks, providers)
        self.word = np.arange(1, networks * providers + 1, dtype=np.uint64).reshape(shape)
        self.clock = np.zeros(1, np.int64)
        self.pinned = np.zeros(shape, bool)
        self.rewards = np.zeros(shape)
        self.truncated = np.zeros(networks, bool)
        self.observations = np.zeros((*shape, OBSERVATION_SIZE), np.float32)
        self.final_observations = np.full((*shape, OBSERVATION_SIZE), 9.0, np.float32)
        self.masks = np.ones((*shape, MASK_SIZE), np.int8)
        if forbidden is not None:
            self.masks.reshape(*shape, len(ACTION_NVEC), LEVELS)[..., forbidden] = 0
        self.taken: list[NDArray[np.int64]] = []
        self._observe()

    @property
    def target(self) -> NDArray[np.int64]:
        """Level that each provider should choose: (networks, providers)."""
        return ((self.word >> np.uint64(33)) % np.uint64(LEVELS)).astype(np.int64)

    def _observe(self) -> None:
        self.observations[:] = 0
        self.observations[..., 0] = self.target / (LEVELS - 1) * 2 - 1

    def step(self, actions: NDArray[np.int64]) -> None:
        """Reward the heads that hit the target, and move on; refuse what the mask forbids, as the simulator does."""
        if self.stopped_at is not None and self.clock[0] >= self.stopped_at:
            raise KeyboardInterrupt
        masks = self.masks.reshape(self.networks, self.providers, -1, LEVELS)
        if not np.take_along_axis(masks, actions[..., None], axis=-1).all():
            raise ValueError("an action that the mask forbids")
        self.taken.append(actions.copy())
        self.rewards[:] = (actions == self.target[..., None]).mean(axis=-1)
        self.word = self.word * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        self.clock += 1
        if self.broken_at is not None and self.clock[0] >= self.broken_at:
            self.rewards[:] = np.nan
        self._observe()
        self.truncated[:] = (self.clock[0] + np.arange(self.networks)) % self.horizon == 0
        self.final_observations[self.truncated] = self.observations[self.truncated]

    def pin(self, brain: str, providers: list[int] | None = None, networks: list[int] | None = None) -> None:
        """Note who follows the paper's rules."""
        every = slice(None)
        rows = np.arange(self.networks)[every if networks is None else networks]
        self.pinned[np.ix_(rows, np.arange(self.providers)[every if providers is None else providers])] = brain == "paper"

    def save(self) -> dict[str, NDArray[Any]]:
        """Copy the state."""
        return {"word": self.word.copy(), "clock": self.clock.copy(), "pinned": self.pinned.copy()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a saved state."""
        self.word, self.clock, self.pinned = (state[name].copy() for name in ("word", "clock", "pinned"))
        self._observe()
