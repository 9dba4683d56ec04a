"""A VecEnv that stands in for the simulator in tests of learners: small, exact, and able to save and restore itself.

A slot's observation holds a target level in its first entry; the reward counts the heads that hit it, so that learning shows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box, MultiDiscrete
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from market.action import ACTION_NVEC, MASK_SIZE
from market.observation import OBSERVATION_SIZE

LEVELS = ACTION_NVEC[0]


class FakeMarket(VecEnv):
    """Slots with targets that a multiplicative generator moves; episodes are truncated every `horizon` steps."""

    def __init__(self, slots: int = 8, horizon: int = 20, forbidden: int | None = None, broken_at: int | None = None) -> None:
        super().__init__(slots, Box(-1.0, 1.0, (OBSERVATION_SIZE,), np.float32), MultiDiscrete(list(ACTION_NVEC)))
        self.horizon, self.forbidden, self.broken_at = horizon, forbidden, broken_at
        self.word = np.arange(1, slots + 1, dtype=np.uint64)
        self.clock = np.zeros(1, np.int64)
        self.taken: list[NDArray[np.int64]] = []

    @property
    def target(self) -> NDArray[np.int64]:
        """Level that each slot should choose: (slots,)."""
        return ((self.word >> np.uint64(33)) % np.uint64(LEVELS)).astype(np.int64)

    def _observe(self) -> NDArray[np.float32]:
        out = np.zeros((self.num_envs, OBSERVATION_SIZE), np.float32)
        out[:, 0] = self.target / (LEVELS - 1) * 2 - 1
        return out

    def reset(self) -> NDArray[np.float32]:
        """Start again."""
        self.word = np.arange(1, self.num_envs + 1, dtype=np.uint64)
        self.clock[:] = 0
        return self._observe()

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Take the actions."""
        self.actions = actions
        self.taken.append(np.array(actions))

    def step_wait(self) -> Any:
        """Reward the heads that hit the target, and move on."""
        rewards = (self.actions == self.target[:, None]).mean(axis=1).astype(np.float32)
        self.word = self.word * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        self.clock += 1
        if self.broken_at is not None and self.clock[0] >= self.broken_at:
            rewards[:] = np.nan
        done = bool(self.clock[0] % self.horizon == 0)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        observation = self._observe()
        if done:
            infos = [{"TimeLimit.truncated": True, "terminal_observation": row.copy()} for row in observation]
        return observation, rewards, np.full(self.num_envs, done), infos

    def masks(self) -> NDArray[np.bool_]:
        """Allow all, or all but one level of each head."""
        allowed = np.ones((self.num_envs, len(ACTION_NVEC), LEVELS), bool)
        if self.forbidden is not None:
            allowed[:, :, self.forbidden] = False
        return allowed.reshape(self.num_envs, MASK_SIZE)

    def save(self) -> dict[str, NDArray[Any]]:
        """Copy the state."""
        return {"word": self.word.copy(), "clock": self.clock.copy()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a saved state."""
        self.word, self.clock = state["word"].copy(), state["clock"].copy()

    def close(self) -> None:
        """Do nothing."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Answer what SB3 asks for."""
        return [getattr(self, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set nothing."""

    def has_attr(self, attr_name: str) -> bool:
        """Know the masks."""
        return attr_name == "action_masks"

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Give the masks."""
        assert method_name == "action_masks"
        return list(self.masks())

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> Sequence[bool]:  # type: ignore[override]
        """Wrap nothing."""
        return [False] * self.num_envs
