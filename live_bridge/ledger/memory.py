"""The engine in memory: for tests, and for markets that end with their process."""

from collections.abc import Callable, Sequence
from heapq import heappop, heappush

from live_bridge.ledger.journal import Entry, Receipt
from live_bridge.ledger.orders import Checked
from live_bridge.ledger.sheet import OPEN, Escrow, Row, Sheet, accounts_of, holds_of, record_of
from live_bridge.ledger.store import Apply, Holdings, State


class MemoryStore:
    """Keeps rows as the other engines do, so that nothing half done is left behind when the book fails."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}
        self._holds: dict[str, Escrow] = {}
        self._times: list[tuple[int, str]] = []  # heap: when a hold that may still be open expires
        self._used: dict[tuple[str, int], Entry] = {}
        self._journal: list[Entry] = []

    async def found(self, entry: Entry) -> Entry:
        """See Store."""
        if not self._journal:
            self.begin(entry)
        return self._journal[0]

    def begin(self, entry: Entry) -> None:
        """Write entry 0."""
        self._journal.append(entry)

    async def write(self, orders: Sequence[Checked], now_us: Callable[[], int], apply: Apply) -> list[Receipt]:
        """See Store."""
        return self.write_now(orders, now_us(), apply)

    def write_now(self, orders: Sequence[Checked], now_us: int, apply: Apply) -> list[Receipt]:
        """Write without waiting: an audit replays a journal with it."""
        sheet = self._read(orders, now_us)
        receipts = apply(sheet, orders)
        for row in sheet.changed_rows():
            self._rows[row.account] = row
        for hold in sheet.changed_holds():
            self._holds[hold.hold_id] = hold
            if hold.state == OPEN:
                heappush(self._times, (hold.expires_us, hold.hold_id))
        for entry in sheet.entries:
            self._journal.append(entry)
            self._used[entry.account, entry.sequence] = entry
        return receipts

    def _read(self, orders: Sequence[Checked], now_us: int) -> Sheet:
        last = self._journal[-1]
        sheet = Sheet(last.place, max(last.at_us, now_us), last.digest)
        sheet.due = self._due(sheet.at_us)
        for key in {*holds_of(orders), *sheet.due}:
            if key in self._holds:
                sheet.holds[key] = self._holds[key]
        for name in accounts_of(orders, sheet.holds):
            if name in self._rows:
                sheet.money[name] = record_of(self._rows[name])
        for order in orders:
            key_used = order.account, order.order.sequence
            if key_used in self._used:
                sheet.used[key_used] = self._used[key_used]
        return sheet

    def _due(self, at_us: int) -> list[str]:
        due = []
        while self._times and self._times[0][0] <= at_us:
            _, key = heappop(self._times)
            if self._holds[key].state == OPEN:
                due.append(key)
        for key in due:  # they stay open until the book has ended them
            heappush(self._times, (self._holds[key].expires_us, key))
        return due

    async def head(self) -> Entry:
        """See Store."""
        return self._journal[-1]

    async def journal(self, first: int, most: int) -> list[Entry]:
        """See Store."""
        return self._journal[first : first + most]

    def since(self, place: int) -> list[Entry]:
        """Read the entries from `place` on, without waiting."""
        return self._journal[place:]

    async def state(self) -> State:
        """See Store."""
        return self.state_now()

    def state_now(self) -> State:
        """Read all without waiting."""
        rows = [self._rows[name] for name in sorted(self._rows)]
        return State(self._journal[-1], rows, [self._holds[key] for key in sorted(self._holds)])

    async def holdings(self, at_us: int) -> Holdings:
        """See Store."""
        return Holdings(self._journal[-1], self.state_now().rows, bool(self._due(at_us)))

    async def close(self) -> None:
        """See Store."""
