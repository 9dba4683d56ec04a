"""What PettingZoo's two interfaces share: a batch of one network under agents' names, their spaces, and the check of actions."""

import math
import secrets
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Space
from numpy.typing import NDArray

from envs.wwwserve import load
from envs.wwwserve.batch import PART_NAMES, Batch
from envs.wwwserve.render import FRAMES_PER_S, MODES, Renderer
from envs.wwwserve.scenario import Scenario
from envs.wwwserve.spaces import (
    FLAT_LEVELS,
    FLAT_SIZE,
    Levels,
    flat_masks,
    flat_space,
    idle_where_masked,
    mask_box,
    observation_box,
)
from market.action import ACTION_NAMES, ACTION_NVEC, LEVELS, MASK_SIZE
from market.terms import Terms

CHOICES = {"actions": ("levels", "flat"), "mask": ("observation", "info"), "masked": ("refuse", "idle")}


class MarketView:
    """One network of providers, stepped by an interface that is a subclass; the arguments stand in env.py's docstring.

    errors   ValueError for an argument that is none of its choices; SettingsError for a scenario or terms that do not exist
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - PettingZoo declares it as an attribute of the instance
        "name": "wwwserve_market_v0",
        "render_modes": list(MODES),
        "render_fps": FRAMES_PER_S,
        "is_parallelizable": True,
    }

    def __init__(
        self,
        scenario: str | Scenario = "wwwserve",
        *,
        market: str | Terms = "paper",
        actions: str = "levels",
        mask: str = "observation",
        masked: str = "refuse",
        max_cycles: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        for name, value in (("actions", actions), ("mask", mask), ("masked", masked)):
            if value not in CHOICES[name]:
                raise ValueError(f"wwwserve/market-v0: {name} must be one of {', '.join(CHOICES[name])}, got {value!r}")
        if max_cycles is not None and max_cycles < 1:
            raise ValueError(f"wwwserve/market-v0: max_cycles must be >= 1 or None, got {max_cycles}")
        chosen = load.scenario(scenario) if isinstance(scenario, str) else scenario
        terms = load.terms(market) if isinstance(market, str) else market
        profiles = load.profiles({name for group in chosen.providers for name in group.profiles})
        self.batch = Batch(chosen, terms, profiles, networks=1, autoreset=False)
        self.render_mode = render_mode
        self.max_cycles: float = math.inf if max_cycles is None else max_cycles
        self._flat, self._dict, self._idle = actions == "flat", mask == "observation", masked == "idle"
        self._renderer = Renderer(self.batch, render_mode) if render_mode is not None else None
        self._seeded = False
        self._cycles = 0
        self.possible_agents = [f"provider_{p}" for p in range(self.batch.providers)]
        self.agents: list[str] = []
        self._make_spaces()

    def _make_spaces(self) -> None:
        size = FLAT_SIZE if self._flat else MASK_SIZE
        self._action_spaces: dict[str, Space[Any]] = {}
        self._observation_spaces: dict[str, Space[Any]] = {}
        for agent in self.possible_agents:
            seen: Space[Any] = observation_box()
            self._observation_spaces[agent] = Dict({"observation": seen, "action_mask": mask_box(size)}) if self._dict else seen
            self._action_spaces[agent] = flat_space() if self._flat else Levels()
        box = observation_box()
        self.state_space = Box(np.tile(box.low, self.batch.providers), np.tile(box.high, self.batch.providers), dtype=np.float32)

    def observation_space(self, agent: str) -> Space[Any]:
        """Give the observation space of an agent, the same object each time."""
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> Space[Any]:
        """Give the action space of an agent, the same object each time."""
        return self._action_spaces[agent]

    def action_masks(self) -> NDArray[np.bool_]:
        """Masks of all providers now, (providers, 15) or, for flat actions, (providers, 125): True = possible."""
        return self._masks().astype(bool)

    def state(self) -> NDArray[np.float32]:
        """Give what all providers see together, one after another: (providers * OBSERVATION_SIZE,)."""
        return self.batch.observations.reshape(-1).copy()

    def render(self) -> Any:
        """Draw the market as `render_mode` says: text, a picture, or None when shown in the terminal or not asked for."""
        return self._renderer.render() if self._renderer is not None else None

    def close(self) -> None:
        """Leave the terminal as it stands and end the batch."""
        if self._renderer is not None:
            self._renderer.close()
        self.batch.close()

    def save(self) -> dict[str, NDArray[Any]]:
        """Copy the whole state between two steps of the market: arrays by name, fit for np.savez."""
        return self.batch.save() | {"view_cycles": np.array(self._cycles)}

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        cycles = int(state["view_cycles"])
        self.batch.restore({name: array for name, array in state.items() if name != "view_cycles"})
        self._cycles, self._seeded = cycles, True
        self.agents = [] if self._over() else self.possible_agents[:]

    def _reset(self, seed: int | None) -> None:
        """Start the first episode of a seed; without one the next episode, and at first one that chance chooses."""
        if seed is not None and seed < 0:
            raise ValueError(f"wwwserve/market-v0: seed must be >= 0, got {seed}")
        if seed is None and not self._seeded:
            seed = secrets.randbits(31)
        self.batch.reset(seed)
        self._seeded, self._cycles = True, 0
        self.agents = self.possible_agents[:]
        if self._renderer is not None:
            self._renderer.restart()

    def _advance(self, levels: NDArray[np.int64]) -> bool:
        """Let a step pass; True when it is the last of the episode. levels: (providers, 3)."""
        self.batch.step(idle_where_masked(levels, self.batch.masks[0]) if self._idle else levels)
        self._cycles += 1
        if self._renderer is not None:
            self._renderer.note()
        return self._over()

    def _over(self) -> bool:
        return bool(self.batch.truncated[0]) or self._cycles >= self.max_cycles

    def _masks(self) -> NDArray[np.int8]:
        return flat_masks(self.batch.masks[0]) if self._flat else self.batch.masks[0].copy()

    def _sights(self) -> dict[str, Any]:
        """Copy all observations at once and hand out rows of the copy, which stay as they are in later steps."""
        rows = self.batch.observations[0].copy()
        if not self._dict:
            return dict(zip(self.possible_agents, rows, strict=True))
        pairs = zip(self.possible_agents, rows, self._masks(), strict=True)
        return {agent: {"observation": row, "action_mask": mask} for agent, row, mask in pairs}

    def _parts(self) -> dict[str, dict[str, Any]]:
        """Give each agent the parts of its reward, and its mask where that is not in the observation."""
        rows = self.batch.reward_parts[0].tolist()
        infos: dict[str, dict[str, Any]] = {
            agent: dict(zip(PART_NAMES, row, strict=True)) for agent, row in zip(self.possible_agents, rows, strict=True)
        }
        if not self._dict:
            for agent, mask in zip(self.possible_agents, self._masks(), strict=True):
                infos[agent]["action_mask"] = mask
        return infos

    def _levels(self, actions: list[Any]) -> NDArray[np.int64]:
        """Read one action an agent, in their order, as levels (providers, 3)."""
        shape = (len(actions),) if self._flat else (len(actions), len(ACTION_NVEC))
        try:
            found = np.array(actions)
        except ValueError:  # rows of different lengths
            found = np.empty(0)
        if found.shape != shape or found.dtype.kind not in "iu":
            raise ValueError(self._say_unreadable(actions))
        if not self._flat:
            return found
        if found.min() < 0 or found.max() >= FLAT_SIZE:
            raise ValueError(self._say_unreadable(actions))
        return np.take(FLAT_LEVELS, found, axis=0)

    def _say_unreadable(self, actions: list[Any]) -> str:
        """Name the first agent whose action cannot be read."""
        for agent, action in zip(self.possible_agents, actions, strict=True):
            if not self.action_space(agent).contains(np.asarray(action)):
                return f"{agent}: {self._say_action(action)}"
        return f"actions must be of one shape and type, got {actions!r}"

    def _say_action(self, action: Any) -> str:
        if self._flat:
            return f"action must be one integer in [0, {FLAT_SIZE}), got {action!r}"
        heads = ", ".join(ACTION_NAMES)
        return f"action must be {len(ACTION_NVEC)} integers ({heads}), each in [0, {LEVELS}), got {action!r}"
