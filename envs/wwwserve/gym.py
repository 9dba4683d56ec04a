"""Gymnasium's view of a batch: every provider of every network is one sub-environment of a VectorEnv."""

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.wwwserve.batch import PART_NAMES, Batch
from envs.wwwserve.render import FRAMES_PER_S, MODES, Renderer
from envs.wwwserve.spaces import Levels, idle_where_masked, observation_box
from market.action import ACTION_NVEC, MASK_SIZE
from market.observation import OBSERVATION_SIZE

MASKED = ("refuse", "idle")


class GymMarket(VectorEnv[NDArray[np.float32], NDArray[np.int64], NDArray[Any]]):
    """Sub-environment i is provider i % providers of network i // providers.

    batch         one that starts anew by itself: the autoreset mode is SAME_STEP, with `final_obs` and `final_info`
    masked        what a masked level does: "refuse" raises, "idle" takes that head's level 0 (refuse, never, no stake)
    render_mode   None, "ansi", "human" or "rgb_array"; the picture is of the first network

    infos hold `action_mask` (n, 15) and the parts of the reward by name (n,). Episodes end by truncation only.
    """

    def __init__(self, batch: Batch, *, masked: str = "refuse", render_mode: str | None = None) -> None:
        if not batch.autoreset:
            raise ValueError("GymMarket: batch must be made with autoreset=True, got False; the autoreset mode is SAME_STEP")
        if masked not in MASKED:
            raise ValueError(f"GymMarket: masked must be one of {', '.join(MASKED)}, got {masked!r}")
        self.batch, self.masked, self.render_mode = batch, masked, render_mode
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": list(MODES), "render_fps": FRAMES_PER_S}
        self.num_envs = batch.networks * batch.providers
        self.single_observation_space = observation_box()
        self.single_action_space = Levels()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._renderer = Renderer(batch, render_mode) if render_mode is not None else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start the first episodes of a seed; without one the next episodes of the seed in use.

        options   none is known but `reset_mask`, which is refused: sub-environments of a network share one clock
        """
        if options is not None and "reset_mask" in options:
            raise ValueError("GymMarket: options reset_mask is for autoreset mode DISABLED; here episodes start anew by themselves")
        super().reset(seed=seed)
        self.batch.reset(seed)
        return self._observe(), self._infos(np.zeros(self.num_envs, bool))

    @property
    def _masks(self) -> NDArray[np.int8]:
        return self.batch.masks.reshape(self.num_envs, MASK_SIZE)

    def _observe(self) -> NDArray[np.float32]:
        return self.batch.observations.reshape(self.num_envs, OBSERVATION_SIZE).copy()

    def step(self, actions: NDArray[np.int64]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Let a step pass; returns observations, rewards, terminations, truncations and infos.

        actions   (n, 3) levels
        errors    ValueError for a wrong shape or type, a level out of range, or a masked one when `masked` is "refuse"
        """
        batch = self.batch
        levels = np.asarray(actions)
        if levels.shape != (self.num_envs, len(ACTION_NVEC)) or levels.dtype.kind not in "iu":
            want = (self.num_envs, len(ACTION_NVEC))
            raise ValueError(f"GymMarket: actions must be integers of shape {want}, got {levels.dtype} of shape {levels.shape}")
        if self.masked == "idle":
            levels = idle_where_masked(levels, self._masks)
        batch.step(levels.reshape(batch.networks, batch.providers, -1))
        if self._renderer is not None:
            self._renderer.note()
        ended = batch.truncated.repeat(batch.providers)
        rewards = batch.rewards.reshape(-1).copy()
        return self._observe(), rewards, np.zeros(self.num_envs, bool), ended, self._infos(ended)

    def _infos(self, ended: NDArray[np.bool_]) -> dict[str, Any]:
        """Give each figure with the mask that tells which sub-environments have it; an ended one's parts are in final_info."""
        everyone = np.ones(self.num_envs, bool)
        infos: dict[str, Any] = {"action_mask": self._masks.copy(), "_action_mask": everyone}
        parts = self.batch.reward_parts.reshape(self.num_envs, -1)
        for column, name in enumerate(PART_NAMES):
            infos[name] = np.where(ended, 0.0, parts[:, column])
            infos[f"_{name}"] = everyone
        if ended.any():
            last = np.full(self.num_envs, None, object)
            rows = self.batch.final_observations.reshape(self.num_envs, OBSERVATION_SIZE)
            for slot in np.flatnonzero(ended).tolist():
                last[slot] = rows[slot].copy()
            final = {name: np.where(ended, parts[:, column], 0.0) for column, name in enumerate(PART_NAMES)}
            final |= {f"_{name}": ended.copy() for name in PART_NAMES}
            infos |= {"final_obs": last, "_final_obs": ended.copy(), "final_info": final, "_final_info": ended.copy()}
        return infos

    def action_masks(self) -> NDArray[np.bool_]:
        """Masks of all sub-environments now, (n, 15): True = possible."""
        return self._masks.astype(bool)

    def render(self) -> Any:
        """Draw the first network as `render_mode` says; a tuple of one picture, or None in mode human."""
        if self._renderer is None:
            return None
        picture = self._renderer.render()
        return None if picture is None else (picture,)

    def close_extras(self, **kwargs: Any) -> None:
        """End threads and pictures."""
        if self._renderer is not None:
            self._renderer.close()
        self.batch.close()
