"""What a provider believes about all: roster rows and accounts, place 0 its own; who is drawn, who is gone."""

from collections.abc import Sequence
from typing import Any

from market import gossip, ledger, provider, stake
from market.chance import uniform
from market.gossip import ROW
from market.ledger import ACCOUNT
from market.rule import records
from market.terms import Terms, to_record

MARKET, GOSSIP = 0, 1
SELF = 0
NONE = -1


class Belief:
    """Rows and accounts by place; a place is kept for as long as the node runs."""

    def __init__(self, me: str, terms: Terms, incarnation: int, key: int) -> None:
        """Begin alone.

        me            own id
        incarnation   grows with every start of the node
        key           of all chance (market/chance.py)
        """
        self._terms = terms
        self.terms = to_record(terms, 1)[0]
        self.ids = [me]
        self.places = {me: SELF}
        self.rows: list[Any] = records(ROW, 1)
        self.accounts: list[Any] = records(ACCOUNT, 1)
        self.rows[SELF].version = incarnation * gossip.INCARNATION
        self._key = key
        self._draws = [0, 0]
        self._free: list[int] = []

    @property
    def providers(self) -> int:
        """How many are known, oneself included."""
        return len(self.ids)

    def chance(self, purpose: int) -> float:
        """The next uniform of a purpose (MARKET, GOSSIP)."""
        draw = self._draws[purpose]
        self._draws[purpose] = draw + 1
        return uniform(self._key, purpose, draw)  # type: ignore[no-any-return]

    def place(self, peer: str) -> int:
        """The place of `peer`, made when it is new: believed gone until it is heard of."""
        known = self.places.get(peer)
        if known is not None:
            return known
        if self._free:
            place = self._free.pop()
            self.ids[place] = peer
            self.places[peer] = place
            return place
        self.ids.append(peer)
        self.rows += records(ROW, 1)
        self.accounts += records(ACCOUNT, 1)
        self.rows[-1].status = gossip.GONE
        self.places[peer] = len(self.ids) - 1
        self.terms = to_record(self._terms, len(self.ids))[0]
        return len(self.ids) - 1

    def is_member(self, peer: str) -> bool:
        """Whether a peer has an account in which there is something."""
        place = self.places.get(peer)
        return place is not None and ledger.wealth(self.accounts[place]) > 0

    def forget(self, peer: str) -> None:
        """Let another have the place of a peer that is gone and has no account."""
        place = self.places.get(peer, SELF)
        if place == SELF or self.rows[place].status != gossip.GONE or self.is_member(peer):
            return
        del self.places[peer]
        self.ids[place] = ""
        self.rows[place] = records(ROW, 1)[0]
        self.rows[place].status = gossip.GONE
        self.accounts[place] = records(ACCOUNT, 1)[0]
        self._free.append(place)

    def hear(self, now: float, news: Sequence[Sequence[Any]]) -> None:
        """Merge news: rows of (id, version, age_s, wait_s, usage, accepts, duels_won, duels_lost)."""
        heard = records(ROW, 1)[0]
        for peer, version, age_s, wait_s, usage, accepts, won, lost in news:
            place = self.place(peer)
            if place == SELF:
                continue
            heard.version, heard.posted_s, heard.wait_s, heard.usage = version, now - age_s, wait_s, usage
            heard.accepts, heard.duels_won, heard.duels_lost = accepts, won, lost
            gossip.merge(self.rows[place], heard, now)

    def mute(self, peer: str, now: float) -> None:
        """`peer` did not answer."""
        gossip.suspect(self.rows[self.place(peer)], now)

    def leave(self, peer: str, now: float) -> None:
        """`peer` says itself that it leaves: no suspicion first."""
        row = self.rows[self.place(peer)]
        row.status, row.changed_s = gossip.GONE, now

    def age(self, now: float) -> list[str]:
        """Let silence count; returns the peers that are declared gone by it."""
        terms = self.terms
        return [
            self.ids[place] for place in range(1, len(self.ids)) if gossip.age(self.rows[place], now, terms.suspect_s, terms.gone_s)
        ]

    def balances(self, rows: Sequence[Sequence[Any]]) -> None:
        """Take balances from the ledger: (id, credit, stake, unbonding, escrow), micro-credits."""
        for owner, credit, staked, unbonding, escrow in rows:
            account = self.accounts[self.place(owner)]
            account.credit_micro, account.stake_micro = credit, staked
            account.unbonding_micro, account.escrow_micro = unbonding, escrow

    def draw(self, banned: list[int]) -> int:
        """Draw a peer by stake among those believed alive, none of `banned` (places); NONE when there is nobody."""
        u = self.chance(MARKET)
        drawn: int = stake.draw(self.accounts, self.rows, 0, 0, len(self.ids), banned, len(banned), self.terms.bond_micro, u)
        return drawn

    def partner(self) -> int:
        """A gossip partner's place, or NONE."""
        drawn: int = gossip.partner(self.rows, 0, len(self.ids), SELF, self.chance(GOSSIP))
        return drawn

    def survey(self, node: Any, now: float) -> None:
        """Sum up the market in the provider's memory."""
        provider.survey(node, self.rows, 0, self.accounts, 0, len(self.ids), SELF, now)

    def wealth(self) -> int:
        """What this provider owns (micro-credits)."""
        owned: int = ledger.wealth(self.accounts[SELF])
        return owned

    def status(self, place: int) -> int:
        """ALIVE, SUSPECT or GONE (market/gossip.py)."""
        found: int = self.rows[place].status
        return found
