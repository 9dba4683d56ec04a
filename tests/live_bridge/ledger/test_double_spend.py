"""200 payments of 1 from a balance of 1, all at once: exactly one succeeds, on every engine, in 20 repetitions."""

import asyncio
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import orjson
import pytest

from live_bridge.http import client_of, server_of
from live_bridge.http.message import Limits
from live_bridge.ledger.audit import audit_store
from live_bridge.ledger.orders import Author, Open, Pay, encode
from live_bridge.ledger.postgres import PostgresStore
from live_bridge.ledger.remote import PREFIX
from live_bridge.ledger.service import LedgerRoutes
from live_bridge.ledger.sqlite import SqliteStore
from live_bridge.ledger.store import Store
from market.terms import MICRO

from .spender import PAYEE, POOR
from .stage import REALM, ledger_on, person

PAYERS, PAYMENTS, PROCESSES = 20, 200, 4
ROOT = Path(__file__).parents[3]


async def prepare(ledger) -> None:
    """Open accounts with 1 credit each."""
    people = [Author(person(k), REALM, 0) for k in (*range(PAYERS), PAYEE)]
    assert all(receipt.accepted for receipt in await ledger.submit_all([author.write(Open()) for author in people]))


async def prove(ledger) -> None:
    """Each payer has paid once, and nothing was made or lost."""
    accounts = await ledger.accounts()
    assert accounts[person(PAYEE).id].credit_micro == (1 + PAYERS) * MICRO
    assert all(accounts[person(k).id].credit_micro == 0 for k in range(PAYERS))
    assert (await audit_store(ledger.store)).minted_micro == (1 + PAYERS) * MICRO


def test_one_process_lets_one_of_two_hundred_payments_through(engine) -> None:
    async def run() -> None:
        async with ledger_on(await engine(), terms=POOR) as ledger:
            await prepare(ledger)
            for payer in range(PAYERS):
                author = Author(person(payer), REALM, 0)
                orders = [author.write(Pay(person(PAYEE).id, MICRO)) for _ in range(PAYMENTS)]
                receipts = await asyncio.gather(*map(ledger.submit, orders))
                assert sum(receipt.accepted for receipt in receipts) == 1
            await prove(ledger)

    asyncio.run(run())


def test_the_api_lets_one_of_two_hundred_payments_through(tmp_path: Path) -> None:
    async def run() -> None:
        async with ledger_on(SqliteStore(tmp_path / "l.sqlite"), terms=POOR) as ledger:
            await prepare(ledger)
            server = server_of("own", LedgerRoutes(ledger, [].append).handle, Limits(), [].append)
            url = f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}{PREFIX}orders"
            client = client_of("own")

            async def pay(order) -> bool:
                reply = await client.request("POST", url, [], encode(order))
                assert reply.status == 200
                return orjson.loads(await reply.body(10_000))["receipts"][0]["accepted"]

            for payer in range(PAYERS):
                author = Author(person(payer), REALM, 0)
                orders = [author.write(Pay(person(PAYEE).id, MICRO)) for _ in range(PAYMENTS)]
                assert sum(await asyncio.gather(*map(pay, orders))) == 1
            await client.close()
            await server.drain(1.0)
            await prove(ledger)

    asyncio.run(run())


def spend(where: str) -> None:
    """Have four processes pay from the same accounts at once."""
    words = [sys.executable, "-m", "tests.live_bridge.ledger.spender", where]
    how = {"cwd": ROOT, "env": {**os.environ, "RULES": "python"}, "text": True}
    each = PAYMENTS // PROCESSES
    with ExitStack() as stack:
        spenders = [
            stack.enter_context(
                subprocess.Popen([*words, str(k), str(PAYERS), str(each)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **how)
            )
            for k in range(PROCESSES)
        ]
        for spender in spenders:
            assert spender.stdout.readline() == "ready\n"
        for spender in spenders:
            spender.stdin.write("go\n")
            spender.stdin.flush()
        accepted = [[int(line) for line in spender.communicate(timeout=60)[0].split()] for spender in spenders]
    assert [sum(payer) for payer in zip(*accepted, strict=True)] == [1] * PAYERS


def test_four_processes_on_one_file_let_one_of_two_hundred_payments_through(tmp_path: Path) -> None:
    async def run(play) -> None:
        async with ledger_on(SqliteStore(tmp_path / "l.sqlite"), terms=POOR) as ledger:
            await play(ledger)

    asyncio.run(run(prepare))
    spend(str(tmp_path / "l.sqlite"))
    asyncio.run(run(prove))


def test_four_processes_on_one_server_let_one_of_two_hundred_payments_through(postgres: str) -> None:
    async def run(play) -> None:
        store: Store = await PostgresStore.connect(postgres, "spenders")
        async with ledger_on(store, terms=POOR) as ledger:
            await play(ledger)

    asyncio.run(run(prepare))
    spend(f"{postgres}#spenders")
    asyncio.run(run(prove))


def test_processes_that_found_a_ledger_at_once_found_one(tmp_path: Path, postgres: str) -> None:
    async def founded(store: Store) -> str:
        async with ledger_on(store) as ledger:
            return ledger.founding.signature

    async def run() -> None:
        files = [SqliteStore(tmp_path / "l.sqlite") for _ in range(5)]
        assert len(set(await asyncio.gather(*map(founded, files)))) == 1
        servers = await asyncio.gather(*(PostgresStore.connect(postgres, "founders") for _ in range(5)))
        assert len(set(await asyncio.gather(*map(founded, servers)))) == 1

    asyncio.run(run())


@pytest.mark.parametrize("times", [2])
def test_the_same_payment_sent_twice_at_once_is_made_once(engine, times: int) -> None:
    async def run() -> None:
        async with ledger_on(await engine()) as ledger:
            ann, bob = Author(person(0), REALM, 0), Author(person(1), REALM, 0)
            await ledger.submit_all([ann.write(Open()), bob.write(Open())])
            order = ann.write(Pay(bob.identity.id, MICRO))
            receipts = await asyncio.gather(*(ledger.submit(order) for _ in range(50)))
            assert len(set(receipts)) == 1 and receipts[0].accepted
            both = await ledger.submit_all([order] * times)
            assert both == [receipts[0]] * times
            assert (await ledger.accounts())[bob.identity.id].credit_micro == 101 * MICRO

    asyncio.run(run())
