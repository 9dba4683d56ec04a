"""The money rules are the market's: the book moves nothing by itself, and what it does is what market/ does."""

import ast
import asyncio
import inspect
import itertools
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import live_bridge.ledger
from live_bridge.ledger import book
from live_bridge.ledger.audit import audit_store
from live_bridge.ledger.memory import MemoryStore
from live_bridge.ledger.orders import Author, Open, Pay, Stake, Unstake
from live_bridge.ledger.sheet import Account, record_of, row_of
from live_bridge.ledger.sqlite import SqliteStore
from market import duel as duels
from market import ledger as rules
from market.rule import record_class
from market.terms import MICRO

from .stage import (
    TERMS,
    Wall,
    accepted,
    delivered_twice,
    duel_of,
    hold,
    ledger_on,
    on_memory,
    opened,
    paid,
    person,
    terms_with,
    wealth,
)

MONEY = {"credit_micro", "stake_micro", "unbonding_micro", "escrow_micro", "tranche_micro", "tranche_s", "tranches"}


def test_no_file_of_the_ledger_changes_a_balance_but_by_a_rule() -> None:
    """Only `record_of` sets the fields of an account, when it reads what an engine has kept."""
    folder = Path(inspect.getfile(live_bridge.ledger)).parent
    changed = []
    for path in sorted(folder.glob("*.py")):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign) else []
                for target in targets:
                    for part in ast.walk(target):
                        if isinstance(part, ast.Attribute) and part.attr in MONEY:
                            changed.append(f"{path.name}:{function.name}")
    assert set(changed) == {"sheet.py:record_of"}


def test_the_book_calls_every_rule_of_the_market_that_moves_money() -> None:
    called = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(book)))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in {"rules", "duels"}
    }
    assert {"open_account", "pay", "escrow", "settle", "commit", "release", "mature"} <= called


account_rows = st.tuples(
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.lists(st.tuples(st.integers(1, 10**9), st.floats(0.0, 1e9)), max_size=rules.TRANCHES),
)


@given(account_rows)
def test_an_account_is_read_as_it_was_written(values) -> None:
    credit, stake, held, tranches = values
    record = Account()
    record.credit_micro, record.stake_micro, record.escrow_micro = credit, stake, held
    for amount, free_s in sorted(tranches, key=lambda tranche: tranche[1]):
        record.tranche_micro[record.tranches], record.tranche_s[record.tranches] = amount, free_s
        record.tranches += 1
        record.unbonding_micro += amount
    again = record_of(row_of("x", record))
    assert row_of("x", again) == row_of("x", record)
    for now_s in (0.0, 1e8, 2e9):
        rules.mature(record, now_s)
        rules.mature(again, now_s)
        assert row_of("x", again) == row_of("x", record)


@settings(max_examples=40, deadline=None)
@given(
    stakes=st.lists(st.integers(0, 50 * MICRO), min_size=6, max_size=6),
    leaving=st.lists(st.integers(0, 100), min_size=6, max_size=6),
    verdicts=st.lists(st.sampled_from(["A", "B", "abstain", "absent"]), min_size=1, max_size=3),
    bond=st.integers(0, 60),
)
def test_a_duel_of_the_ledger_is_a_duel_of_the_market(stakes, leaving, verdicts, bond) -> None:
    """The same stakes and votes through market.duel on records of its own."""

    async def play(ledger):
        people = await opened(ledger, 6)
        origin, a, b, *judges = people
        for author, stake, percent in zip(people, stakes, leaving, strict=True):
            if stake:
                await accepted(ledger, author, Stake(stake))
            if (2 * MICRO + stake) * percent // 100:
                await accepted(ledger, author, Unstake((2 * MICRO + stake) * percent // 100))
        await delivered_twice(ledger, origin, a, b)
        names = [author.identity.id for author in (a, b, *judges[: len(verdicts)])]
        rows = {row.account: row for row in (await ledger.store.state()).rows}
        records = [record_of(rows[name]) for name in names]
        contest = record_class(duels.DUEL)()
        contest.executor_b, contest.judges = 1, len(verdicts)
        for seat, verdict in enumerate(verdicts):
            contest.judge[seat] = 2 + seat
            contest.vote[seat] = {"A": duels.FOR_A, "B": duels.FOR_B, "abstain": duels.ABSTAIN, "absent": duels.PENDING}[verdict]
        result = duels.settle(
            contest, records, 0, TERMS.slash_per_mille, bond * MICRO, TERMS.minority_per_mille, TERMS.absent_per_mille
        )
        votes = list(zip(judges, verdicts, strict=False))
        (receipt,) = await accepted(ledger, origin, duel_of(origin, a, b, votes))
        assert receipt.reason == {duels.FOR_A: "won_by_a", duels.FOR_B: "won_by_b", duels.NONE: "tie"}[result]
        after = {row.account: row for row in (await ledger.store.state()).rows}
        assert [after[name] for name in names] == [row_of(name, record) for name, record in zip(names, records, strict=True)]

    on_memory(play, wall=Wall(), terms=terms_with(bond=bond))


def test_many_duels_leave_no_open_hold_and_lose_no_credit() -> None:
    """What is set aside for duels, and for judges who never come, is back when its time is over."""
    wall = Wall()

    async def play(ledger):
        people = await opened(ledger, 6)
        chance = random.Random(7)
        for k in range(300):
            origin, a, b, *judges = chance.sample(people, 6)
            tag = f"t{k}"
            names = [f"{tag}.{seat}" for seat in range(3)]
            fees = [hold(judge, name, 1000, 60, tag, "judge") for judge, name in zip(judges, names, strict=True)]
            await accepted(ledger, origin, *fees)
            if chance.random() < 0.3:  # an executor hangs: its hold runs out, and there is no duel
                await accepted(ledger, origin, hold(a, f"{tag}.a", 1000, 60, tag))
            else:
                for who, side in ((a, "a"), (b, "b")):
                    work = paid(who, f"{tag}.{side}", 1000, text=side.encode())
                    await accepted(ledger, origin, hold(who, f"{tag}.{side}", 1000, 60, tag), work)
                verdicts = [chance.choice(["A", "B", "abstain", "absent"]) for _ in judges]
                came = [(j, n) for j, n, verdict in zip(judges, names, verdicts, strict=True) if verdict != "absent"]
                await accepted(ledger, origin, duel_of(origin, a, b, zip(judges, verdicts, strict=True), tag))
                for judge, name in came:
                    await accepted(ledger, origin, paid(judge, name, 1000))
            wall.s += chance.uniform(0.0, 5.0)
        wall.s += 60
        accounts = await ledger.accounts()
        assert sum(account.escrow_micro for account in accounts.values()) == 0
        assert await wealth(ledger) == 6 * 102 * MICRO
        assert (await audit_store(ledger.store)).open_holds == 0

    on_memory(play, wall=wall)


def test_the_order_of_orders_is_the_order_of_their_effects() -> None:
    async def play(ledger):
        ann, bob, cat = await opened(ledger, 3)
        chain = [
            ann.write(Pay(bob.identity.id, 100 * MICRO)),
            bob.write(Pay(cat.identity.id, 200 * MICRO)),
            cat.write(Pay(ann.identity.id, 300 * MICRO)),
            ann.write(Pay(bob.identity.id, 300 * MICRO)),
        ]
        receipts = await ledger.submit_all(chain)
        assert [receipt.accepted for receipt in receipts] == [True] * 4
        assert [receipt.place for receipt in receipts] == [4, 5, 6, 7]
        assert (await ledger.accounts())[bob.identity.id].credit_micro == 300 * MICRO

    on_memory(play)


@pytest.mark.parametrize("batches", [1, 7, 64, 513, 1200])
def test_groups_of_any_size_are_written_whole(tmp_path: Path, batches: int) -> None:
    """Statements take 64, 8 or 1 rows: no length may lose one."""

    async def run() -> None:
        async with ledger_on(SqliteStore(tmp_path / "l.sqlite"), Wall()) as ledger, ledger_on(MemoryStore(), Wall()) as other:
            people = [Author(person(k), ledger.realm, 0) for k in range(batches)]
            orders = [author.write(Open()) for author in people]
            orders += [a.write(hold(b, f"h{k}")) for k, (a, b) in enumerate(itertools.pairwise(people))]
            assert await ledger.submit_all(orders) == await other.submit_all(orders)
            assert await ledger.store.state() == await other.store.state()
            assert (await ledger.store.head()).place == len(orders)

    asyncio.run(run())
