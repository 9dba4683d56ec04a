"""Starts the ledger that settings describe: which engine, which file, whose key."""

from collections.abc import Callable
from pathlib import Path

from live_bridge.config import NodeSettings, terms_named
from live_bridge.identity import Identity
from live_bridge.ledger.ledger import LocalLedger
from live_bridge.ledger.memory import MemoryStore
from live_bridge.ledger.sqlite import SqliteStore
from live_bridge.ledger.store import Store, StoreError

FILE = "ledger.sqlite"
"""In a node's home."""
KEY = "ledger.key"
"""In a node's home: of the ledger itself, which is another than the node."""
TICK_S = 1.0
"""Seconds on the wall between looks for holds whose time is over."""


async def open_store(engine: str, home: Path, dsn: str | None) -> Store:
    """Open an engine by its name.

    home     folder of the SQLite file
    dsn      of the PostgreSQL server
    errors   StoreError
    """
    if engine == "memory":
        return MemoryStore()
    if engine == "sqlite":
        return SqliteStore(home / FILE)
    if dsn is None:
        raise StoreError(
            "ledger.dsn: must be a PostgreSQL address with ledger.engine postgres, such as postgresql://USER@HOST/NAME"
        )
    from live_bridge.ledger.postgres import PostgresStore  # a node without it need not load its driver

    return await PostgresStore.connect(dsn)


async def start_ledger(
    settings: NodeSettings, identity: Identity, unix_s: Callable[[], float], count: Callable[[str], None]
) -> LocalLedger:
    """Found the ledger of a network, or go on with the one that is there.

    identity   of the ledger; processes that share an engine share it
    unix_s     clock on the wall (s)
    count      told the reason of every order that is not looked at
    errors     StoreError, JournalError, SettingsError
    """
    store = await open_store(settings.ledger.engine, Path(settings.home), settings.ledger.dsn)
    terms = terms_named(settings.market)
    return await LocalLedger.start(
        store, identity, settings.network, terms, speed=settings.speed, unix_s=unix_s, count=count, tick_s=TICK_S
    )  # fmt: skip
