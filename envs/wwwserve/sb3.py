"""Stable-Baselines3's view of a batch: every provider of every network is one slot of a VecEnv, and all share one policy.

Arrays go in and out; no Python runs per slot but at the end of an episode.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import MultiDiscrete
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from envs.wwwserve.batch import Batch
from envs.wwwserve.render import Renderer
from envs.wwwserve.spaces import idle_where_masked, observation_box
from market.action import ACTION_NVEC, MASK_SIZE
from market.observation import OBSERVATION_SIZE

METHODS = ("action_masks", "render")


class SB3Market(VecEnv):
    """Slot i is provider i % providers of network i // providers; `PPO("MlpPolicy", SB3Market(batch))` learns in it.

    batch         one that starts anew by itself and that has not been stepped; with stagger=True for training, so that a rollout
                  holds all hours of the day
    render_mode   None, "ansi", "human" or "rgb_array"; the picture is of the first network

    PPO knows no masks: a level that is masked is taken as that head's level 0 (refuse, never, no stake), which is always allowed.
    MaskablePPO reads `action_masks` and never draws one. The infos of a slot are empty but where its episode ends, which is
    always a truncation: `terminal_observation`, `TimeLimit.truncated` and SB3's `episode` (return, length).
    """

    def __init__(self, batch: Batch, *, render_mode: str | None = None) -> None:
        if not batch.autoreset:
            raise ValueError("SB3Market: batch must be made with autoreset=True, got False; SB3 never resets a slot by itself")
        self.batch, self.render_mode = batch, render_mode
        self._renderer = Renderer(batch, render_mode) if render_mode is not None else None
        slots = batch.networks * batch.providers
        super().__init__(slots, observation_box(), MultiDiscrete(list(ACTION_NVEC)))
        self._seed: int | None = None
        self._fresh = True
        self._returns = np.zeros(slots)
        self._lengths = np.zeros(slots, np.int64)
        self._infos: list[dict[str, Any]] = [{} for _ in range(slots)]
        self._actions = np.zeros((slots, len(ACTION_NVEC)), np.int64)

    def reset(self) -> NDArray[np.float32]:
        """Start the first episodes of the seed given to `seed`; without one the batch's first episodes, later its next ones."""
        if self._seed is not None or not self._fresh:
            self.batch.reset(self._seed)
        self._seed, self._fresh = None, False
        self._returns[:] = 0.0
        self._lengths[:] = 0
        return self._observe()

    @property
    def _masks(self) -> NDArray[np.int8]:
        return self.batch.masks.reshape(self.num_envs, MASK_SIZE)

    def _observe(self) -> NDArray[np.float32]:
        return self.batch.observations.reshape(self.num_envs, OBSERVATION_SIZE).copy()

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Take the actions, (slots, 3); ValueError for a wrong shape or type."""
        actions = np.asarray(actions)
        if actions.shape != self._actions.shape or actions.dtype.kind not in "iu":
            raise ValueError(
                f"SB3Market: actions must be integers of shape {self._actions.shape}, got {actions.dtype} of shape {actions.shape}"
            )
        self._actions = actions

    def step_wait(self) -> Any:
        """Let a step pass; returns observations, rewards, dones and infos. ValueError for a level out of range."""
        self._fresh = False
        batch = self.batch
        levels = idle_where_masked(self._actions, self._masks)
        batch.step(levels.reshape(batch.networks, batch.providers, -1))
        if self._renderer is not None:
            self._renderer.note()
        self._returns += batch.rewards.reshape(-1)
        self._lengths += 1
        dones = batch.truncated.repeat(batch.providers)
        infos = self._ended(dones) if batch.truncated.any() else self._infos
        return self._observe(), batch.rewards.reshape(-1).astype(np.float32), dones, infos

    def _ended(self, dones: NDArray[np.bool_]) -> list[dict[str, Any]]:
        """List infos with new entries for the slots whose episode is over; the shared empty ones stay untouched."""
        infos = self._infos.copy()
        last = self.batch.final_observations.reshape(self.num_envs, OBSERVATION_SIZE)
        for slot in np.flatnonzero(dones).tolist():
            infos[slot] = {
                "terminal_observation": last[slot].copy(),
                "TimeLimit.truncated": True,
                "episode": {"r": float(self._returns[slot]), "l": int(self._lengths[slot])},
            }
        self._returns[dones] = 0.0
        self._lengths[dones] = 0
        return infos

    def action_masks(self) -> NDArray[np.bool_]:
        """Masks of all slots now, (slots, 15): True = possible."""
        return self._masks.astype(bool)

    def save(self) -> dict[str, NDArray[Any]]:
        """Copy the whole state, in mid-episode too: arrays by name, fit for np.savez."""
        return self.batch.save() | {"slot_returns": self._returns.copy(), "slot_lengths": self._lengths.copy()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from a saved state of the same scenario and size; ValueError for another, KeyError for a lacking array."""
        returns, lengths = state["slot_returns"], state["slot_lengths"]
        self.batch.restore({name: array for name, array in state.items() if not name.startswith("slot_")})
        self._returns[:] = returns
        self._lengths[:] = lengths
        self._seed, self._fresh = None, False

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Say with which seed (>= 0) the next reset begins; None leaves it to the batch. Slots have no seeds of their own."""
        if seed is not None and seed < 0:
            raise ValueError(f"SB3Market: seed must be >= 0, got {seed}")
        self._seed = seed
        return [seed] * self.num_envs

    def has_attr(self, attr_name: str) -> bool:
        """Whether `get_attr` would answer: asked by MaskablePPO for action_masks."""
        return hasattr(self, attr_name)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Give an attribute of this view, once a slot asked for; AttributeError when there is none."""
        return [getattr(self, attr_name)] * len(self._slots(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: slots are rows of arrays and have no attributes of their own."""
        raise AttributeError(f"SB3Market: cannot set {attr_name} of slots; set it on the Batch, or make another")

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Give each slot's row of `action_masks`, or each slot the picture of `render`; AttributeError for another method."""
        if method_name == "action_masks":
            masks = self.action_masks()
            return list(masks if indices is None else masks[self._slots(indices)])
        if method_name == "render":
            return [self._picture()] * len(self._slots(indices))
        raise AttributeError(f"SB3Market: has no method {method_name} for slots; there are {', '.join(METHODS)}")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Say no for each slot: no single environment is there to be wrapped."""
        return [False] * len(self._slots(indices))

    def _slots(self, indices: Any) -> list[int]:
        if indices is None:
            return list(range(self.num_envs))
        return [indices] if isinstance(indices, int) else list(indices)

    def _picture(self) -> Any:
        return self._renderer.render() if self._renderer is not None else None

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Draw the first network, in mode rgb_array."""
        return [self._picture()]

    def close(self) -> None:
        """End threads and pictures."""
        if self._renderer is not None:
            self._renderer.close()
        self.batch.close()
