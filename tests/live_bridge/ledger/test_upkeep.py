"""What happens to a ledger by itself and from outside: time, locks, lost connections, other processes, settings."""

import asyncio
import fcntl
import sqlite3
import time
from math import inf
from pathlib import Path

import pytest

from live_bridge.config import node_settings
from live_bridge.identity import Identity
from live_bridge.ledger.audit import audit_store
from live_bridge.ledger.journal import (
    JournalError,
    Receipt,
    founding_entry,
    from_json,
    is_signed,
    read_founding,
    receipt_payload,
    sign_receipt,
    to_json,
)
from live_bridge.ledger.ledger import LocalLedger
from live_bridge.ledger.memory import MemoryStore
from live_bridge.ledger.orders import Author, Open, Pay, Settle
from live_bridge.ledger.sqlite import SqliteStore
from live_bridge.ledger.start import FILE, open_store, start_ledger
from live_bridge.ledger.store import StoreError
from market.terms import MICRO

from .stage import LEDGER, NETWORK, REALM, TERMS, Wall, accepted, hold, ledger_on, on_memory, opened, paid, person


async def until(asked, wanted) -> None:
    """Wait until a question has the answer."""
    async with asyncio.timeout(20):
        while await asked() != wanted:
            await asyncio.sleep(0.01)


def test_holds_come_back_without_anybody_asking(engine) -> None:
    """The journal itself is watched: to look at accounts would do it too."""

    async def run() -> None:
        how = {"speed": 1.0, "unix_s": time.time, "count": [].append, "tick_s": 0.02}
        ledger = await LocalLedger.start(await engine(), LEDGER, NETWORK, TERMS, **how)
        ann, bob = await opened(ledger, 2)
        await accepted(ledger, ann, hold(bob, "h", ttl_s=0.1))

        async def last() -> str:
            return (await ledger.store.head()).account

        await until(last, "")
        assert (await audit_store(ledger.store)).open_holds == 0
        await ledger.close()

    asyncio.run(run())


def test_a_tick_that_fails_is_counted_and_the_next_one_comes() -> None:
    async def run() -> None:
        counts: list[str] = []
        store = MemoryStore()
        how = {"speed": 1.0, "unix_s": time.time, "count": counts.append, "tick_s": 0.01}
        ledger = await LocalLedger.start(store, LEDGER, NETWORK, TERMS, **how)
        write = store.write

        async def failing(orders, now_us, apply):
            raise StoreError("away")

        store.write = failing

        async def often() -> bool:
            return len(counts) >= 3

        await until(often, True)
        store.write = write
        assert set(counts) == {"tick_failed"}
        await opened(ledger, 1)
        await ledger.close()

    asyncio.run(run())


def test_a_file_that_another_holds_is_waited_for(tmp_path: Path) -> None:
    async def run() -> None:
        async with ledger_on(SqliteStore(tmp_path / "l.sqlite")) as ledger:
            ann, bob = await opened(ledger, 2)
            other = sqlite3.connect(tmp_path / "l.sqlite", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            paying = asyncio.create_task(ledger.submit(ann.write(Pay(bob.identity.id, 1))))
            done, _ = await asyncio.wait([paying], timeout=0.2)
            assert not done
            assert (await ledger.accounts())[bob.identity.id].credit_micro == 100 * MICRO, "readers do not wait"
            other.execute("ROLLBACK")
            assert (await paying).accepted
            other.close()

    asyncio.run(run())


def test_processes_take_turns_in_writing(tmp_path: Path) -> None:
    async def run() -> None:
        async with ledger_on(SqliteStore(tmp_path / "l.sqlite")) as ledger:
            ann, bob = await opened(ledger, 2)
            with (tmp_path / "l.sqlite-turn").open("r+") as turn:
                fcntl.flock(turn, fcntl.LOCK_EX)
                paying = asyncio.create_task(ledger.submit(ann.write(Pay(bob.identity.id, 1))))
                done, _ = await asyncio.wait([paying], timeout=0.2)
                assert not done
            assert (await paying).accepted

    asyncio.run(run())


def test_two_ledgers_on_one_file_see_each_others_orders(tmp_path: Path) -> None:
    wall = Wall()

    async def run() -> None:
        path = tmp_path / "l.sqlite"
        async with ledger_on(SqliteStore(path), wall) as one, ledger_on(SqliteStore(path), wall) as two:
            ann, bob = await opened(one, 2)
            await accepted(two, ann, hold(bob, "h", ttl_s=60), hold(bob, "late", ttl_s=60))
            await accepted(one, ann, paid(bob, "h"))
            assert (await two.submit(ann.write(paid(bob, "h")))).reason == "hold_settled"
            order = ann.write(Pay(bob.identity.id, 1))
            assert await one.submit(order) == await two.submit(order)
            wall.s += 60
            await two.tick()
            assert (await one.submit(ann.write(paid(bob, "late")))).reason == "hold_expired"
            assert await one.accounts() == await two.accounts()
            await audit_store(one.store)

    asyncio.run(run())


def test_many_writers_on_one_store_keep_one_chain(tmp_path: Path, postgres: str) -> None:
    """Holds, settlements and expiries by four ledgers at once."""
    from live_bridge.ledger.postgres import PostgresStore

    async def work(ledger: LocalLedger, number: int) -> None:
        ann, bob = (Author(person(k), ledger.realm, 1000 * number) for k in range(2))
        for k in range(25):
            name = f"{number}.{k}"
            await accepted(ledger, ann, hold(bob, name, 1000, ttl_s=60))
            if k % 3:
                await accepted(ledger, ann, paid(bob, name, 700))
            elif k % 2:
                await accepted(ledger, ann, Settle(name, 0, 0, None))

    async def run(stores) -> None:
        ledgers = [
            await LocalLedger.start(store, LEDGER, NETWORK, TERMS, speed=1.0, unix_s=time.time, count=print, tick_s=inf)
            for store in stores
        ]
        await opened(ledgers[0], 2)
        await asyncio.gather(*(work(ledger, number) for number, ledger in enumerate(ledgers)))
        verdict = await audit_store(ledgers[0].store)
        assert verdict.minted_micro == 2 * 102 * MICRO and verdict.open_holds == 4 * 5
        for ledger in ledgers:
            await ledger.close()

    async def both() -> None:
        await run([SqliteStore(tmp_path / "l.sqlite") for _ in range(4)])
        await run([await PostgresStore.connect(postgres, "writers") for _ in range(4)])

    asyncio.run(both())


def test_a_server_that_drops_its_connections_is_asked_again(postgres: str) -> None:
    """Every connection of the ledger is ended by the server's operator, between orders and under them."""
    import asyncpg

    from live_bridge.ledger.postgres import PostgresStore

    async def run() -> None:
        operator = await asyncpg.connect(postgres)
        async with ledger_on(await PostgresStore.connect(postgres, "dropped")) as ledger:
            ann, bob = await opened(ledger, 2)
            sent = []
            for _ in range(10):
                await operator.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
                order = ann.write(Pay(bob.identity.id, 1))
                sent.append(order)
                async with asyncio.timeout(20):
                    while True:
                        try:
                            assert (await ledger.submit(order)).accepted
                            break
                        except StoreError as error:
                            assert "send it again" in str(error)
            assert (await ledger.accounts())[bob.identity.id].credit_micro == 100 * MICRO + len(sent)
            await audit_store(ledger.store)
        await operator.close()

    asyncio.run(run())


def test_a_full_disk_refuses_and_forgets_nothing(tmp_path: Path) -> None:
    """SQLite is given a limit of pages: what it cannot write it has not done, and what it has confirmed stays."""

    async def run() -> None:
        store = SqliteStore(tmp_path / "l.sqlite")
        async with ledger_on(store) as ledger:
            ann, bob = await opened(ledger, 2)
            pages = store._db.execute("PRAGMA page_count").fetchone()[0]
            store._db.execute(f"PRAGMA max_page_count = {pages + 2}")
            done, failed = 0, None
            for _ in range(200):
                order = ann.write(Pay(bob.identity.id, 1))
                try:
                    await ledger.submit(order)
                    done += 1
                except StoreError as error:
                    failed = order
                    assert "full" in str(error)
                    break
            assert failed is not None
            assert (await ledger.accounts())[bob.identity.id].credit_micro == 100 * MICRO + done
            store._db.execute("PRAGMA max_page_count = 1000000")
            assert (await ledger.submit(failed)).accepted
            assert (await audit_store(store)).minted_micro == 2 * 102 * MICRO

    asyncio.run(run())


def test_no_byte_of_a_receipt_can_be_changed() -> None:
    async def play(ledger):
        ann, bob = await opened(ledger, 2)
        (receipt,) = await accepted(ledger, ann, hold(bob, "h"))
        signed = ledger.signed(receipt)
        assert is_signed(signed, NETWORK, LEDGER.public)
        assert ledger.signed(receipt) == signed, "the same receipt always has the same signature"
        changed = [signed._replace(**{name: value + 1}) for name, value in signed._asdict().items() if type(value) is int]
        changed += [signed._replace(**{name: f"{value}0"}) for name, value in signed._asdict().items() if isinstance(value, str)]
        changed += [signed._replace(accepted=False), signed._replace(signature=""), signed._replace(signature="zz")]
        changed += [signed._replace(place=None), signed._replace(credit_micro=1.0), signed._replace(signature=None)]
        for other in changed:
            assert not is_signed(other, NETWORK, LEDGER.public), other
        for place in range(0, 128, 3):
            flipped = signed.signature[:place] + ("0" if signed.signature[place] != "0" else "1") + signed.signature[place + 1 :]
            assert not is_signed(signed._replace(signature=flipped), NETWORK, LEDGER.public)
        assert not is_signed(signed, "other", LEDGER.public)
        assert not is_signed(signed, NETWORK, ann.identity.public)
        assert not is_signed(sign_receipt(ann.identity, NETWORK, receipt), NETWORK, LEDGER.public)

    on_memory(play)


def test_what_a_receipt_signs_tells_every_two_receipts_apart() -> None:
    one = Receipt("1", "2", 3, 4, True, "5", 6, 7, 8, 9, "a", "")
    two = one._replace(order_id="12", account="")
    assert receipt_payload(REALM, one) != receipt_payload(REALM, two)
    assert receipt_payload(REALM, one) == receipt_payload(REALM, one._replace(signature="f" * 128))


def test_an_entry_comes_back_from_the_wire_as_it_was() -> None:
    async def play(ledger):
        ann, bob = await opened(ledger, 2)
        await accepted(ledger, ann, hold(bob, "h"))
        for entry in await ledger.store.journal(0, 10):
            assert from_json(to_json(entry)) == entry
            for key in to_json(entry):
                broken = to_json(entry) | {key: None}
                if key in {"body", "order_id", "digest", "after"}:
                    with pytest.raises(JournalError, match="cannot be read"):
                        from_json(broken)
                else:
                    assert from_json(broken) != entry

    on_memory(play)


def test_a_founding_says_all_that_balances_depend_on() -> None:
    async def play(ledger):
        founding = ledger.founding
        assert read_founding(founding_entry(founding).body) == founding
        assert founding.realm == REALM and founding.endowment_micro == 102 * MICRO
        assert (founding.unbond_us, founding.duel_ttl_us, founding.judges) == (60_000_000, 600_000_000, 3)
        assert founding.at_us(0.0) == 0, "time does not begin before the founding"

    on_memory(play)


def settings_of(home: Path, **spoken):
    """Settings of a node that founds a network in `home`."""
    return node_settings(None, {"home": str(home), **{key.replace("__", "."): value for key, value in spoken.items()}})


def test_settings_say_which_engine(tmp_path: Path, postgres: str) -> None:
    import asyncpg

    async def run() -> None:
        operator = await asyncpg.connect(postgres)
        await operator.execute("CREATE DATABASE market")
        await operator.close()
        dsn = postgres.replace("@/postgres", "@/market")
        kinds = {}
        for engine in ("memory", "sqlite", "postgres"):
            spoken = settings_of(tmp_path / engine, ledger__engine=engine, ledger__dsn=dsn if engine == "postgres" else None)
            ledger = await start_ledger(spoken, Identity(b"S" * 32), time.time, [].append)
            kinds[engine] = type(ledger.store).__name__
            await opened(ledger, 1)
            await ledger.close()
        assert kinds == {"memory": "MemoryStore", "sqlite": "SqliteStore", "postgres": "PostgresStore"}
        assert (tmp_path / "sqlite" / FILE).is_file()
        with pytest.raises(StoreError, match="ledger.dsn: must be a PostgreSQL address"):
            await open_store("postgres", tmp_path, None)

    asyncio.run(run())


def test_a_market_that_runs_fast_has_a_ledger_that_runs_fast(tmp_path: Path) -> None:
    wall = Wall()

    async def run() -> None:
        spoken = settings_of(tmp_path, speed=20, backend__kind="emulated")
        ledger = await start_ledger(spoken, Identity(b"S" * 32), wall, [].append)
        wall.s += 3
        assert ledger.now_us() == 60_000_000
        await ledger.close()
        wall.s += 2  # time goes on while nobody serves the ledger
        ledger = await start_ledger(spoken, Identity(b"S" * 32), wall, [].append)
        assert ledger.now_us() == 100_000_000
        await opened(ledger, 1)
        await ledger.close()

    asyncio.run(run())


def test_an_account_that_opens_at_once_many_times_is_minted_once(engine) -> None:
    async def run() -> None:
        async with ledger_on(await engine()) as ledger:
            receipts = await asyncio.gather(*(ledger.submit(Author(person(0), ledger.realm).write(Open())) for _ in range(50)))
            assert len(set(receipts)) == 1
            assert (await audit_store(ledger.store)).minted_micro == 102 * MICRO

    asyncio.run(run())
