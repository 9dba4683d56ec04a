"""The engine on one file: SQLite with a write-ahead log, synced at every commit; processes of one host may share it."""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from live_bridge.ledger.journal import Entry, Receipt
from live_bridge.ledger.orders import Checked
from live_bridge.ledger.schema import COLUMNS, JOURNAL_COLUMNS, TABLES, entry_from, entry_row, last_entry, upsert
from live_bridge.ledger.sheet import OPEN, Escrow, Row, Sheet, accounts_of, holds_of, record_of
from live_bridge.ledger.store import Apply, Holdings, State, StoreError

BUSY_S = 30.0
"""Others may hold the file for this long; a group of orders takes milliseconds."""
T = TypeVar("T")
_ACCOUNTS = f"SELECT {', '.join(Row._fields)} FROM accounts"  # noqa: S608 - names are ours
_HOLDS = f"SELECT {', '.join(Escrow._fields)} FROM holds"  # noqa: S608
_LAST = "SELECT * FROM journal ORDER BY place DESC LIMIT 1"
_DUE = "SELECT 1 FROM holds WHERE state = 0 AND expires_us <= ? LIMIT 1"
_USED = (  # named first, so that SQLite looks up each of them, and does not read the journal
    "WITH asked (who, number) AS (VALUES {}) SELECT journal.* FROM asked CROSS JOIN journal ON account = who AND sequence = number"
)
_CHUNKS = (64, 8, 1)
"""Rows in one statement: each statement lets go of the interpreter once, and takes it back."""


def _marks(columns: int, rows: int) -> str:
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)


_WRITE = {
    **{(table, rows): upsert(table, _marks(len(names), rows)) for table, names in COLUMNS.items() for rows in _CHUNKS},
    **{("journal", rows): f"INSERT INTO journal VALUES {_marks(JOURNAL_COLUMNS, rows)}" for rows in _CHUNKS},  # noqa: S608
}
_READ = {
    **{("accounts", rows): f"{_ACCOUNTS} WHERE account IN ({', '.join('?' * rows)})" for rows in _CHUNKS},
    **{("holds", rows): f"{_HOLDS} WHERE hold_id IN ({', '.join('?' * rows)})" for rows in _CHUNKS},
    **{("journal", rows): _USED.format(_marks(2, rows)) for rows in _CHUNKS},
}


def _chunks(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut rows into pieces of the lengths of _CHUNKS, the longest first."""
    at = 0
    for length in _CHUNKS:
        while len(rows) - at >= length:
            yield rows[at : at + length]
            at += length


class SqliteStore:
    """One thread writes and one reads, so that a long reading never keeps a payment waiting."""

    def __init__(self, path: Path, *, make: bool = True) -> None:
        """Open the file.

        make     make the file and its tables where they are missing
        errors   StoreError when it is not there and not to be made, is no ledger, or cannot have a write-ahead log
        """
        if not make and not path.is_file():
            raise StoreError(f"{path}: is not there; a ledger's file is HOME/ledger.sqlite of the node that founded it")
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._turn = os.open(f"{path}-turn", os.O_RDWR | os.O_CREAT, 0o600)
        self._writer = ThreadPoolExecutor(1, "ledger-write")
        self._reader = ThreadPoolExecutor(1, "ledger-read")
        try:
            self._db = _connect(path)
            self._view = _connect(path)
            if make:
                self._make()
            elif not self._fetch("SELECT 1 FROM sqlite_master WHERE name = 'journal'"):
                raise StoreError(f"{path}: is a database, but no ledger: it has no journal")
        except sqlite3.Error as error:
            raise StoreError(f"{path}: cannot be used as a ledger: {error}; is it another kind of file, or damaged?") from error

    def _make(self) -> None:
        with self._exclusively():
            for statement in TABLES:
                self._db.execute(statement)
            self._db.execute("COMMIT")

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Hold the file against all others, in the order in which they came: SQLite alone would poll."""
        fcntl.flock(self._turn, fcntl.LOCK_EX)
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            fcntl.flock(self._turn, fcntl.LOCK_UN)

    async def _run(self, thread: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, work, *arguments)
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}") from error

    async def found(self, entry: Entry) -> Entry:
        """See Store."""
        return await self._run(self._writer, self._found, entry)

    def _found(self, entry: Entry) -> Entry:
        with self._exclusively():
            row = self._db.execute("SELECT * FROM journal WHERE place = 0").fetchone()
            if row is None:
                self._save("journal", [entry_row(entry)])
                self._db.execute("COMMIT")
        return entry if row is None else entry_from(row)

    async def write(self, orders: Sequence[Checked], now_us: Callable[[], int], apply: Apply) -> list[Receipt]:
        """See Store."""
        return await self._run(self._writer, self._write, orders, now_us, apply)

    def _write(self, orders: Sequence[Checked], now_us: Callable[[], int], apply: Apply) -> list[Receipt]:
        with self._exclusively():
            sheet = self._read(orders, now_us)
            receipts = apply(sheet, orders)
            if sheet.entries:
                self._save("accounts", sheet.changed_rows())
                self._save("holds", sheet.changed_holds())
                self._save("journal", [entry_row(entry) for entry in sheet.entries])
                self._db.execute("COMMIT")
        return receipts

    def _read(self, orders: Sequence[Checked], now_us: Callable[[], int]) -> Sheet:
        ask = self._db.execute
        last = last_entry(ask(_LAST).fetchone(), str(self._path))
        sheet = Sheet(last.place, max(last.at_us, now_us()), last.digest)
        for row in ask(f"{_HOLDS} WHERE state = {OPEN} AND expires_us <= ?", (sheet.at_us,)):
            hold = Escrow(*row)
            sheet.holds[hold.hold_id] = hold
            sheet.due.append(hold.hold_id)
        for row in self._load("holds", [(key,) for key in holds_of(orders).difference(sheet.holds)]):
            sheet.holds[row[1]] = Escrow(*row)
        for row in self._load("accounts", [(name,) for name in accounts_of(orders, sheet.holds)]):
            sheet.money[row[0]] = record_of(Row(*row))
        for row in self._load("journal", [(order.account, order.order.sequence) for order in orders]):
            entry = entry_from(row)
            sheet.used[entry.account, entry.sequence] = entry
        return sheet

    def _load(self, table: str, keys: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        for chunk in _chunks(keys):
            yield from self._db.execute(_READ[table, len(chunk)], list(chain.from_iterable(chunk))).fetchall()

    def _save(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        for chunk in _chunks(rows):
            self._db.execute(_WRITE[table, len(chunk)], list(chain.from_iterable(chunk)))

    async def head(self) -> Entry:
        """See Store."""
        return await self._run(self._reader, self._last)

    def _last(self) -> Entry:
        return last_entry(self._view.execute(_LAST).fetchone(), str(self._path))

    async def journal(self, first: int, most: int) -> list[Entry]:
        """See Store."""
        found = await self._run(
            self._reader, self._fetch, "SELECT * FROM journal WHERE place >= ? ORDER BY place LIMIT ?", first, most
        )
        return [entry_from(row) for row in found]

    async def state(self) -> State:
        """See Store."""
        return await self._run(self._reader, self._state)

    def _state(self) -> State:
        with self._snapshot():
            rows = [Row(*row) for row in self._fetch(f"{_ACCOUNTS} ORDER BY account")]
            holds = [Escrow(*row) for row in self._fetch(f"{_HOLDS} ORDER BY hold_id")]
            return State(self._last(), rows, holds)

    async def holdings(self, at_us: int) -> Holdings:
        """See Store."""
        return await self._run(self._reader, self._holdings, at_us)

    def _holdings(self, at_us: int) -> Holdings:
        with self._snapshot():
            rows = [Row(*row) for row in self._fetch(f"{_ACCOUNTS} ORDER BY account")]
            return Holdings(self._last(), rows, bool(self._fetch(_DUE, at_us)))

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        self._view.execute("BEGIN")
        try:
            yield
        finally:
            self._view.execute("ROLLBACK")

    def _fetch(self, question: str, *values: Any) -> list[Any]:
        return self._view.execute(question, values).fetchall()

    async def integrity(self) -> str:
        """Have SQLite examine the file; `ok` when it is sound."""
        return str((await self._run(self._reader, self._fetch, "PRAGMA integrity_check"))[0][0])

    async def close(self) -> None:
        """See Store."""
        self._writer.shutdown()
        self._reader.shutdown()
        self._db.close()
        self._view.close()
        os.close(self._turn)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(
            f"{path}: its file system cannot have a write-ahead log (journal mode is {mode}); keep ledgers on a local disk"
        )
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    return db
