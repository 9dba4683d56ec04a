"""Learns one policy for all providers by MAPPO: PPO with action masks, and a critic that sees all providers of a network.

The critic serves learning alone: what is exported, the actor, sees one provider's observation. Gets a batch of networks handed in
and steps it directly; knows neither the simulator nor the market. All chance comes from one generator, whose state is in the
checkpoint with weights, Adam's moments and the environment's state, so that a resumed run equals one that never stopped, bit for
bit, on the same machine with the same libraries, number of threads and settings.

source   Yu et al. 2022 (arXiv 2103.01955)
differs  what the critic sees is pooled over providers, so that their number and order are free
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents import checkpoint as disk
from agents.checkpoint import Checkpoint
from agents.iterations import Iterations, Probe, Resumable, Trained, carry_out, minibatch_rows
from agents.league import League, Seats
from agents.networks import HEADS, Actor, Critic, chosen, draw, log_chances, start_small
from agents.settings import MappoLearner
from agents.start import put_start
from agents.tracking import Tracker
from agents.weights import moments_of, put_moments, put_weights, weights_of
from market.action import MASK_SIZE
from market.observation import OBSERVATION_SIZE


class Market(Resumable, Seats, Protocol):
    """What learning asks of a batch of networks that start anew by themselves; its arrays stay the same from step to step."""

    observations: NDArray[np.float32]  # (networks, providers, OBSERVATION_SIZE)
    final_observations: NDArray[np.float32]  # likewise: where an episode has just ended, its last sight
    masks: NDArray[np.int8]  # (networks, providers, MASK_SIZE)
    rewards: NDArray[np.float64]  # (networks, providers)
    truncated: NDArray[np.bool_]  # (networks,) an episode has just ended; the only way that one ends

    def step(self, actions: NDArray[np.int64]) -> None:
        """Let one control step pass; (networks, providers, 3) levels."""


def advantages(rewards: Tensor, values: Tensor, after: Tensor, ended: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Estimate how much better each action was than expected, (decisions, networks, providers).

    rewards  (decisions, networks, providers)
    values   likewise, of what was seen at each decision
    after    likewise, of what was seen one decision later, before a new episode
    ended    (decisions, networks) an episode was cut off after this decision
    source   Schulman et al. 2016 (arXiv 1506.02438)
    """
    surprise = rewards + gamma * after - values
    carried = gamma * gae_lambda * (~ended)[..., None]
    out = torch.empty_like(surprise)
    later = torch.zeros_like(surprise[0])
    for t in range(len(surprise) - 1, -1, -1):
        later = surprise[t] + carried[t] * later
        out[t] = later
    return out


class Rollout:
    """What was seen and done in an iteration, (decisions, networks, providers, ...), and what followed."""

    def __init__(self, decisions: int, networks: int, providers: int) -> None:
        rows = (decisions, networks, providers)
        self.observations = torch.zeros(*rows, OBSERVATION_SIZE)
        self.masks = torch.zeros(*rows, MASK_SIZE, dtype=torch.bool)
        self.logits = torch.zeros(*rows, MASK_SIZE)
        self.actions = torch.zeros(*rows, HEADS, dtype=torch.int64)
        self.rewards = torch.zeros(*rows)
        self.own = torch.ones(*rows, dtype=torch.bool)  # False: a stranger of the league sat here
        self.ended = torch.zeros(decisions, networks, dtype=torch.bool)
        self.last = torch.zeros(networks, providers, OBSERVATION_SIZE)
        self.finals: list[Tensor] = []  # (ended then, providers, OBSERVATION_SIZE) last sights, in the order of `ended`


class Batches(NamedTuple):
    """A rollout as gradient steps take it: groups, each a network at a decision, so that a critic sees all its providers.

    Of a learner with memory a group is a network with all its decisions: (groups, decisions, providers, ...).
    """

    group: Tensor  # (groups,) its place in the rollout
    observations: Tensor  # (groups, providers, OBSERVATION_SIZE)
    masks: Tensor  # (groups, providers, MASK_SIZE) bool
    actions: Tensor  # (groups, providers, 3)
    log_chance: Tensor  # (groups, providers) of the action, when it was drawn
    advantage: Tensor  # (groups, providers) of mean 0 and deviation 1
    target: Tensor  # (groups, providers) returns, in the critic's units
    own: Tensor  # (groups, providers) bool; the other rows teach nothing


class Mappo:
    """An actor, a critic, and what they learn in.

    market    a batch that has not been stepped
    settings  of conf/agents/mappo.yaml
    seed      of weights, exploration and the order of gradient steps
    """

    def __init__(self, market: Market, settings: MappoLearner, seed: int) -> None:
        torch.set_num_threads(settings.torch_threads)
        self.market, self.settings, self.steps = market, settings, 0
        self.random = torch.Generator().manual_seed(seed)
        self.actor, self.critic = self._make_actor(), Critic(settings.critic_hidden)
        start_small(self.actor, self.actor.heads, 0.01, self.random)
        start_small(self.critic, self.critic.value, 1.0, self.random)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), eps=1e-5)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), eps=1e-5)
        self.league = League(settings.league, market, self.random) if settings.league else None
        self._rollout = Rollout(settings.rollout, market.networks, market.providers)

    # -- what a learner with memory does otherwise

    def _make_actor(self) -> Actor:
        return Actor(self.settings.hidden)

    def _play(self, seen: Tensor) -> Tensor:
        """Give the logits of a decision; (networks, providers, ...)."""
        logits: Tensor = self.actor(seen)
        return logits

    def _end(self, ended: Tensor) -> None:
        """Hear of the networks in which an episode has just ended, (networks,) bool."""

    def _cut(self, column: Tensor) -> Tensor:
        """Cut a column of a rollout into groups."""
        return column.flatten(0, 1)

    def _logits(self, batch: "Batches", mine: Any) -> Tensor:
        """Give the logits of the rows `mine` of a batch again."""
        logits: Tensor = self.actor(batch.observations[mine])
        return logits

    @property
    def memory_parts(self) -> dict[str, nn.Linear]:
        """Name the parts of the actor's memory, as agents.start takes them."""
        return {}

    # -- learning

    @property
    def policy(self) -> Actor:
        """Give the actor; the critic serves learning alone."""
        return self.actor

    def begin(self) -> None:
        """Take the weights of the policy to start from, if one is named, and seat the first strangers."""
        if self.settings.start:
            put_start(self.settings, {"hidden": self.actor.hidden, "heads": self.actor.heads}, self.memory_parts)
        if self.league:
            self.league.start(self.actor)

    def go_on(self, iterations: Iterations) -> None:
        """Learn until the settings' steps, or until the iterations are over."""
        while self.steps < self.settings.steps and not iterations.over:
            figures = self.iterate(iterations)
            iterations.close(self.steps, figures, last=self.steps >= self.settings.steps)

    def iterate(self, iterations: Iterations) -> dict[str, float]:
        """Play a rollout and learn from it; returns the figures of the learner."""
        left = max(0.0, 1 - self.steps / self.settings.steps) if self.settings.schedule == "linear" else 1.0
        self.actor_adam.param_groups[0]["lr"] = left * self.settings.learning_rate
        self.critic_adam.param_groups[0]["lr"] = left * self.settings.critic_learning_rate
        self._collect(iterations)
        figures = self._learn(self._judge())
        self.steps += self._rollout.rewards.numel()
        if self.league:
            self.league.remember(self.actor, self.steps)
        return figures | {"learner/learning_rate": left * self.settings.learning_rate}

    @torch.inference_mode()
    def _collect(self, iterations: Iterations) -> None:
        """Let the actor play."""
        market, rollout = self.market, self._rollout
        rollout.finals = []
        for t in range(self.settings.rollout):
            seen, masks, logits = rollout.observations[t], rollout.masks[t], rollout.logits[t]
            seen.copy_(torch.from_numpy(market.observations))
            masks.copy_(torch.from_numpy(market.masks))
            logits.copy_(self._play(seen))
            if self.league:
                rollout.own[t] = self.league.own
                self.league.overrule(seen, logits)
            rollout.actions[t] = draw(logits, masks, self.random)
            market.step(rollout.actions[t].numpy())
            rollout.rewards[t] = torch.from_numpy(market.rewards)
            rollout.ended[t] = torch.from_numpy(market.truncated)
            if market.truncated.any():
                rollout.finals.append(torch.from_numpy(market.final_observations[market.truncated]))
                self._end(rollout.ended[t])
                if self.league:
                    self.league.seat(market.truncated)
            iterations.note(float(rollout.rewards[t][rollout.own[t]].mean()))
        rollout.last.copy_(torch.from_numpy(market.observations))

    @torch.no_grad()
    def _judge(self) -> Batches:
        """Let the critic say what each action was worth, once for the whole rollout."""
        rollout, critic = self._rollout, self.critic
        values = self._values(rollout.observations.flatten(0, 1)).reshape(rollout.rewards.shape)
        after = torch.cat([values[1:], critic.values(rollout.last)[None]])
        if rollout.finals:
            after[rollout.ended] = self._values(torch.cat(rollout.finals))
        gain = advantages(rollout.rewards, values, after, rollout.ended, self.settings.gamma, self.settings.gae_lambda)
        returns, mine = gain + values, gain[rollout.own]
        self.explained = float(1 - mine.var() / returns[rollout.own].var().clamp(min=1e-12))
        critic.rescale(returns[rollout.own])
        chances = log_chances(rollout.logits, rollout.masks)
        parts = (
            rollout.observations,
            rollout.masks,
            rollout.actions,
            chosen(chances, rollout.actions),
            (gain - mine.mean()) / (mine.std() + 1e-8),
            critic.scaled(returns),
            rollout.own,
        )
        columns = [self._cut(part) for part in parts]
        return Batches(torch.arange(len(columns[0])), *columns)

    def _values(self, observations: Tensor) -> Tensor:
        """Values of many groups, in parts that fit the processor's caches."""
        part = self._groups(self.settings.rollout * self.market.networks)
        return torch.cat([self.critic.values(part) for part in torch.split(observations, part)])

    def _groups(self, count: int) -> int:
        """Groups of a gradient step, where a rollout has `count`."""
        return minibatch_rows(count, -(-self.settings.minibatch * count // self._rollout.rewards.numel()))

    def _learn(self, batches: Batches) -> dict[str, float]:
        """Take the gradient steps of an iteration."""
        sums: dict[str, Tensor] = {}
        count, each = len(batches.target), self._groups(len(batches.target))
        for _ in range(self.settings.epochs):
            order = torch.randperm(count, generator=self.random)
            for part in torch.split(order, each):
                for name, value in self._step(Batches(*(column[part] for column in batches))).items():
                    sums[name] = sums.get(name, torch.zeros(())) + value
        steps = self.settings.epochs * count // each
        means = {f"learner/{name}": float(total) / steps for name, total in sums.items()}
        return means | {"learner/explained_variance": self.explained}

    def _step(self, batch: Batches) -> dict[str, Tensor]:
        """Take one gradient step; the actor's waits for the critic's warm-up."""
        mine: Any = batch.own if self.league else ...  # without strangers, a view of all
        value_loss = (self.critic(batch.observations)[mine] - batch.target[mine]).square().mean()
        self._descend(self.critic, self.critic_adam, value_loss)
        chances = log_chances(self._logits(batch, mine), batch.masks[mine])
        log_ratio = chosen(chances, batch.actions[mine]) - batch.log_chance[mine]
        ratio, advantage, clip = log_ratio.exp(), batch.advantage[mine], self.settings.clip
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
        entropy = -(chances.exp() * chances).sum((-1, -2)).mean()
        loss = -gain - self.settings.ent_coef * entropy
        if self.steps >= self.settings.warmup:
            self._descend(self.actor, self.actor_adam, loss)
        with torch.no_grad():
            figures = {
                "loss": loss + value_loss,
                "policy_gradient_loss": -gain,
                "value_loss": value_loss,
                "entropy_loss": -entropy,
                "approx_kl": (ratio - 1 - log_ratio).mean(),
                "clip_fraction": ((ratio - 1).abs() > clip).float().mean(),
            }
        return {name: value.detach() for name, value in figures.items()}

    def _descend(self, network: nn.Module, adam: torch.optim.Optimizer, loss: Tensor) -> None:
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), self.settings.max_grad_norm)
        adam.step()

    def pack(self, wall_s: float, tracker_id: str | None) -> Checkpoint:
        """Gather all that the run's future depends on."""
        arrays = {
            **disk.above(weights_of(self.actor), "actor"),
            **disk.above(weights_of(self.critic), "critic"),
            **disk.above(moments_of(self.actor_adam), "actor_moments"),
            **disk.above(moments_of(self.critic_adam), "critic_moments"),
            **disk.above(self.market.save(), "environment"),
            **disk.above(self.league.save() if self.league else {}, "league"),
            "random": self.random.get_state().numpy(),
        }
        facts = {"agents": asdict(self.settings), "steps": self.steps, "wall_s": wall_s, "tracker_id": tracker_id}
        return Checkpoint(arrays, facts | {"shape": self._shape()})

    def unpack(self, stored: Checkpoint, place: str) -> None:
        """Go on where a stored run stood.

        errors   CheckpointError when it had another shape, or parts are missing
        """
        disk.check_shape(self._shape(), stored, place)
        with disk.refusing(place):
            put_weights(self.actor, disk.below(stored.arrays, "actor"))
            put_weights(self.critic, disk.below(stored.arrays, "critic"))
            put_moments(self.actor_adam, disk.below(stored.arrays, "actor_moments"))
            put_moments(self.critic_adam, disk.below(stored.arrays, "critic_moments"))
            self.random.set_state(torch.from_numpy(stored.arrays["random"]))
            self.market.restore(disk.below(stored.arrays, "environment"))
            if self.league:
                self.league.restore(disk.below(stored.arrays, "league"), self.actor)
            self.steps = int(stored.facts["steps"])

    def _shape(self) -> dict[str, Any]:
        """Name what two runs must have in common for one to go on from the other."""
        return {
            "agents.name": self.settings.name,
            "agents.hidden": list(self.settings.hidden),
            "agents.critic_hidden": list(self.settings.critic_hidden),
            "agents.control_s": self.settings.control_s,
            "agents.league": asdict(league) | {"pool": list(league.pool)} if (league := self.settings.league) else None,
            "networks": self.market.networks,
            "providers": self.market.providers,
            "observation size": OBSERVATION_SIZE,
        }


def learn(
    market: Market,
    settings: MappoLearner,
    tracker: Tracker,
    *,
    seed: int,
    folder: Path,
    resume: Path | None = None,
    probe: Probe | None = None,
) -> Trained:
    """Train in a market that has not been stepped; the rest, and the errors, as agents.iterations.carry_out."""
    return carry_out(Mappo(market, settings, seed), settings, tracker, folder=folder, resume=resume, probe=probe)
