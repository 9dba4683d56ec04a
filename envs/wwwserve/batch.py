"""Many networks in one call: the batched environment, of which every other interface is a view.

Rewards, observations and masks are written into arrays that stay the same from step to step.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.wwwserve import scenario as scenarios
from envs.wwwserve.state import NET, OUTCOME, STATE, World, allocate
from envs.wwwserve.step import PARTS, legal, reset_networks, step_networks
from market.action import ACTION_NAMES, ACTION_NVEC, LEVELS, MASK_SIZE
from market.chance import key_of
from market.observation import OBSERVATION_SIZE
from market.rule import fill, to_array
from market.terms import MICRO, Terms, put

COUNTERS = ("offers_made", "offers_accepted", "offers_received", "offers_declined", "duels_won", "duels_lost")
PART_NAMES = ("attained", "missed", "wealth", "energy")


class Batch:
    """A batch of independent networks of one scenario.

    networks   how many; network i of a seed always plays the same episodes, whatever the batch size
    seed       >= 0
    record     keep one row a user request (`outcomes`)
    dispatch   "market", or a central scheduler: "paper_central", "central"
    autoreset  start a new episode in the step that ends one; `final_observations` then holds the last sight of the old one
    stagger    shorten the first episodes evenly, so that a batch does not stand at one hour of the day
    threads    threads that share the networks of a step; 1 is fastest unless measured otherwise (benchmarks.simulator)
    errors     ValueError for impossible arguments
    """

    def __init__(
        self,
        scenario: scenarios.Scenario,
        terms: Terms,
        profiles: dict[str, scenarios.Profile],
        *,
        networks: int = 1,
        seed: int = 0,
        record: bool = False,
        dispatch: str = "market",
        autoreset: bool = True,
        stagger: bool = False,
        threads: int = 1,
    ) -> None:
        for name, value, low in (("networks", networks, 1), ("seed", seed, 0), ("threads", threads, 1)):
            if value < low:
                raise ValueError(f"Batch: {name} must be >= {low}, got {value}")
        scenarios.check(scenario, profiles, f"env {scenario.name}")
        self._made_of = {"scenario": scenario, "terms": terms, "profiles": profiles, "networks": networks, "record": record}
        self._made_of |= {"dispatch": dispatch, "autoreset": autoreset, "stagger": stagger, "threads": threads}
        self.scenario, self.terms = scenario, terms
        self.networks, self.providers = networks, scenario.population
        self.steps_per_episode = scenario.steps
        self.autoreset, self.stagger = autoreset, stagger
        log = scenarios.most_requests(scenario, profiles) if record else 0
        static = scenarios.static_tables(scenario, terms, profiles, networks, dispatch, log)
        sizes = {"requests": scenario.requests_max, "events": 2 * scenario.requests_max + scenario.duels_max}
        self.world: World = allocate(
            static, networks=networks, providers=self.providers, duels=scenario.duels_max, log=log, **sizes
        )
        put(self.world.setting[0], "autoreset", int(autoreset))
        self._make_arrays()
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        bounds = np.linspace(0, networks, min(threads, networks) + 1).astype(int).tolist()
        self._shares = list(pairwise(bounds))
        self.reset(seed)

    def _make_arrays(self) -> None:
        everyone = self.networks * self.providers
        shape = (self.networks, self.providers)
        self._observations = np.zeros((everyone, OBSERVATION_SIZE), np.float32)
        self._final = np.zeros((everyone, OBSERVATION_SIZE), np.float32)
        self._masks = np.zeros((everyone, MASK_SIZE), np.int8)
        self._rewards = np.zeros(everyone)
        self._parts = np.zeros((everyone, PARTS))
        self.observations: NDArray[np.float32] = self._observations.reshape(*shape, OBSERVATION_SIZE)
        self.final_observations: NDArray[np.float32] = self._final.reshape(*shape, OBSERVATION_SIZE)
        self.masks: NDArray[np.int8] = self._masks.reshape(*shape, MASK_SIZE)
        self.rewards: NDArray[np.float64] = self._rewards.reshape(shape)
        self.reward_parts: NDArray[np.float64] = self._parts.reshape(*shape, PARTS)
        self.truncated: NDArray[np.bool_] = np.zeros(self.networks, np.bool_)

    def reset(self, seed: int | None = None) -> None:
        """Start new episodes: the first ones of `seed`, or, without a seed, the next ones of the seed in use."""
        if seed is not None:
            for n in range(self.networks):
                put(self.world.net[n], "base_key", key_of(seed, n))
                put(self.world.net[n], "episode", 0)
        reset_networks(self.world, 0, self.networks, self._observations, self._masks)
        if self.stagger and seed is not None:
            for n in range(self.networks):
                put(self.world.net[n], "end_step", max(1, self.steps_per_episode * (n + 1) // self.networks))
        self._rewards[:] = 0.0
        self._parts[:] = 0.0
        self.truncated[:] = False

    def pin(self, brain: str, providers: list[int] | None = None, networks: list[int] | None = None) -> None:
        """Let providers (indices within a network; None = all) of networks follow "paper" rules, or "policy": the actions given."""
        if brain not in ("paper", "policy"):
            raise ValueError(f"brain must be paper or policy, got {brain!r}")
        for p in range(self.providers) if providers is None else providers:
            for n in range(self.networks) if networks is None else networks:
                put(self.world.driver[n * self.providers + p], "pinned", int(brain == "paper"))

    def step(self, actions: NDArray[np.int64]) -> None:
        """Let one control step pass.

        actions   (networks, providers, 3) levels of accept, forward, commit
        errors    ValueError for a wrong shape, a level out of range, or one that the mask forbids
        """
        actions = np.asarray(actions)
        if actions.size != self._rewards.size * len(ACTION_NVEC) or actions.dtype.kind not in "iu":
            want = (self.networks, self.providers, len(ACTION_NVEC))
            raise ValueError(f"actions must be integers of shape {want}, got {actions.dtype} of shape {actions.shape}")
        flat = np.ascontiguousarray(actions, np.int64).reshape(-1, len(ACTION_NVEC))
        wrong = legal(self._masks, flat)
        if wrong >= 0:
            raise ValueError(self._say_wrong(wrong, flat[wrong]))
        if self._pool is None:
            self._step_share(0, self.networks, flat)
        else:
            for done in [self._pool.submit(self._step_share, first, last, flat) for first, last in self._shares]:
                done.result()

    def _step_share(self, first: int, last: int, flat: NDArray[np.int64]) -> None:
        step_networks(
            self.world, first, last, flat, self._observations, self._masks, self._rewards, self._parts, self.truncated, self._final
        )

    def _say_wrong(self, row: int, action: NDArray[np.int64]) -> str:
        place = f"network {row // self.providers}, provider {row % self.providers}"
        for head, name in enumerate(ACTION_NAMES):
            level = int(action[head])
            allowed = np.flatnonzero(self._masks[row, head * LEVELS : (head + 1) * LEVELS]).tolist()
            if level not in allowed:
                return f"{place}: {name} must be one of the levels {allowed} that its action mask allows now, got {level}"
        raise AssertionError(f"{place}: action {action} is legal")

    def outcomes(self) -> NDArray[Any]:
        """One row a user request since each network's last reset (OUTCOME of envs/wwwserve/state.py); needs record=True."""
        log = self.world.setting[0]["log"] if hasattr(self.world.setting, "dtype") else self.world.setting[0].log
        if log == 0:
            raise ValueError("outcomes are not recorded; make the Batch with record=True")
        rows = to_array(self.world.log, OUTCOME).reshape(self.networks, -1)
        net = to_array(self.world.net, NET)
        used = net["logged"]
        if (net["arrived"] > used).any():
            most = int(net["arrived"].max())
            raise ValueError(
                f"outcomes: {most} requests arrived in a network, and the record holds {rows.shape[1]}; shorten the episode"
            )
        return np.concatenate([rows[n, : used[n]] for n in range(self.networks)])

    def _per_provider(self, table: str, name: str) -> NDArray[Any]:
        return to_array(getattr(self.world, table), STATE[table])[name].reshape(self.networks, self.providers)

    def accounts(self) -> dict[str, NDArray[np.float64]]:
        """Credit, stake, escrow, unbonding stake and wealth of every provider, (networks, providers), in credits."""
        names = ("credit", "stake", "escrow", "unbonding")
        parts = {name: self._per_provider("account", f"{name}_micro") / MICRO for name in names}
        return parts | {"wealth": sum(parts.values(), np.zeros((self.networks, self.providers)))}

    def counters(self) -> dict[str, NDArray[np.int64]]:
        """Counts since each network's last reset, (networks, providers): offers, duels, tokens executed."""
        counts = {name: self._per_provider("node", name) for name in COUNTERS}
        return counts | {"executed_tokens": self._per_provider("engine", "executed_tokens")}

    def totals(self) -> dict[str, NDArray[np.int64]]:
        """Requests of users since each network's last reset, (networks,): arrived, answered, failed."""
        net = to_array(self.world.net, NET)
        return {name: net[name] for name in ("arrived", "answered", "failed")}

    def save(self) -> dict[str, NDArray[Any]]:
        """Copy the whole state, in mid-episode too: arrays by name, without objects, fit for np.savez."""
        state = {name: to_array(getattr(self.world, name), dtype) for name, dtype in STATE.items()}
        state["wake"] = np.array(self.world.wake, np.float64)
        for name in ("observations", "final", "masks", "rewards", "parts"):
            state[name] = getattr(self, f"_{name}").copy()
        return state | {"truncated": self.truncated.copy()}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Continue from a saved state of a batch of the same scenario and size.

        errors   ValueError naming the first array that does not fit
        """
        mine = self.save()
        for name, array in mine.items():
            if name not in state or state[name].shape != array.shape or state[name].dtype != array.dtype:
                raise ValueError(
                    f"saved state: {name} must be {array.dtype} of shape {array.shape}; it is of another scenario, size or version"
                )
        for name in STATE:
            fill(getattr(self.world, name), state[name])
        self.world.wake[:] = state["wake"] if hasattr(self.world.wake, "dtype") else state["wake"].tolist()
        for name in ("observations", "final", "masks", "rewards", "parts"):
            getattr(self, f"_{name}")[:] = state[name]
        self.truncated[:] = state["truncated"]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as arguments and state: rules reach tables by address, and views share their arrays."""
        return _revive, (self._made_of, self.save())

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def _revive(made_of: dict[str, Any], state: dict[str, NDArray[Any]]) -> Batch:
    """Make a batch of its arguments and a saved state."""
    batch = Batch(**made_of)
    batch.restore(state)
    return batch
