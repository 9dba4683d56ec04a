"""The sheet: what one group of orders touches of a ledger; an engine reads it, the book changes it, the engine writes it back."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import orjson

from live_bridge.ledger.journal import Balances, Entry
from live_bridge.ledger.orders import Checked, Duel, Hold, Pay, Settle
from market.ledger import ACCOUNT
from market.rule import record_class

Account = record_class(ACCOUNT)
"""A record that the rules of market.ledger take."""
OPEN, SETTLED, EXPIRED = 0, 1, 2


class Escrow(NamedTuple):
    """A hold, as it stands."""

    origin: str
    hold_id: str
    payee: str
    held_micro: int
    expires_us: int
    purpose: str
    request: str
    state: int  # OPEN, SETTLED, EXPIRED
    paid_micro: int
    tokens: int  # as the origin has counted
    digest: str  # that the payee has signed for; empty without proof of delivery
    ended_us: int
    duelled: int  # 1 once a duel was settled on it


class Row(NamedTuple):
    """An account as engines keep it."""

    account: str
    credit_micro: int
    stake_micro: int
    unbonding_micro: int
    escrow_micro: int
    tranches: str  # JSON: [[micro-credits, market s when free], ...]


class Sheet:
    """Accounts and holds by name, the head of the journal, and what is to be written."""

    def __init__(self, place: int, at_us: int, digest: bytes) -> None:
        """Begin behind the head of a journal.

        place    of the last entry
        at_us    of this group, market microseconds since the founding, >= that of the last entry
        digest   of the last entry
        """
        self.place = place
        self.at_us = at_us
        self.digest = digest
        self.money: dict[str, Any] = {}
        self.holds: dict[str, Escrow] = {}
        self.used: dict[tuple[str, int], Entry] = {}
        self.due: list[str] = []
        self.entries: list[Entry] = []
        self.touched_accounts: set[str] = set()
        self.touched_holds: set[str] = set()

    def changed_rows(self) -> list[Row]:
        """Accounts to write, in order of their names: several writers that lock rows cannot wait for each other in a circle."""
        return [row_of(account, self.money[account]) for account in sorted(self.touched_accounts)]

    def changed_holds(self) -> list[Escrow]:
        """Holds to write, ordered."""
        return [self.holds[key] for key in sorted(self.touched_holds)]


def balances(record: Any) -> Balances:
    """Read a record."""
    return Balances(record.credit_micro, record.stake_micro, record.unbonding_micro, record.escrow_micro)


def row_of(account: str, record: Any) -> Row:
    """Write a record as engines keep it."""
    tranches = [[record.tranche_micro[k], record.tranche_s[k]] for k in range(record.tranches)]
    return Row(account, *balances(record), orjson.dumps(tranches).decode() if tranches else "[]")


def record_of(row: Row) -> Any:
    """Make a record of what an engine has kept."""
    record: Any = Account()
    record.credit_micro, record.stake_micro = row.credit_micro, row.stake_micro
    record.unbonding_micro, record.escrow_micro = row.unbonding_micro, row.escrow_micro
    if row.tranches != "[]":
        for amount, free_s in orjson.loads(row.tranches):
            record.tranche_micro[record.tranches], record.tranche_s[record.tranches] = amount, free_s
            record.tranches += 1
    return record


def holds_of(orders: Iterable[Checked]) -> set[str]:
    """Name the holds that these orders may touch."""
    keys: set[str] = set()
    for order in orders:
        terms = order.order.terms
        if isinstance(terms, (Hold, Settle)):
            keys.add(terms.hold_id)
        elif isinstance(terms, Duel):
            keys |= {terms.hold_a, terms.hold_b}
    return keys


def accounts_of(orders: Iterable[Checked], holds: Mapping[str, Escrow]) -> set[str]:
    """Name the accounts that these orders may touch, when these are the holds that they touch."""
    names: set[str] = set()
    for hold in holds.values():
        names |= {hold.origin, hold.payee}
    for order in orders:
        names.add(order.account)
        terms = order.order.terms
        if isinstance(terms, (Pay, Hold)):
            names.add(terms.payee)
        elif isinstance(terms, Duel):
            names |= {terms.executor_a, terms.executor_b, *(vote.judge for vote in terms.judges)}
    return names
