"""What an engine does: read a sheet, have the book change it, and write it back, in one transaction."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from live_bridge.ledger.journal import Entry, Receipt
from live_bridge.ledger.orders import Checked
from live_bridge.ledger.sheet import Escrow, Row, Sheet

Apply = Callable[[Sheet, Sequence[Checked]], list[Receipt]]
"""The book's `apply`."""


class StoreError(OSError):
    """An engine cannot read or write now. What was asked may or may not have happened: the same orders can be sent again."""


class State(NamedTuple):
    """All of a ledger at one moment."""

    head: Entry
    rows: list[Row]  # by account
    holds: list[Escrow]  # by hold_id; ended ones too


class Holdings(NamedTuple):
    """All accounts at one moment."""

    head: Entry
    rows: list[Row]  # by account
    due: bool  # whether a hold's time is over at the moment that was asked for


class Store(Protocol):
    """An engine. Several processes may share one, unless it is in memory."""

    async def found(self, entry: Entry) -> Entry:
        """Make the journal begin with `entry` unless it has begun; returns its entry 0."""

    async def write(self, orders: Sequence[Checked], now_us: Callable[[], int], apply: Apply) -> list[Receipt]:
        """Apply orders in one transaction; returns when what they did would outlive a loss of power.

        now_us   market microseconds since the founding, asked inside the transaction; time never runs back in the journal
        errors   StoreError
        """

    async def head(self) -> Entry:
        """Read the last entry."""

    async def journal(self, first: int, most: int) -> list[Entry]:
        """Read up to `most` entries from place `first` on."""

    async def state(self) -> State:
        """Read all."""

    async def holdings(self, at_us: int) -> Holdings:
        """Read the accounts."""

    async def close(self) -> None:
        """Let go of files and connections."""
