"""Who sits where: one policy steers all providers of a market but those in whose seats visitors sit."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from agents.card import PolicyError
from agents.policy import Actions, Baseline


class Seated:
    """Asks the residents' policy for all rows, and a visitor's for the rows of its seats."""

    def __init__(self, residents: Baseline, visitors: Mapping[int, Baseline], providers: int) -> None:
        """Take the seats (indices within a network) of each visitor; rows are all providers of network 0, then of network 1, ...

        errors  PolicyError for a seat that does not exist, and for a scheduler, which replaces the market and sits nowhere
        """
        for seat, visitor in visitors.items():
            if not 0 <= seat < providers:
                raise PolicyError(f"{visitor.name}: seat must be a provider in [0, {providers - 1}], got {seat}")
            scheduler = next((one.name for one in (visitor, residents) if one.dispatch != "market"), None)
            if scheduler:
                raise PolicyError(f"{visitor.name} beside {residents.name}: {scheduler} replaces the whole market and sits nowhere")
        self.name = residents.name
        self._residents, self._providers = residents, providers
        parties: dict[int, tuple[Baseline, list[int]]] = {}
        for seat, visitor in visitors.items():
            parties.setdefault(id(visitor), (visitor, []))[1].append(seat)
        self._parties = [(visitor, np.array(seats)) for visitor, seats in parties.values()]

    def begin(self, control_s: float) -> None:
        """See Policy.begin."""
        for party in self._everybody():
            party.policy.begin(control_s)

    def act(self, observation: np.ndarray, mask: np.ndarray) -> Actions:
        """See Policy.act; the rows of all providers of all networks."""
        out = self._residents.policy.act(observation, mask)
        first = np.arange(0, len(observation), self._providers)[:, None]
        for visitor, seats in self._parties:
            rows = (first + seats).reshape(-1)
            out[rows] = visitor.policy.act(observation[rows], mask[rows])
        return out

    def prepare(self) -> None:
        """See Policy.prepare."""
        for party in self._everybody():
            party.policy.prepare()

    def _everybody(self) -> list[Baseline]:
        return [self._residents, *(visitor for visitor, _ in self._parties)]


def seat(residents: Baseline, visitors: Mapping[int, Baseline], providers: int) -> Baseline:
    """Put visitors into seats of a market that `residents` steer otherwise; without visitors that is `residents`.

    visitors  seat -> who steers it
    errors    PolicyError as in Seated
    """
    if not visitors:
        return residents
    return replace(residents, policy=Seated(residents, visitors, providers), visitors=dict(visitors))


def pins(entrant: Baseline, providers: int) -> Sequence[tuple[str, list[int]]]:
    """Say which brain steers which seats: what a market is told before it plays."""
    brains = [entrant.visitors[i].brain if i in entrant.visitors else entrant.brain for i in range(providers)]
    return [(brain, [i for i, mine in enumerate(brains) if mine == brain]) for brain in sorted(set(brains))]
