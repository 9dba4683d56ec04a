"""What the tests of this folder share: a rough scenario, random legal actions, and whole episodes as digests.

`python -m tests.envs.wwwserve.play NAME SEED` prints the digests of an episode, for tests that compare processes.
"""

import hashlib
import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from envs.wwwserve import load
from envs.wwwserve.batch import Batch
from envs.wwwserve.scenario import Group, Scenario
from market.action import LEVELS
from market.terms import Terms

SMALL = [name for name in load.names("env") if load.scenario(name).population <= 64]
LARGE = [name for name in load.names("env") if name not in SMALL]
SCENARIOS = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
"""Every shipped scenario; those of hundreds of providers take minutes in PettingZoo's tests, agent by agent."""
ROUGH = "rough"
"""Not a file: the default scenario with crashes every few minutes, and many duels."""
ROGUES = "rogues"
"""Not a file: the same under the released code's terms, with one who only asks, and a coalition that shares an engine."""


def scenario_of(name: str) -> Scenario:
    if name not in (ROUGH, ROGUES):
        return load.scenario(name)
    calm = load.scenario("wwwserve")
    groups = [_roughen(group) for group in calm.providers]
    if name == ROGUES:
        groups = [_as(groups[0], 4, 1.0, None), _as(groups[0], 1, 0.0, None), _as(groups[0], 3, 0.6, "ring")]
    return replace(calm, providers=groups, horizon_s=400.0, arrivals_until_s=400.0)


def _as(group: Group, count: int, engine: float, coalition: str | None) -> Group:
    standing = replace(group.standing, wealth=0.5, engine=engine, coalition=coalition)
    demand = replace(group.demand, unit="requests_per_s") if engine == 0.0 else group.demand
    return replace(group, count=count, demand=demand, standing=standing)


def _roughen(group: Group) -> Group:
    schedule = [row for row in group.demand.schedule if row[0] <= 400.0]
    return replace(group, demand=replace(group.demand, schedule=schedule), online=replace(group.online, up_s=200.0, down_s=40.0))


def terms_of(name: str) -> Terms:
    if name == ROGUES:
        return replace(load.terms("released"), duel_ttl_s=60.0)
    return replace(load.terms(), duel_rate=0.5, duel_ttl_s=60.0) if name == ROUGH else load.terms()


def make(name: str, **arguments: Any) -> Batch:
    scenario = scenario_of(name)
    profiles = load.profiles({profile for group in scenario.providers for profile in group.profiles})
    return Batch(scenario, terms_of(name), profiles, **arguments)


def draw_legal(masks: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A level that the mask allows for each head, each as likely: masks (..., 15) -> (..., 3)."""
    weight = random.random(masks.shape) * masks
    return weight.reshape(*masks.shape[:-1], 3, LEVELS).argmax(axis=-1)


class Players:
    """One stream of random actions a network, so that a network gets the same wherever it stands in a batch."""

    def __init__(self, networks: int, first: int = 0) -> None:
        self.streams = [np.random.default_rng((7, first + n)) for n in range(networks)]

    def act(self, masks: np.ndarray) -> np.ndarray:
        return np.stack([draw_legal(masks[n], stream) for n, stream in enumerate(self.streams)])


def episode_digests(batch: Batch, steps: int, first: int = 0) -> list[str]:
    """Play random legal actions; one digest a network of all that was seen, allowed and rewarded in each step."""
    players = Players(batch.networks, first)
    digests = [hashlib.sha256() for _ in range(batch.networks)]
    for _ in range(steps):
        batch.step(players.act(batch.masks))
        for n, digest in enumerate(digests):
            for array in (
                batch.observations,
                batch.masks,
                batch.rewards,
                batch.reward_parts,
                batch.truncated,
                batch.final_observations,
            ):
                digest.update(array[n].tobytes())
    for table in (batch.accounts(), batch.counters(), batch.totals()):
        for values in table.values():
            for n, digest in enumerate(digests):
                digest.update(values[n].tobytes())
    return [digest.hexdigest() for digest in digests]


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether two saved states are the same, field by field and byte by byte; what lies between the fields counts for nothing."""
    return one.keys() == other.keys() and all(_bytes(one[name]) == _bytes(other[name]) for name in one)


def _bytes(array: np.ndarray) -> list[bytes]:
    return [array[field].tobytes() for field in array.dtype.names] if array.dtype.names else [array.tobytes()]


if __name__ == "__main__":
    market = make(sys.argv[1], networks=2, seed=int(sys.argv[2]))
    print(json.dumps(episode_digests(market, market.steps_per_episode + 3)))
