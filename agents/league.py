"""Co-players that are no copies of the learner: past selves, policies on disk and baselines take seats in some networks.

A pool of frozen members; who sits where is drawn anew at the start of each episode of a network, all strangers of a network being
of one kind. Their rows are for whoever learns to leave out.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents import checkpoint as disk
from agents.networks import HEADS, Actor
from agents.policy import LevelsPolicy, OnnxPolicy, Policy, load
from agents.settings import LeagueSettings
from agents.weights import put_weights, weights_of
from market.action import LEVELS, MASK_SIZE

NOBODY = -1
WANTED, IDLE = 1e4, 5e3
"""Logits of a fixed policy: its level is certain, or level 0 where the mask forbids that."""


class Seats(Protocol):
    """What a league asks of a batch of networks."""

    networks: int
    providers: int

    def pin(self, brain: str, providers: list[int] | None = None, networks: list[int] | None = None) -> None:
        """Let providers of some networks follow "paper" rules, or the "policy" whose actions are given; None = all."""


class Member(NamedTuple):
    """One kind of stranger."""

    name: str
    brain: str  # "paper": the environment itself plays it
    logits: Callable[[Tensor], Tensor]  # (n, OBSERVATION_SIZE) -> (n, MASK_SIZE)


def member(name: str) -> Member:
    """Find a member by its name, as agents.policy.load; errors as there."""
    found = load(name)
    assert found.dispatch == "market", f"{name}: settings are checked before"
    return Member(found.name, found.brain, _logits(found.policy))


def _logits(policy: Policy) -> Callable[[Tensor], Tensor]:
    """Give the logits that a policy draws its levels from."""
    if isinstance(policy, OnnxPolicy):
        assert policy.memory is None, f"{policy.name}: settings are checked before"
        return lambda seen: torch.from_numpy(policy.logits(seen.numpy()))
    row = torch.zeros(HEADS, LEVELS)
    if isinstance(policy, LevelsPolicy):
        row[:, 0] = IDLE
        row[range(HEADS), policy.levels] = WANTED
    return lambda seen: row.reshape(1, MASK_SIZE).expand(len(seen), MASK_SIZE)


class League:
    """The pool, and who sits where.

    settings  of agents.league
    seats     the batch that is learned in
    random    of whoever learns, and in its checkpoint
    """

    def __init__(self, settings: LeagueSettings, seats: Seats, random: torch.Generator) -> None:
        self.settings, self.seats, self.random = settings, seats, random
        self.named = [member(name) for name in settings.pool]
        self.snapshots: list[Actor] = []
        self.own = torch.ones(seats.networks, seats.providers, dtype=torch.bool)  # seats of the learner
        self.playing: NDArray[np.int64] = np.full(seats.networks, NOBODY)  # member of each network: the named first, then snapshots
        self._taken = 0

    def start(self, actor: Actor) -> None:
        """Take the first snapshot, and draw the seats of all networks."""
        self._add(actor)
        self.seat(np.ones(self.seats.networks, bool))

    def remember(self, actor: Actor, steps: int) -> None:
        """Take a snapshot when one is due; one at random leaves a full pool, so that all ages stay in it."""
        if steps - self._taken >= self.settings.snapshot_every:
            self._taken = steps
            self._add(actor)

    def _add(self, actor: Actor) -> None:
        if self.settings.snapshots == 0:
            return
        snapshot = copy.deepcopy(actor)
        if len(self.snapshots) < self.settings.snapshots:
            self.snapshots.append(snapshot)
        else:
            self.snapshots[self._below(len(self.snapshots))] = snapshot

    def seat(self, anew: NDArray[np.bool_]) -> None:
        """Draw members and seats of the networks in which an episode begins.

        anew   (networks,)
        """
        providers = self.seats.providers
        strangers = min(providers - 1, max(1, round(self.settings.seats * providers)))
        for n in np.flatnonzero(anew).tolist():
            self.own[n] = True
            self.playing[n] = NOBODY
            self.seats.pin("policy", None, [n])
            if self._chance(self.settings.networks) and strangers > 0:
                taken = torch.randperm(providers, generator=self.random)[:strangers]
                self.own[n, taken] = False
                self.playing[n] = self._draw_member()
                if self.member(self.playing[n]).brain == "paper":
                    self.seats.pin("paper", taken.tolist(), [n])

    def member(self, index: int) -> Member:
        """Give a member of the pool."""
        if index < len(self.named):
            return self.named[index]
        return Member("past self", "policy", self.snapshots[index - len(self.named)])

    def overrule(self, seen: Tensor, logits: Tensor) -> None:
        """Put the strangers' logits in the place of the learner's.

        seen     (networks, providers, OBSERVATION_SIZE)
        logits   (networks, providers, MASK_SIZE), changed in place
        """
        for index in np.unique(self.playing[self.playing != NOBODY]).tolist():
            rows = ~self.own & torch.from_numpy(self.playing == index)[:, None]
            logits[rows] = self.member(index).logits(seen[rows])

    def _draw_member(self) -> int:
        if self.snapshots and (not self.named or self._chance(self.settings.past)):
            return len(self.named) + self._below(len(self.snapshots))
        return self._below(len(self.named))

    def _chance(self, share: float) -> bool:
        return float(torch.rand(1, generator=self.random)) < share

    def _below(self, end: int) -> int:
        return int(torch.randint(end, (1,), generator=self.random))

    def save(self) -> dict[str, NDArray[Any]]:
        """Copy what the run's future depends on."""
        state = {"own": self.own.numpy().copy(), "playing": self.playing.copy(), "taken": np.array(self._taken)}
        state["snapshots"] = np.array(len(self.snapshots))
        for place, actor in enumerate(self.snapshots):
            state |= disk.above(weights_of(actor), f"snapshot{place}")
        return state

    def restore(self, state: Mapping[str, NDArray[Any]], actor: Actor) -> None:
        """Go on from a saved state; `actor` has the form of the snapshots. KeyError for a lacking part."""
        self.own, self.playing = torch.from_numpy(state["own"].copy()), state["playing"].copy()
        self._taken = int(state["taken"])
        self.snapshots = [copy.deepcopy(actor) for _ in range(int(state["snapshots"]))]
        for place, snapshot in enumerate(self.snapshots):
            put_weights(snapshot, disk.below(state, f"snapshot{place}"))
