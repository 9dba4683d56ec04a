# ruff: noqa: D400 - a page in PettingZoo's form begins with its heading
"""
# WWW.Serve market

Providers of LLM services form a market without a centre (WWW.Serve, arXiv 2603.20661). Each serves its own users with its own
engine, takes over work from others for credits, hands work on when it is overloaded, stakes credits to be drawn as executor, and
loses stake when its answers lose duels. An agent steers one provider.

| Creation           | `import envs.wwwserve; pettingzoo.make("parallel", "wwwserve/market-v0")`         |
|--------------------|-----------------------------------------------------------------------------------|
| Actions            | Discrete                                                                          |
| Parallel API       | Yes                                                                               |
| Manual Control     | No                                                                                |
| Agents             | `agents = ['provider_0', 'provider_1', ...]`                                      |
| Agents             | as many as the scenario has, 8 by default                                         |
| Action Shape       | (3,), or () with `actions="flat"`                                                 |
| Action Values      | MultiDiscrete([5, 5, 5]), or Discrete(125)                                        |
| Observation Shape  | {observation: (38,), action_mask: (15,)}                                          |
| Observation Values | [0, 1], {0, 1}                                                                    |
| State Shape        | (38 * agents,)                                                                    |

The market is competitive with mixed motives: a provider is rewarded for its own users and its own wealth, yet all are better off
when idle hardware takes work from busy hardware. It is fully simulated in virtual time; every number of the rules, the hardware
and the users stands in `conf/`. Both interfaces are thin views of `envs.wwwserve.batch.Batch` with one network; to learn fast, use
the batch itself, `envs.wwwserve.sb3.SB3Market` or `envs.wwwserve.gym.GymMarket`.

### Actions

An agent posts how its provider takes part until the next decision; requests are then handled at once by rule. Levels are ratios
to the time left until a request's deadline, so that they carry over between slow and fast hardware. All agents act together; in
the AEC interface they act in turn, and the market moves when the last one has acted.

| head    | 0      | 1   | 2    | 3    | 4      | meaning                                                                     |
|---------|--------|-----|------|------|--------|-----------------------------------------------------------------------------|
| accept  | refuse | 0.5 | 0.8  | 1    | always | take delegated work forecast to end here within this share of its time left |
| forward | never  | 1.2 | 0.8  | 0.5  | always | offer own work forecast to end here only after this share of its time left  |
| commit  | 0 %    | 5 % | 10 % | 25 % | 50 %   | move stake towards this share of own wealth                                 |

With `actions="flat"` an action is the number 25 * accept + 5 * forward + commit.

The mask has one entry a level, accept first, then forward, then commit (or 125 entries): 1 = possible. It stands in
`observation["action_mask"]` (with `mask="info"` in the agent's info instead, and the observation is a plain vector), and for all
agents in `env.action_masks()`. `env.action_space(agent).sample(mask)` takes it as it is. A provider that is offline stays a live
agent whose mask allows only (0, 0, 0), since PettingZoo's agents cannot come back; one without credit for a request cannot forward.

### Observations

A vector of fixed length, whatever the number of providers: own load, hardware, demand and standing exactly, the others only as
gossip tells. The true length of an answer is never visible. `market.observation.OBSERVATION_TABLE` names every entry with its
unit, range and normalisation; docs/environment.md shows the table. `OBSERVATION_VERSION` changes when it does.

`env.state()` holds the observations of all agents, one after another.

### Rewards

An agent's reward of a step is `value` * attained - `penalty` * missed + `exchange` * change of own wealth in credits - `energy` *
tokens executed, with the weights of the scenario's `reward`; `social` in [0, 1] blends in the mean over all providers. A request
past its deadline is missed at its deadline, not when it ends. The agent's info holds the parts, not weighted: `attained` and
`missed` (own requests), `wealth` (credits), `energy` (tokens).

### Start

Each episode draws anew each provider's hardware profile, region, kind of demand and rates from the scenario's choices, and varies
the engines' coefficients. `reset(seed=s)` starts the first episode of seed s, the same on every machine and in every interface;
`reset()` goes on with the next episode of the seed in use, and, where none was given yet, begins with one that chance chooses.
`options` are none.

A group of providers says its `standing`: `wealth` is its first credit and stake over those of the market's terms; `engine` is the
share of the profile's engine that is its own; providers of one `coalition`, as judges, vote for each other. A share stands for one
of several identities before one engine: it has its share of KV blocks, requests and tokens of an iteration, and what a token costs
is divided by the share, as if the other identities were as busy. While they are idle the real engine would be faster, in prefill
by up to 1 / share. With `engine: 0` a provider only asks: nothing runs there, and its forecasts say that nothing ever would end.

### End

Episodes are truncated for all agents at once, at the scenario's horizon or after `max_cycles` steps; none is terminated.

### Arguments

``` python
import pettingzoo

import envs.wwwserve

env = pettingzoo.make(
    "parallel", "wwwserve/market-v0", scenario="wwwserve", market="paper", actions="levels", mask="observation",
    masked="refuse", max_cycles=None, render_mode=None,
)
```

`scenario`: a file of conf/env by name, or an `envs.wwwserve.scenario.Scenario`

`market`: a file of conf/market by name, or `market.terms.Terms`

`actions`: "levels" or "flat"

`mask`: where the mask stands: "observation" or "info"

`masked`: what a masked action does: "refuse" raises ValueError, "idle" takes level 0 of that head, for learners that know no masks

`max_cycles`: most steps of an episode; None = the scenario's horizon

`render_mode`: None, "ansi" (a table as text), "human" (the table, live in the terminal), "rgb_array" (a picture of 960 x 640)

### Version history

* v0: first version
"""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pettingzoo.utils.env import AECEnv, ParallelEnv
from pettingzoo.utils.wrappers import OrderEnforcingWrapper

from envs.wwwserve.view import MarketView
from market.action import ACTION_NAMES, ACTION_NVEC, LEVELS

Thing = TypeVar("Thing")
ByAgent = dict[str, Thing]
__all__ = ["ParallelMarket", "TurnMarket", "env", "parallel_env", "raw_env"]


class ParallelMarket(MarketView, ParallelEnv[str, Any, Any]):  # type: ignore[misc]  # PettingZoo ships no types
    """All providers act at once. Arguments as in this file's head."""

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[ByAgent[Any], ByAgent[dict[str, Any]]]:
        """Start an episode; returns observations and infos by agent. Options are none: they change nothing."""
        self._reset(seed)
        return self._sights(), self._parts()

    def step(
        self, actions: ByAgent[Any]
    ) -> tuple[ByAgent[Any], ByAgent[float], ByAgent[bool], ByAgent[bool], ByAgent[dict[str, Any]]]:
        """Let one control step pass; returns observations, rewards, terminations, truncations, infos by agent.

        actions   one an agent, of its action space
        errors    RuntimeError before reset and after the end; ValueError for a missing or unknown agent, an action that cannot be
                  read, is out of range, or is masked (unless masked="idle")
        """
        agents = self.agents
        if not agents:
            raise RuntimeError("step: no episode is under way; call reset() first")
        try:
            chosen = [actions[agent] for agent in agents]
        except (KeyError, TypeError, IndexError):
            raise ValueError(self._say_agents(actions)) from None
        if len(actions) != len(chosen):
            raise ValueError(self._say_agents(actions))
        over = self._advance(self._levels(chosen))
        rewards = dict(zip(agents, self.batch.rewards[0].tolist(), strict=True))
        if over:
            self.agents = []
        return self._sights(), rewards, dict.fromkeys(agents, False), dict.fromkeys(agents, over), self._parts()

    def _say_agents(self, actions: Any) -> str:
        if not isinstance(actions, dict):
            return f"actions must be a dict of one action an agent, got {type(actions).__name__}"
        missing = [agent for agent in self.agents if agent not in actions]
        if missing:
            return f"actions must hold one action for every agent in env.agents; {', '.join(missing)} missing"
        unknown = [str(agent) for agent in actions if agent not in self.agents]
        return f"actions must hold agents of env.agents only; {', '.join(unknown)} unknown; they are {', '.join(self.agents)}"

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Continue from a saved state of the same scenario; ValueError for another."""
        self._restore(state)


class TurnMarket(MarketView, AECEnv[str, Any, Any]):  # type: ignore[misc]  # likewise
    """Providers act in turn, and the market moves when the last has acted. Arguments as in this file's head."""

    agent_selection: str

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Start an episode. Options are none: they change nothing."""
        self._reset(seed)
        self._begin()

    def _begin(self) -> None:
        """Stand before the first agent's turn."""
        self._turn = 0
        self._skip_agent_selection = None
        self._chosen = np.zeros((len(self.possible_agents), len(ACTION_NVEC)), np.int64)
        self._nothing = dict.fromkeys(self.possible_agents, 0.0)
        self.rewards = self._nothing.copy()
        self._cumulative_rewards = self._nothing.copy()
        self.terminations = dict.fromkeys(self.possible_agents, False)
        self.truncations = dict.fromkeys(self.possible_agents, False)
        self._see()
        self.agent_selection = self.possible_agents[0]

    def _see(self) -> None:
        self._seen, self.infos = self._sights(), self._parts()
        self._allowed = self.batch.masks[0].tolist()

    def observe(self, agent: str) -> Any:
        """Give what an agent sees: the same arrays until the market moves."""
        return self._seen[agent]

    def step(self, action: Any) -> None:
        """Take the action of `agent_selection`; None where its episode is over.

        errors   RuntimeError before reset and after the end; ValueError for an action that cannot be read, is out of range, or is
                 masked (unless masked="idle")
        """
        if not self.agents:
            raise RuntimeError("step: no episode is under way; call reset() first")
        agent = self.agent_selection
        if self.truncations[agent]:
            self._was_dead_step(action)
            return
        self._chosen[self._turn] = self._read(agent, action)
        self._turn += 1
        if self._turn == 1:
            self.rewards = self._nothing.copy()
        self._cumulative_rewards[agent] = 0.0
        if self._turn == len(self.agents):
            self._move()
        self.agent_selection = self.agents[self._turn]

    def _move(self) -> None:
        """Let a step of the market pass: all have acted since the last, so what it brings is all that they have to come."""
        over = self._advance(self._chosen)
        self._turn = 0
        self._see()
        self.rewards = dict(zip(self.possible_agents, self.batch.rewards[0].tolist(), strict=True))
        self._cumulative_rewards = self.rewards.copy()
        if over:
            self.truncations = dict.fromkeys(self.possible_agents, True)

    def _read(self, agent: str, action: Any) -> list[int]:
        """Read one action as levels, and check it."""
        found = np.asarray(action)
        if found.dtype.kind not in "iu" or found.shape != self.action_space(agent).shape:
            raise ValueError(f"{agent}: {self._say_action(action)}")
        levels: list[int] = self._unflatten(agent, int(found)) if self._flat else found.tolist()
        if self._idle:
            return levels
        allowed = self._allowed[self._turn]
        for head, level in enumerate(levels):
            if not 0 <= level < LEVELS:
                raise ValueError(f"{agent}: {self._say_action(action)}")
            if not allowed[head * LEVELS + level]:
                possible = [k for k in range(LEVELS) if allowed[head * LEVELS + k]]
                name = ACTION_NAMES[head]
                raise ValueError(
                    f"{agent}: {name} must be one of the levels {possible} that its action mask allows now, got {level}"
                )
        return levels

    def _unflatten(self, agent: str, number: int) -> list[int]:
        if not 0 <= number < LEVELS ** len(ACTION_NVEC):
            raise ValueError(f"{agent}: {self._say_action(number)}")
        return [number // LEVELS**2, number // LEVELS % LEVELS, number % LEVELS]

    def save(self) -> dict[str, NDArray[Any]]:
        """Copy the whole state, as it stood before the first turn; RuntimeError in the midst of the turns."""
        if self._turn != 0:
            raise RuntimeError(f"save: it is the turn of {self.agent_selection}; save between two steps of the market")
        return super().save()

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Continue from a saved state of the same scenario; ValueError for another."""
        self._restore(state)
        self._begin()


def parallel_env(scenario: Any = "wwwserve", **arguments: Any) -> ParallelMarket:
    """Make the environment in which all act at once; arguments as in this file's head."""
    return ParallelMarket(scenario, **arguments)


def raw_env(scenario: Any = "wwwserve", **arguments: Any) -> TurnMarket:
    """Make the environment in which all act in turn; arguments as in this file's head."""
    return TurnMarket(scenario, **arguments)


def env(scenario: Any = "wwwserve", **arguments: Any) -> AECEnv[str, Any, Any]:
    """Make the environment in which all act in turn, guarded against calls out of order; arguments as in this file's head."""
    return OrderEnforcingWrapper(raw_env(scenario, **arguments))
