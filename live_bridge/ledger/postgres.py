"""The engine on a server: PostgreSQL, for ledger processes on several hosts. Every group takes the journal for itself first."""

import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import asyncpg

from live_bridge.ledger.journal import Entry, Receipt
from live_bridge.ledger.orders import Checked
from live_bridge.ledger.schema import COLUMNS, JOURNAL_COLUMNS, TABLES, entry_from, entry_row, for_postgres, last_entry, upsert
from live_bridge.ledger.sheet import OPEN, Escrow, Row, Sheet, accounts_of, holds_of, record_of
from live_bridge.ledger.store import Apply, Holdings, State, StoreError

CONNECTIONS = 4
COMMAND_S = 60.0
"""Seconds on the wall that a statement may take, waiting for other processes included."""
_FAULTS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
"""The third is how the driver says that a connection was lost at an unlucky moment."""
_ACCOUNTS = f"SELECT {', '.join(Row._fields)} FROM accounts"  # noqa: S608 - names are ours
_HOLDS = f"SELECT {', '.join(Escrow._fields)} FROM holds"  # noqa: S608
_LAST = "SELECT * FROM journal ORDER BY place DESC LIMIT 1"


def _marks(count: int) -> str:
    return f"({', '.join(f'${k + 1}' for k in range(count))})"


_UPSERTS = {table: upsert(table, _marks(len(columns))) for table, columns in COLUMNS.items()}
_APPEND = f"INSERT INTO journal VALUES {_marks(JOURNAL_COLUMNS)}"  # noqa: S608
_DUE = "SELECT 1 FROM holds WHERE state = 0 AND expires_us <= $1 LIMIT 1"
_NAME = re.compile("[a-z_][a-z0-9_]{0,62}")
_TURN = 7_305_808_869
"""Number of the lock under which tables are made."""
_LOCK = "LOCK TABLE journal IN EXCLUSIVE MODE"
"""Keeps other writers waiting, in the order in which they came, and lets readers read."""
_USED = "SELECT journal.* FROM journal JOIN unnest($1::text[], $2::bigint[]) AS asked (account, sequence) USING (account, sequence)"


class PostgresStore:
    """Reads and writes through a small pool; nothing is remembered between groups."""

    def __init__(self, pool: Any, place: str) -> None:
        """Use `connect` instead."""
        self._pool = pool
        self._place = place

    @classmethod
    async def connect(cls, dsn: str, schema: str = "public", *, make: bool = True) -> Self:
        """Connect.

        dsn      such as postgresql://USER:PASSWORD@HOST/DATABASE
        schema   in which the tables stand: several networks can share a database
        make     make the tables where they are missing
        errors   StoreError
        """
        if _NAME.fullmatch(schema) is None:
            raise StoreError(f"ledger: a schema's name must be a to z, 0 to 9 and _, got {schema!r}")
        settings = {"search_path": schema, "synchronous_commit": "on"}
        try:
            pool = await asyncpg.create_pool(
                dsn, min_size=1, max_size=CONNECTIONS, command_timeout=COMMAND_S, server_settings=settings
            )  # fmt: skip
        except (*_FAULTS, ValueError) as error:
            raise StoreError(
                f"ledger.dsn: cannot connect: {error!r}; is PostgreSQL there, and are user and database right?"
            ) from error
        store = cls(pool, f"PostgreSQL schema {schema}")
        if make:
            try:
                await store._make(schema)
            except StoreError:
                await store.close()
                raise
        return store

    async def _make(self, schema: str) -> None:
        async with self._transaction() as db:
            await db.execute(f"SELECT pg_advisory_xact_lock({_TURN})")
            await db.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
            for statement in TABLES:
                await db.execute(for_postgres(statement))

    @asynccontextmanager
    async def _transaction(self, **kind: Any) -> AsyncIterator[Any]:
        """Commit what is done inside, or none of it."""
        try:
            async with self._pool.acquire() as db, db.transaction(**kind):
                yield db
        except _FAULTS as error:
            raise StoreError(f"{self._place}: {error!r}") from error

    async def found(self, entry: Entry) -> Entry:
        """See Store."""
        async with self._transaction() as db:
            await db.execute(_LOCK)
            row = await db.fetchrow("SELECT * FROM journal WHERE place = 0")
            if row is None:
                await db.execute(_APPEND, *entry_row(entry))
        return entry if row is None else entry_from(row)

    async def write(self, orders: Sequence[Checked], now_us: Callable[[], int], apply: Apply) -> list[Receipt]:
        """See Store."""
        async with self._transaction() as db:
            await db.execute(_LOCK)
            sheet = await self._read(db, orders, now_us)
            receipts = apply(sheet, orders)
            if sheet.entries:
                await db.executemany(_UPSERTS["accounts"], sheet.changed_rows())
                await db.executemany(_UPSERTS["holds"], sheet.changed_holds())
                await db.executemany(_APPEND, [entry_row(entry) for entry in sheet.entries])
        return receipts

    async def _read(self, db: Any, orders: Sequence[Checked], now_us: Callable[[], int]) -> Sheet:
        last = last_entry(await db.fetchrow(_LAST), self._place)
        sheet = Sheet(last.place, max(last.at_us, now_us()), last.digest)
        due = f"{_HOLDS} WHERE hold_id = ANY($1) OR (state = {OPEN} AND expires_us <= $2)"
        for row in await db.fetch(due, list(holds_of(orders)), sheet.at_us):
            hold = Escrow(*row)
            sheet.holds[hold.hold_id] = hold
            if hold.state == OPEN and hold.expires_us <= sheet.at_us:
                sheet.due.append(hold.hold_id)
        names = list(accounts_of(orders, sheet.holds))
        for row in await db.fetch(f"{_ACCOUNTS} WHERE account = ANY($1)", names):
            sheet.money[row[0]] = record_of(Row(*row))
        asked = [order.account for order in orders], [order.order.sequence for order in orders]
        for row in await db.fetch(_USED, *asked):
            entry = entry_from(row)
            sheet.used[entry.account, entry.sequence] = entry
        return sheet

    async def head(self) -> Entry:
        """See Store."""
        async with self._transaction(readonly=True) as db:
            return last_entry(await db.fetchrow(_LAST), self._place)

    async def journal(self, first: int, most: int) -> list[Entry]:
        """See Store."""
        async with self._transaction(readonly=True) as db:
            return [
                entry_from(row)
                for row in await db.fetch("SELECT * FROM journal WHERE place >= $1 ORDER BY place LIMIT $2", first, most)
            ]

    async def state(self) -> State:
        """See Store."""
        async with self._transaction(isolation="repeatable_read", readonly=True) as db:
            last = last_entry(await db.fetchrow(_LAST), self._place)
            rows = [Row(*row) for row in await db.fetch(f'{_ACCOUNTS} ORDER BY account COLLATE "C"')]
            return State(last, rows, [Escrow(*row) for row in await db.fetch(f'{_HOLDS} ORDER BY hold_id COLLATE "C"')])

    async def holdings(self, at_us: int) -> Holdings:
        """See Store."""
        async with self._transaction(isolation="repeatable_read", readonly=True) as db:
            last = last_entry(await db.fetchrow(_LAST), self._place)
            found = await db.fetch(f'{_ACCOUNTS} ORDER BY account COLLATE "C"')
            due = await db.fetchrow(_DUE, at_us)
            return Holdings(last, [Row(*row) for row in found], due is not None)

    async def close(self) -> None:
        """See Store."""
        await self._pool.close()
