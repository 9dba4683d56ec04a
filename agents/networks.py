"""The networks of our own learners, and how levels are drawn from logits under an action mask.

An actor sees one provider's observation and is what is exported; a critic sees a whole network and serves learning alone.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from market.action import ACTION_NVEC, LEVELS, MASK_SIZE
from market.observation import OBSERVATION_SIZE

HEADS = len(ACTION_NVEC)
IMPOSSIBLE = -1e9
"""Logit of a level that the mask forbids: its probability is exactly 0, and its entropy, too."""
SLOWEST = 0.05
"""Least weight of an iteration's returns in the running scale of values."""


def layers(sizes: Sequence[int]) -> nn.Sequential:
    """Make linear layers, each before a tanh."""
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        parts += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*parts)


class Actor(nn.Module):
    """One provider's observation -> logits of all heads; its layers are named as those of an exported policy."""

    def __init__(self, hidden: Sequence[int]) -> None:
        super().__init__()
        self.hidden = layers([OBSERVATION_SIZE, *hidden])
        self.heads = nn.Linear([OBSERVATION_SIZE, *hidden][-1], MASK_SIZE)

    def forward(self, observations: Tensor) -> Tensor:
        """(n, OBSERVATION_SIZE) -> (n, MASK_SIZE)."""
        logits: Tensor = self.heads(self.hidden(observations))
        return logits


class RecurrentActor(Actor):
    """One provider's observation and memory -> logits of all heads and the next memory: a gated recurrent unit beside the heads.

    Without `recall` it is an Actor: what is seen now reaches the heads by itself, and the memory adds what has been seen before.

    source   Cho et al. 2014 (arXiv 1406.1078)
    """

    def __init__(self, hidden: Sequence[int], memory: int) -> None:
        super().__init__(hidden)
        self.memory = memory
        self.seen = nn.Linear(self.heads.in_features, 3 * memory)
        self.kept = nn.Linear(memory, 3 * memory)
        self.recall = nn.Linear(memory, MASK_SIZE, bias=False)

    def forward(self, observations: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # it asks for more
        """(n, OBSERVATION_SIZE) and (n, memory) -> (n, MASK_SIZE) and (n, memory), that of the next decision."""
        features = self.hidden(observations)
        after = self._move(self.seen(features), memory)
        return self.heads(features) + self.recall(after), after

    def unroll(self, observations: Tensor, memory: Tensor, begins: Tensor) -> Tensor:
        """Logits of whole sequences, (networks, decisions, providers, MASK_SIZE).

        observations  (networks, decisions, providers, OBSERVATION_SIZE)
        memory        (networks, providers, memory) before the first decision
        begins        (networks, decisions) bool: an episode begins with this decision, and memory with it
        """
        features = self.hidden(observations)
        seen, goes_on = self.seen(features), (~begins).to(memory.dtype)[..., None, None]
        held = []
        for t in range(observations.shape[1]):
            memory = self._move(seen[:, t], memory * goes_on[:, t])
            held.append(memory)
        logits: Tensor = self.heads(features) + self.recall(torch.stack(held, 1))
        return logits

    def _move(self, seen: Tensor, memory: Tensor) -> Tensor:
        """Move memory on; `seen` is what the gates make of the features, (..., 3 memory)."""
        reset, stay, new = seen.chunk(3, -1)
        held_reset, held_stay, held_new = self.kept(memory).chunk(3, -1)
        candidate = (new + (reset + held_reset).sigmoid() * held_new).tanh()
        moved: Tensor = candidate + (stay + held_stay).sigmoid() * (memory - candidate)
        return moved


class Critic(nn.Module):
    """The observations of all providers of a network -> the value of each provider.

    Each provider is embedded; mean and maximum of the embeddings sum the network up, once for all. What a value is made of, own
    embedding and summary, does not depend on the order of the providers, nor the weights on their number.
    Values are learned in units of the returns' deviation, which `rescale` follows.

    source   PopArt, van Hasselt et al. 2016 (arXiv 1602.07714)
    """

    mean: Tensor  # of returns, running
    square: Tensor  # mean square of returns, running
    updates: Tensor

    def __init__(self, hidden: Sequence[int]) -> None:
        super().__init__()
        embedded, *above = hidden
        above = above or [embedded]
        self.embed = layers([OBSERVATION_SIZE, embedded])
        self.own = nn.Linear(embedded, above[0])
        self.others = nn.Linear(2 * embedded, above[0], bias=False)
        self.above = nn.Sequential(nn.Tanh(), *layers(above))
        self.value = nn.Linear(above[-1], 1)
        for name, start in (("mean", 0.0), ("square", 1.0), ("updates", 0.0)):
            self.register_buffer(name, torch.tensor(start))

    def forward(self, observations: Tensor) -> Tensor:
        """(..., providers, OBSERVATION_SIZE) -> (..., providers), in units of `deviation` around `mean`."""
        each = self.embed(observations)
        network = self.others(torch.cat([each.mean(-2), each.amax(-2)], dim=-1))
        values: Tensor = self.value(self.above(self.own(each) + network[..., None, :])).squeeze(-1)
        return values

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of returns."""
        return (self.square - self.mean.square()).clamp(min=1e-8).sqrt()

    def values(self, observations: Tensor) -> Tensor:
        """As forward, in rewards."""
        return torch.addcmul(self.mean, self.deviation, self(observations))

    def scaled(self, returns: Tensor) -> Tensor:
        """Returns in the units of forward."""
        return (returns - self.mean) / self.deviation

    @torch.no_grad()
    def rescale(self, returns: Tensor) -> None:
        """Move mean and deviation towards those of `returns`; values in rewards stay as they are."""
        mean, deviation = self.mean.clone(), self.deviation
        self.updates.add_(1)
        weight = max(SLOWEST, 1 / float(self.updates))
        self.mean.lerp_(returns.mean(), weight)
        self.square.lerp_(returns.square().mean(), weight)
        ratio = deviation / self.deviation
        self.value.weight.mul_(ratio)
        self.value.bias.mul_(ratio).add_((mean - self.mean) / self.deviation)


def start_small(network: nn.Module, last: nn.Linear, gain: float, random: torch.Generator) -> None:
    """Draw orthogonal weights, as SB3 does: large in between, small in the last layer, without biases."""
    for part in network.modules():
        if isinstance(part, nn.Linear):
            nn.init.orthogonal_(part.weight, gain if part is last else 2**0.5, generator=random)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def log_chances(logits: Tensor, masks: Tensor) -> Tensor:
    """Log-probabilities of all levels, (..., 3, 5).

    logits   (..., MASK_SIZE)
    masks    (..., MASK_SIZE) bool, True = possible
    """
    return _heads(logits, masks).log_softmax(-1)


def draw(logits: Tensor, masks: Tensor, random: torch.Generator) -> Tensor:
    """Draw levels, (..., 3) int64, none that the mask forbids: the greatest logit after Gumbel noise is a draw of the softmax."""
    noise = -torch.empty_like(logits).exponential_(generator=random).log()
    return _heads(logits + noise, masks).argmax(-1)


def _heads(logits: Tensor, masks: Tensor) -> Tensor:
    return logits.masked_fill(~masks, IMPOSSIBLE).reshape(*logits.shape[:-1], HEADS, LEVELS)


def chosen(chances: Tensor, actions: Tensor) -> Tensor:
    """Log-probability of whole actions: (..., 3, 5) and (..., 3) -> (...)."""
    return chances.gather(-1, actions[..., None])[..., 0].sum(-1)
