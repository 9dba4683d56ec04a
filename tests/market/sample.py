"""A sample of all rules outside the engine, on seeded random records: the bytes that both modes of the rules must agree on.

Run as a program it writes them to standard output.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from market import action, duel, gossip, ledger, observation, provider, serving, slo, stake
from market.rule import fill, records, to_array
from market.terms import to_record
from tests.market.rows import TERMS, one

COUNT = 6
NAMES = (action, duel, gossip, ledger, observation, provider, slo, stake)
"""The rooms whose public rules are sampled; chance and serving have samples of their own."""


class Sample:
    """Records of a small market, and a random source; each method exercises the rules of one file."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.seen: list[float] = []
        self.accounts = self._records(ledger.ACCOUNT, tranches=0, unbonding_micro=0, escrow_micro=0)
        self.rows = self._records(gossip.ROW, status=self.rng.integers(0, 3, COUNT))
        self.nodes = self._records(provider.NODE, online=1, queued=self.rng.integers(0, 3, COUNT))
        self.profile = one(
            serving.PROFILE, a_s=0.013, b_s=1.1e-4, c_s=3e-5, d_s=1.7e-7, kv_blocks=700, max_num_seqs=32, max_num_batched_tokens=512
        )
        self.engine, self.requests = one(serving.ENGINE), self._records(serving.REQUEST)
        serving.open_engine(self.engine[0], 0.0)
        for k in range(COUNT):
            serving.enqueue(self.engine[0], self.requests, k, 0.0)
        serving.advance(self.engine[0], self.profile[0], self.requests, 0.3)

    def _records(self, dtype: np.dtype, **fixed: Any) -> Any:
        """Random records: small counts, shares, and the values given."""
        values = np.zeros(COUNT, dtype)
        for name in dtype.names or ():
            shape = values[name].shape
            whole = dtype[name].base.kind == "i"
            values[name] = fixed.get(name, self.rng.integers(1, 90, shape) if whole else self.rng.random(shape))
        out = records(dtype, COUNT)
        fill(out, values)
        return out

    def note(self, *values: float) -> None:
        """Keep what a rule returned."""
        self.seen += [float(value) for value in values]

    def u(self) -> float:
        """A uniform."""
        return float(self.rng.random())

    def whole(self, most: int) -> int:
        """An integer in [0, most)."""
        return int(self.rng.integers(most))

    def ledger(self) -> None:
        """All moves of the ledger."""
        a, b, amount = self.whole(COUNT), self.whole(COUNT), self.whole(60)
        self.note(ledger.pay(self.accounts, a, b, amount), ledger.commit(self.accounts[a], amount))
        if ledger.escrow(self.accounts[a], amount):
            ledger.settle(self.accounts, a, b, amount, amount // 2)
        now = self.u() * 90.0
        held, kept = self.whole(30), self.whole(2)
        if ledger.set_aside(self.accounts[a], held, kept):
            self.note(ledger.pay_up(self.accounts, a, b, held, kept))
        if ledger.set_aside(self.accounts[b], held, kept):
            ledger.give_back(self.accounts, b, held, kept)
        self.note(ledger.release(self.accounts[b], amount, now + 60.0))
        ledger.steer_stake(self.accounts[a], amount, 5, now + 60.0)
        ledger.mature(self.accounts[b], now)
        self.note(ledger.slash(self.accounts, b, a, self.whole(1001), self.whole(3)), ledger.wealth(self.accounts[a]))
        taken = ledger.seize(self.accounts[a], amount)
        self.note(taken)
        if self.whole(9) == 0:
            ledger.open_account(self.accounts[a], amount + taken, amount)

    def gossip(self) -> None:
        """News, silence, partners."""
        a, b, now = self.whole(COUNT), self.whole(COUNT), self.u() * 50.0
        gossip.merge(self.rows[a], self.rows[b], now)
        gossip.copy_row(self.rows[b], self.rows[self.whole(COUNT)])
        gossip.suspect(self.rows[self.whole(COUNT)], now)
        self.note(gossip.age(self.rows[a], now, 3.0, 4.0), gossip.partner(self.rows, 0, COUNT, a, self.u()))

    def duel(self) -> None:
        """A vote, a count, a settlement."""
        votes = self.rng.integers(0, 4, 3)
        the = one(duel.DUEL, executor_a=0, executor_b=1, judges=3, judge=[2, 3, 4], vote=votes)
        self.note(duel.vote(self.u(), self.u(), 0.3, self.u()), duel.outcome(the[0]))
        self.note(duel.settle(the[0], self.accounts, 0, 200, self.whole(30), 100, 50))
        self.note(duel.loyal(self.whole(2), self.whole(3), self.whole(3), self.whole(3)))

    def stake(self) -> None:
        """A draw with one peer left out."""
        banned = np.array([self.whole(COUNT)], np.int64)
        self.note(stake.draw(self.accounts, self.rows, 0, 0, COUNT, banned, 1, self.whole(3), self.u()))
        self.note(*(stake.goal(self.nodes[k], ledger.wealth(self.accounts[k]), self.whole(30)) for k in range(COUNT)))

    def action(self) -> None:
        """Both kinds of intent, and a mask."""
        node, terms = self.nodes[self.whole(COUNT)], to_record(TERMS, COUNT)[0]
        action.intent_of_paper(node, terms, self.u(), self.whole(2), self.whole(2))
        node = self.nodes[self.whole(COUNT)]
        action.intent_of_action(node, self.whole(5), self.whole(5), self.whole(5))
        mask = np.zeros(action.MASK_SIZE, np.int8)
        action.write_mask(mask, 0, self.whole(2), self.whole(50), 25)
        self.note(*mask)

    def provider(self) -> None:
        """Decisions and memory of one provider."""
        g = self.whole(COUNT)
        node, engine, profile, terms = self.nodes[g], self.engine[0], self.profile[0], to_record(TERMS, COUNT)[0]
        forecast = provider.forecast_here(node, engine, profile, self.whole(99) + 1, self.whole(99) + 1)
        wait_s = provider.wait_here(node, engine, profile)
        self.note(wait_s, provider.forecast_here_after(node, engine, profile, wait_s, 9, 9))
        self.note(forecast, provider.price(terms, self.whole(999), self.whole(9999)))
        self.note(provider.on_arrival(node, self.u(), forecast, 2.0 * self.u(), self.whole(2), self.u(), self.u()))
        self.note(provider.on_offer(node, self.u(), forecast, 2.0 * self.u(), self.u()), provider.place_refused(node, self.u()))
        self.note(provider.may_start(node, engine, profile, 1 + self.whole(3), self.whole(2)))
        self.note(provider.take_turn(self.u(), self.u(), 0.5, self.u()))
        provider.note_arrival(node, self.whole(900), self.whole(9000))
        provider.note_offer(node, self.whole(2))
        provider.note_delegated(node, 100.0 * self.u())
        provider.tick(node, 0.5 + self.u())
        provider.size_up(node, profile)
        provider.survey(node, self.rows, 0, self.accounts, 0, COUNT, g, 100.0)
        provider.post(self.rows[g], node, engine, profile, 100.0 * self.u(), 1 + self.whole(3))
        if self.whole(20) == 0:
            provider.open_node(node, 10.0 + self.u())

    def observation(self) -> None:
        """A sight of one provider."""
        out = np.zeros(observation.OBSERVATION_SIZE, np.float32)
        g = self.whole(COUNT)
        observation.write_observation(
            out, self.nodes[g], self.engine[0], self.profile[0], self.accounts[g], self.whole(99), 9.0 * self.u(), self.u()
        )
        self.note(*out)

    def slo(self) -> None:
        """Whether a request is attained and due."""
        self.note(slo.attained(self.u(), self.u()), slo.due_in_window(self.u(), self.u(), 1.0))

    def image(self) -> bytes:
        """Every byte of every record, and every value returned."""
        tables: list[tuple[Any, np.dtype]] = [
            (self.accounts, ledger.ACCOUNT),
            (self.rows, gossip.ROW),
            (self.nodes, provider.NODE),
            (self.engine, serving.ENGINE),
        ]
        return b"".join(to_array(records_, dtype).tobytes() for records_, dtype in tables) + np.array(self.seen).tobytes()


def play(seed: int = 5, rounds: int = 150) -> bytes:
    """Exercise all rules in turn on one set of records, `rounds` times."""
    sample = Sample(seed)
    parts: list[Callable[[], None]] = [getattr(sample, room.__name__.split(".")[-1]) for room in NAMES]
    for _ in range(rounds):
        for part in parts:
            part()
    return sample.image()


if __name__ == "__main__":
    sys.stdout.buffer.write(play())
