"""Three engines that behave alike: whatever is asked, they give the same receipts, to the micro-credit and to the digest."""

import asyncio
import itertools
import random
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from live_bridge.ledger.audit import audit_store
from live_bridge.ledger.journal import JournalError
from live_bridge.ledger.ledger import LocalLedger
from live_bridge.ledger.memory import MemoryStore
from live_bridge.ledger.orders import Open, Pay, Settle, Stake, Unstake
from live_bridge.ledger.sqlite import SqliteStore
from live_bridge.ledger.store import StoreError
from market.terms import MICRO

from .stage import (
    LEDGER,
    NETWORK,
    TERMS,
    Wall,
    accepted,
    authors,
    delivered_twice,
    duel_of,
    hold,
    ledger_on,
    opened,
    paid,
    terms_with,
)

PEOPLE = 6
VERDICTS = ("A", "B", "abstain", "absent")
_schemas = itertools.count()


class Engines(RuleBasedStateMachine):
    """The same orders to several ledgers at the same moments."""

    dsn: str | None = None
    operations = 0

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.wall = Wall()
        self.folder = tempfile.TemporaryDirectory()
        self.schema = f"machine{next(_schemas)}"
        self.memory = MemoryStore()
        self.people = authors(PEOPLE)
        self.sent = [author.write(Open()) for author in self.people]
        self.holds = 0
        self.ledgers = self.run(self.start())
        self.submit(self.sent)

    def run(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    async def start(self) -> list[LocalLedger]:
        stores = [self.memory, SqliteStore(Path(self.folder.name) / "l.sqlite")]
        if self.dsn is not None:
            from live_bridge.ledger.postgres import PostgresStore

            stores.append(await PostgresStore.connect(self.dsn, self.schema))
        how = {"speed": 1.0, "unix_s": self.wall, "count": [].append, "tick_s": float("inf")}
        return [await LocalLedger.start(store, LEDGER, NETWORK, TERMS, **how) for store in stores]

    def submit(self, orders) -> None:
        async def everywhere():
            return await asyncio.gather(*(ledger.submit_all(orders) for ledger in self.ledgers))

        first, *others = self.run(everywhere())
        for other in others:
            assert other == first
        Engines.operations += len(orders)

    def terms(self, kind: str, who: int, whom: int, amount: int):
        payee = self.people[whom]
        match kind:
            case "pay":
                return Pay(payee.identity.id, amount)
            case "hold":
                self.holds += 1
                return hold(payee, f"h{self.holds}", amount, ttl_s=1 + amount % 300)
            case "stake":
                return Stake(amount)
            case "unstake":
                return Unstake(amount)
            case "release":
                return Settle(f"h{1 + amount % (self.holds + 1)}", 0, 0, None)
            case "part":
                return Settle(f"h{1 + amount % (self.holds + 1)}", 1 + amount // 2, 5, None)
        return paid(payee, f"h{1 + amount % (self.holds + 1)}", amount)

    @rule(
        moves=st.lists(
            st.tuples(
                st.sampled_from(["pay", "hold", "hold", "settle", "settle", "part", "release", "stake", "unstake"]),
                st.integers(0, PEOPLE - 1),
                st.integers(0, PEOPLE - 1),
                st.integers(1, 60 * MICRO),
            ),
            min_size=1,
            max_size=40,
        )
    )
    def many_moves(self, moves) -> None:
        orders = [self.people[move[1]].write(self.terms(*move)) for move in moves]
        self.sent += orders
        self.submit(orders)

    @rule(seats=st.permutations(range(PEOPLE)), verdicts=st.lists(st.sampled_from(VERDICTS), min_size=1, max_size=3))
    def a_duel(self, seats, verdicts) -> None:
        origin, a, b, *judges = (self.people[seat] for seat in seats)
        self.holds += 1
        tag = f"d{self.holds}"
        orders = []
        for who, side in ((a, "a"), (b, "b")):
            orders += [hold(who, f"{tag}.{side}", MICRO, request=tag), paid(who, f"{tag}.{side}", text=side.encode())]
        orders.append(duel_of(origin, a, b, list(zip(judges, verdicts, strict=False)), tag))
        written = [origin.write(terms) for terms in orders]
        self.sent += written
        self.submit(written)

    @rule(places=st.lists(st.integers(0, 10**6), min_size=1, max_size=10))
    def old_orders_again(self, places) -> None:
        self.submit([self.sent[place % len(self.sent)] for place in places])

    @rule(passed_s=st.floats(0.0, 400.0))
    def time_passes(self, passed_s: float) -> None:
        self.wall.s += passed_s

    @rule()
    def a_tick(self) -> None:
        for ledger in self.ledgers:
            self.run(ledger.tick())

    @rule()
    def all_start_anew(self) -> None:
        for ledger in self.ledgers:
            self.run(ledger.close())
        self.ledgers = self.run(self.start())

    @invariant()
    def engines_are_equal_and_nothing_is_made_or_lost(self) -> None:
        first, *others = [self.run(ledger.accounts()) for ledger in self.ledgers]
        assert sum(sum(account) for account in first.values()) == PEOPLE * 102 * MICRO
        assert min(min(account) for account in first.values()) >= 0
        for other in others:
            assert other == first

    def teardown(self) -> None:
        states = [self.run(ledger.store.state()) for ledger in self.ledgers]
        for state in states[1:]:
            assert state == states[0]
        for ledger in self.ledgers:
            assert self.run(audit_store(ledger.store)).minted_micro == PEOPLE * 102 * MICRO
            self.run(ledger.close())
        self.loop.close()
        self.folder.cleanup()


class BusyEngines(Engines):
    """The same, with hours in which hundreds of orders come in."""

    @rule(seed=st.integers(0, 2**32))
    def a_busy_hour(self, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(4):
            kinds = chance.choices(["pay", "hold", "settle", "part", "release", "stake", "unstake"], [3, 4, 4, 2, 1, 2, 2], k=100)
            moves = [(kind, *chance.choices(range(PEOPLE), k=2), int(10 ** chance.uniform(0, 7.8))) for kind in kinds]
            orders = [self.people[move[1]].write(self.terms(*move)) for move in moves]
            self.submit(orders)
            self.wall.s += chance.uniform(0.0, 30.0)


@pytest.mark.parametrize("seed", range(5))
def test_how_orders_are_grouped_changes_nothing(seed: int) -> None:
    """All in one transaction, or each in its own, at the same moments: the same journal, and an audit that agrees."""

    async def run() -> None:
        wall = Wall()
        async with ledger_on(MemoryStore(), wall) as whole, ledger_on(MemoryStore(), wall) as single:
            chance = random.Random(seed)
            people = await opened(whole, 3)
            await opened(single, 3)
            for turn in range(60):
                orders = []
                for k in range(8):
                    author, other = chance.sample(people, 2)
                    amount = int(10 ** chance.uniform(0, 6.5))
                    choices = [
                        Unstake(amount), Unstake(amount), Stake(amount), Pay(other.identity.id, amount), Pay(author.identity.id, 1),
                        hold(other, f"h{turn}.{k}", amount, 1 + amount % 50), Settle(f"h{turn - 1}.{k}", 0, 0, None),
                    ]  # fmt: skip
                    orders.append(author.write(chance.choice(choices)))
                receipts = await whole.submit_all(orders)
                assert [await single.submit(order) for order in orders] == receipts
                wall.s += chance.uniform(0.0, 40.0)
            assert await whole.store.state() == await single.store.state()
            await audit_store(whole.store)

    asyncio.run(run())


def play(dsn: str | None, examples: int, steps: int, machine: type[Engines] = Engines) -> int:
    Engines.dsn, Engines.operations = dsn, 0
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    how = settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=quiet)
    run_state_machine_as_test(machine, settings=how)
    return Engines.operations


def test_memory_and_sqlite_stay_equal_whatever_is_asked() -> None:
    assert play(None, examples=8, steps=12) > 100


def test_all_three_engines_stay_equal_whatever_is_asked(postgres: str) -> None:
    assert play(postgres, examples=8, steps=12) > 100


@pytest.mark.slow
def test_a_hundred_thousand_operations_leave_three_engines_equal_and_the_sum_constant(postgres: str) -> None:
    done = 0
    while done < 100_000:
        done += play(postgres, examples=10, steps=30, machine=BusyEngines)


def test_all_is_there_after_a_restart(engine) -> None:
    async def run() -> None:
        async with ledger_on(await engine()) as ledger:
            ann, bob = await opened(ledger, 2)
            receipts = await accepted(ledger, ann, hold(bob, "h", 5 * MICRO), Stake(MICRO), Unstake(2 * MICRO))
            before = await ledger.accounts()
            founding = ledger.founding
        async with ledger_on(await engine()) as ledger:
            assert await ledger.accounts() == before
            assert ledger.founding == founding
            await accepted(ledger, ann, paid(bob, "h", 5 * MICRO))
            assert (await ledger.store.journal(receipts[0].place, 1))[0].digest.hex() == receipts[0].digest
            assert (await audit_store(ledger.store)).accounts == 2

    asyncio.run(run())


def test_a_ledger_goes_on_only_under_the_terms_that_it_was_founded_with(engine) -> None:
    async def run() -> None:
        async with ledger_on(await engine()):
            pass
        for how, key in (
            ({"terms": terms_with(slash_per_mille=200)}, "slash_per_mille 100 (now 200)"),
            ({"terms": terms_with(bond=25)}, "bond_micro 0 (now 25000000)"),
            ({"network": "other"}, "network test (now other)"),
            ({"speed": 20.0}, "speed_micro 1000000 (now 20000000)"),
            ({"identity": authors(1)[0].identity}, "public"),
        ):
            with pytest.raises(JournalError) as refused:
                async with ledger_on(await engine(), **how):
                    pass
            assert key in str(refused.value) and "set them back" in str(refused.value)

    asyncio.run(run())


def test_a_long_journal_is_read_page_by_page(engine) -> None:
    async def run() -> None:
        async with ledger_on(await engine()) as ledger:
            ann, bob = await opened(ledger, 2)
            await accepted(ledger, ann, *(Pay(bob.identity.id, 1) for _ in range(30)))
            store = ledger.store
            pages = [await store.journal(first, 7) for first in range(0, 40, 7)]
            assert [entry.place for page in pages for entry in page] == list(range(33))
            assert await store.journal(33, 7) == []
            assert (await store.head()).place == 32

    asyncio.run(run())


def test_a_book_that_fails_leaves_nothing_behind(engine) -> None:
    async def run() -> None:
        async with ledger_on(await engine()) as ledger:
            ann, bob = await opened(ledger, 2)
            before = await ledger.store.state()

            def fails(sheet, orders):
                ledger._book.apply(sheet, orders)
                raise AssertionError("a bug")

            from live_bridge.ledger.orders import check

            order = check(ann.write(Pay(bob.identity.id, 1)), ledger.realm)
            with pytest.raises(AssertionError):
                await ledger.store.write([order], ledger.now_us, fails)
            assert await ledger.store.state() == before
            await accepted(ledger, ann, Pay(bob.identity.id, 1))

    asyncio.run(run())


def test_orders_that_wait_together_share_a_transaction(engine) -> None:
    async def run() -> None:
        async with ledger_on(await engine()) as ledger:
            ann, bob = await opened(ledger, 2)
            groups = []
            write = ledger.store.write

            async def counted(orders, now_us, apply):
                groups.append(len(orders))
                return await write(orders, now_us, apply)

            ledger.store.write = counted
            orders = [ann.write(Pay(bob.identity.id, 1)) for _ in range(300)]
            receipts = await asyncio.gather(*map(ledger.submit, orders))
            assert all(receipt.accepted for receipt in receipts)
            assert sum(groups) == 300 and len(groups) < 30
            del ledger.store.write

    asyncio.run(run())


def test_a_client_that_leaves_takes_nothing_with_it(engine) -> None:
    async def run() -> None:
        async with ledger_on(await engine()) as ledger:
            ann, bob = await opened(ledger, 2)
            order = ann.write(Pay(bob.identity.id, 1))
            task = asyncio.create_task(ledger.submit(order))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert (await ledger.submit(ann.write(Pay(bob.identity.id, 1)))).accepted
            assert (await ledger.submit(order)).accepted
            assert (await ledger.accounts())[bob.identity.id].credit_micro == 100 * MICRO + 2

    asyncio.run(run())


@pytest.mark.parametrize("column", ["credit_micro", "stake_micro", "unbonding_micro", "escrow_micro"])
def test_the_database_itself_refuses_a_balance_below_zero(tmp_path: Path, column: str) -> None:
    async def run() -> None:
        async with ledger_on(SqliteStore(tmp_path / "l.sqlite")) as ledger:
            await opened(ledger, 1)

    asyncio.run(run())
    db = sqlite3.connect(tmp_path / "l.sqlite")
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        db.execute(f"UPDATE accounts SET {column} = -1")
    db.close()


def test_postgres_itself_refuses_a_balance_below_zero(postgres: str) -> None:
    import asyncpg

    from live_bridge.ledger.postgres import PostgresStore

    async def run() -> None:
        schema = f"checks{next(_schemas)}"
        async with ledger_on(await PostgresStore.connect(postgres, schema)) as ledger:
            await opened(ledger, 1)
        db = await asyncpg.connect(postgres, server_settings={"search_path": schema})
        for column in ("credit_micro", "stake_micro", "unbonding_micro", "escrow_micro"):
            with pytest.raises(asyncpg.CheckViolationError):
                await db.execute(f"UPDATE accounts SET {column} = -1")
        await db.close()

    asyncio.run(run())


def test_sqlite_syncs_every_commit(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "l.sqlite")
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    asyncio.run(store.close())


def test_what_is_no_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to be looked at as one" * 100)
    with pytest.raises(StoreError, match="cannot be used as a ledger"):
        SqliteStore(tmp_path / "text")
    with pytest.raises(StoreError, match="is not there"):
        SqliteStore(tmp_path / "nowhere", make=False)
    db = sqlite3.connect(tmp_path / "other")
    db.execute("CREATE TABLE songs (name TEXT)")
    db.commit()
    db.close()
    with pytest.raises(StoreError, match="has no journal"):
        SqliteStore(tmp_path / "other", make=False)


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    from live_bridge.ledger.postgres import PostgresStore

    for dsn in (f"postgresql://nobody@/none?host={tmp_path}", "not a dsn"):
        with pytest.raises(StoreError, match="ledger.dsn: cannot connect"):
            asyncio.run(PostgresStore.connect(dsn))
    with pytest.raises(StoreError, match="a schema's name"):
        asyncio.run(PostgresStore.connect("postgresql://nobody@/none", "x; DROP TABLE accounts"))


def test_orders_after_the_end_are_told_so(engine) -> None:
    async def run() -> None:
        async with ledger_on(await engine()) as ledger:
            ann, bob = await opened(ledger, 2)
            waiting = asyncio.create_task(ledger.submit(ann.write(Pay(bob.identity.id, 1))))
            await asyncio.sleep(0)
        with pytest.raises(StoreError, match="ask again"):
            await waiting
        with pytest.raises(StoreError, match="is closed"):
            await ledger.submit(ann.write(Pay(bob.identity.id, 1)))

    asyncio.run(run())


def test_a_duel_is_the_same_on_each_engine(engine) -> None:
    async def run() -> None:
        async with ledger_on(await engine(), Wall()) as ledger:
            origin, a, b, *judges = await opened(ledger, 6)
            await delivered_twice(ledger, origin, a, b)
            votes = zip(judges, ("A", "B", "A"), strict=True)
            (receipt,) = await accepted(ledger, origin, duel_of(origin, a, b, votes))
            assert receipt.reason == "won_by_a"
            state = await ledger.store.state()
            assert {hold.duelled for hold in state.holds} == {1}

    asyncio.run(run())
