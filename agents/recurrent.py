"""Learns one policy that remembers: the learner of agents.mappo with a gated recurrent unit in its actor.

Gradients flow back through a rollout, whose first memory is kept as it was; a memory begins at zero with each episode. It is the
checkpoint's, too, so that a resumed run equals one that never stopped. The critic remembers nothing: it sees all providers.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agents import checkpoint as disk
from agents.checkpoint import Checkpoint
from agents.iterations import Iterations, Probe, Trained, carry_out
from agents.mappo import Batches, Mappo, Market
from agents.networks import RecurrentActor
from agents.settings import RecurrentLearner
from agents.tracking import Tracker


class Recurrent(Mappo):
    """See agents.mappo.Mappo; settings of conf/agents/recurrent.yaml."""

    settings: RecurrentLearner
    actor: RecurrentActor

    def __init__(self, market: Market, settings: RecurrentLearner, seed: int) -> None:
        super().__init__(market, settings, seed)
        nn.init.orthogonal_(self.actor.recall.weight, 0.01, generator=self.random)
        self.memory = torch.zeros(market.networks, market.providers, settings.memory)
        self._first = self.memory.clone()  # before the rollout

    def _make_actor(self) -> RecurrentActor:
        return RecurrentActor(self.settings.hidden, self.settings.memory)

    @property
    def memory_parts(self) -> dict[str, nn.Linear]:
        """See Mappo.memory_parts."""
        return {"seen": self.actor.seen, "kept": self.actor.kept, "recall": self.actor.recall}

    @torch.inference_mode()
    def _collect(self, iterations: Iterations) -> None:
        self._first.copy_(self.memory)
        super()._collect(iterations)

    def _play(self, seen: Tensor) -> Tensor:
        logits: Tensor
        logits, after = self.actor(seen, self.memory)
        self.memory.copy_(after)
        return logits

    def _end(self, ended: Tensor) -> None:
        self.memory[ended] = 0

    def _cut(self, column: Tensor) -> Tensor:
        return column.transpose(0, 1).contiguous()

    def _logits(self, batch: Batches, mine: Any) -> Tensor:
        ended = self._rollout.ended.T[batch.group]
        begins = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], 1)
        return self.actor.unroll(batch.observations, self._first[batch.group], begins)

    def pack(self, wall_s: float, tracker_id: str | None) -> Checkpoint:
        """See Mappo.pack."""
        whole = super().pack(wall_s, tracker_id)
        return whole._replace(arrays={**whole.arrays, "memory": self.memory.numpy().copy()})

    def unpack(self, stored: Checkpoint, place: str) -> None:
        """See Mappo.unpack."""
        super().unpack(stored, place)
        with disk.refusing(place):
            self.memory.copy_(torch.from_numpy(stored.arrays["memory"]))

    def _shape(self) -> dict[str, Any]:
        return super()._shape() | {"agents.memory": self.settings.memory}


def learn(
    market: Market,
    settings: RecurrentLearner,
    tracker: Tracker,
    *,
    seed: int,
    folder: Path,
    resume: Path | None = None,
    probe: Probe | None = None,
) -> Trained:
    """Train in a market that has not been stepped; the rest, and the errors, as agents.iterations.carry_out."""
    return carry_out(Recurrent(market, settings, seed), settings, tracker, folder=folder, resume=resume, probe=probe)
