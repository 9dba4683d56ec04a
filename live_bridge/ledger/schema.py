"""The tables of both databases, once: the names of types are the only thing in which they differ."""

from collections.abc import Sequence
from typing import Any

from live_bridge.ledger.journal import Balances, Entry
from live_bridge.ledger.sheet import Escrow, Row
from live_bridge.ledger.store import StoreError

TABLES = (
    """CREATE TABLE IF NOT EXISTS accounts (
        account TEXT PRIMARY KEY,
        credit_micro INTEGER NOT NULL CHECK (credit_micro >= 0),
        stake_micro INTEGER NOT NULL CHECK (stake_micro >= 0),
        unbonding_micro INTEGER NOT NULL CHECK (unbonding_micro >= 0),
        escrow_micro INTEGER NOT NULL CHECK (escrow_micro >= 0),
        tranches TEXT NOT NULL
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS holds (
        origin TEXT NOT NULL REFERENCES accounts,
        hold_id TEXT PRIMARY KEY,
        payee TEXT NOT NULL REFERENCES accounts,
        held_micro INTEGER NOT NULL CHECK (held_micro > 0),
        expires_us INTEGER NOT NULL,
        purpose TEXT NOT NULL,
        request TEXT NOT NULL,
        state INTEGER NOT NULL CHECK (state IN (0, 1, 2)),
        paid_micro INTEGER NOT NULL CHECK (paid_micro >= 0 AND paid_micro <= held_micro),
        tokens INTEGER NOT NULL CHECK (tokens >= 0),
        digest TEXT NOT NULL,
        ended_us INTEGER NOT NULL,
        duelled INTEGER NOT NULL CHECK (duelled IN (0, 1)),
        CHECK (origin <> payee)
    ) STRICT""",
    "CREATE INDEX IF NOT EXISTS holds_due ON holds (expires_us) WHERE state = 0",
    """CREATE TABLE IF NOT EXISTS journal (
        place INTEGER PRIMARY KEY,
        at_us INTEGER NOT NULL,
        account TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        order_id BLOB NOT NULL,
        body BLOB NOT NULL,
        accepted INTEGER NOT NULL CHECK (accepted IN (0, 1)),
        reason TEXT NOT NULL,
        credit_micro INTEGER NOT NULL,
        stake_micro INTEGER NOT NULL,
        unbonding_micro INTEGER NOT NULL,
        escrow_micro INTEGER NOT NULL,
        digest BLOB NOT NULL,
        UNIQUE (account, sequence)
    ) STRICT""",
)
"""As SQLite reads them."""


def for_postgres(statement: str) -> str:
    """Say the same to PostgreSQL."""
    return statement.replace("INTEGER", "BIGINT").replace("BLOB", "BYTEA").replace(") STRICT", ")")


def entry_row(entry: Entry) -> tuple[Any, ...]:
    """Columns of `journal` for an entry."""
    *head, accepted, reason, after, digest = entry
    return (*head, int(accepted), reason, *after, digest)


def entry_from(row: Sequence[Any]) -> Entry:
    """Read a row of `journal`."""
    place, at_us, account, sequence, order_id, body, accepted, reason, *after, digest = row
    return Entry(
        place, at_us, account, sequence, bytes(order_id), bytes(body), accepted == 1, reason, Balances(*after), bytes(digest)
    )


def last_entry(row: Sequence[Any] | None, place: str) -> Entry:
    """Read the row of the last entry.

    errors   StoreError when there is none
    """
    if row is None:
        raise StoreError(f"{place}: the journal holds no entry; a ledger begins with its founding, so this one was damaged")
    return entry_from(row)


COLUMNS = {"accounts": Row._fields, "holds": Escrow._fields}
KEYS = {"accounts": "account", "holds": "hold_id"}
JOURNAL_COLUMNS = 13


def upsert(table: str, marks: str) -> str:
    """Write rows of `accounts` or `holds`, whether they are there or not; `marks` stand for the values of all rows."""
    columns = COLUMNS[table]
    fresh = ", ".join(f"{name} = excluded.{name}" for name in columns if name != KEYS[table])
    values = f"INSERT INTO {table} ({', '.join(columns)}) VALUES {marks}"  # noqa: S608 - names are ours
    return f"{values} ON CONFLICT ({KEYS[table]}) DO UPDATE SET {fresh}"
