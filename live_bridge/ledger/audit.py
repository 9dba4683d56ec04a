"""The audit: everything that a ledger says is proved from its journal, and the first entry that does not hold is named.

A ledger can stall, but not forge: every order in its journal bears the signature of the account's owner, every entry seals all
before it, and what came of each order follows from the rules. Receipts name entries, so that a rewritten journal can be shown.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, NamedTuple

import orjson

from live_bridge.http.message import HttpClient, HttpError
from live_bridge.ledger.book import Book
from live_bridge.ledger.journal import Entry, Founding, JournalError, founding_entry, from_json, read_founding, sealed
from live_bridge.ledger.ledger import AccountView, View, matured
from live_bridge.ledger.memory import MemoryStore
from live_bridge.ledger.orders import OrderError, check, decode, encode
from live_bridge.ledger.remote import PREFIX, read_json, read_view
from live_bridge.ledger.sheet import OPEN
from live_bridge.ledger.store import State, Store, StoreError

PAGE = 500
"""Entries read at once."""
Pages = Callable[[int, int], Coroutine[Any, Any, list[Entry]]]
"""(first place, most) -> entries."""


class Finding(Exception):  # noqa: N818 - it is what an audit finds
    """Something that a ledger says is not so; `place` is that of the first bad entry, or None when the journal is sound."""

    def __init__(self, place: int | None, text: str) -> None:
        super().__init__(text)
        self.place = place


class Verdict(NamedTuple):
    """What an audit has proved."""

    founding: Founding
    entries: int
    accounts: int
    minted_micro: int  # and found in the accounts again, to the last micro-credit
    open_holds: int
    digest: str  # of the last entry: whoever keeps it can tell later whether the journal was rewritten


class Auditor:
    """Replays a journal, entry by entry."""

    def __init__(self, first: Entry) -> None:
        """Begin with entry 0.

        errors   Finding
        """
        try:
            self.founding = read_founding(first.body)
        except JournalError as error:
            raise Finding(0, str(error)) from None
        if founding_entry(self.founding) != first:
            raise Finding(0, "entry 0: is not what its founding says; the journal was changed")
        self._store = MemoryStore()
        self._store.begin(first)
        self._book = Book(self.founding)
        self._last = first

    def take(self, entry: Entry) -> None:
        """Prove one entry.

        errors   Finding
        """
        last, self._last = self._last, entry
        place = last.place + 1
        if entry.place != place:
            raise Finding(place, f"entry {place}: is missing; the next one is {entry.place}")
        if sealed(last.digest, entry).digest != entry.digest:
            raise Finding(place, f"entry {place}: its digest does not follow from the entry before and its content; it was changed")
        if entry.at_us < last.at_us:
            raise Finding(place, f"entry {place}: time runs back, from {last.at_us} to {entry.at_us} us")
        orders = self._orders(entry) if entry.account else ()
        self._store.write_now(orders, entry.at_us, self._book.apply)
        made = self._store.since(place)
        if made != [entry]:
            raise Finding(place, f"entry {place}: does not follow from the rules: {_difference(entry, made)}")

    def _orders(self, entry: Entry) -> tuple[Any, ...]:
        try:
            order = decode(orjson.loads(entry.body))
            checked = check(order, self.founding.realm)
        except (OrderError, ValueError) as error:
            raise Finding(entry.place, f"entry {entry.place}: its order does not count: {error}") from None
        if encode(order) != entry.body or checked.order_id != entry.order_id or checked.account != entry.account:
            raise Finding(entry.place, f"entry {entry.place}: names another order or account than the one that is signed")
        return (checked,)

    def state(self) -> State:
        """All that follows from the entries so far."""
        return self._store.state_now()

    def verdict(self) -> Verdict:
        """Add up.

        errors   Finding when money was made or lost
        """
        state = self.state()
        minted = self.founding.endowment_micro * len(state.rows)
        owned = sum(sum(row[1:5]) for row in state.rows)
        if owned != minted:
            raise Finding(None, f"accounts: {minted} micro-credits were minted, and {owned} are there")
        if any(min(row[1:5]) < 0 for row in state.rows):
            raise Finding(None, "accounts: a balance is below zero")
        held = {row.account: row.escrow_micro for row in state.rows}
        open_holds = [hold for hold in state.holds if hold.state == OPEN]
        for hold in open_holds:
            held[hold.origin] -= hold.held_micro
        if any(held.values()):
            raise Finding(None, "holds: what accounts have set aside is not the sum of their open holds")
        return Verdict(
            self.founding, self._last.place + 1, len(state.rows), minted, len(open_holds), self._last.digest.hex()
        )  # fmt: skip


async def audit_store(store: Store) -> Verdict:
    """Prove a ledger's journal, and that its tables are what follows from it.

    errors   Finding, StoreError
    """
    state = await store.state()
    auditor = await _replayed(store.journal, state.head)
    proved = auditor.state()
    _same("account", {row.account: row for row in proved.rows}, {row.account: row for row in state.rows})
    _same("hold", {hold.hold_id: hold for hold in proved.holds}, {hold.hold_id: hold for hold in state.holds})
    return auditor.verdict()


async def audit_url(client: HttpClient, url: str) -> Verdict:
    """Prove a ledger behind a URL by its journal, as anyone can.

    errors   Finding, StoreError
    """

    async def pages(first: int, most: int) -> list[Entry]:
        value = await _read(client, f"{url}{PREFIX}journal?from={first}&most={most}")
        return [from_json(each) for each in value["entries"]]

    try:
        first = (await pages(0, 1))[0]
        auditor = Auditor(first)
        view = read_view(await _read(client, f"{url}{PREFIX}accounts"), auditor.founding)
        auditor = await _replayed(pages, view.head)
    except (JournalError, KeyError, IndexError, TypeError) as error:
        raise Finding(None, f"{url}: does not answer as a ledger: {error!r}") from None
    _same("account", _views(auditor, view), view.accounts)
    return auditor.verdict()


async def _read(client: HttpClient, url: str) -> Any:
    try:
        return await read_json(client, "GET", url, b"")
    except HttpError as error:
        raise StoreError(str(error)) from error


def _views(auditor: Auditor, view: View) -> Mapping[str, AccountView]:
    return matured(auditor.state().rows, view.at_us)


async def _replayed(pages: Pages, head: Entry) -> Auditor:
    auditor: Auditor | None = None
    async for entry in _entries(pages, head.place):
        if auditor is None:
            auditor = Auditor(entry)
        else:
            auditor.take(entry)
    if auditor is None:
        raise Finding(0, "entry 0: is missing; the journal is empty")
    if auditor.state().head.digest != head.digest:
        raise Finding(head.place, f"entry {head.place}: is not the head that the ledger names")
    return auditor


async def _entries(pages: Pages, last: int) -> AsyncIterator[Entry]:
    place = 0
    while place <= last:
        page = await pages(place, min(PAGE, last + 1 - place))
        if not page:
            raise Finding(place, f"entry {place}: is missing; the ledger names {last} as its last")
        for entry in page:
            yield entry
        place += len(page)


def _same(kind: str, proved: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    for name in sorted({*proved, *told}):
        if proved.get(name) != told.get(name):
            raise Finding(
                None, f"{kind} {name}: follows from the journal as {proved.get(name)}, and the ledger has {told.get(name)}"
            )


def _difference(entry: Entry, made: list[Entry]) -> str:
    if len(made) != 1:
        return f"a hold that was due is not given back before it ({len(made)} entries would have been written)"
    names = [name for name in ("at_us", "accepted", "reason", "after", "body") if getattr(made[0], name) != getattr(entry, name)]
    return ", ".join(f"{name} would be {getattr(made[0], name)!r}, not {getattr(entry, name)!r}" for name in names) or "its digest"
