"""The ledger over HTTP, with real sockets and processes: only what is signed is believed, and asking again is safe."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

from live_bridge.cli import main as command
from live_bridge.http import client_of, server_of
from live_bridge.http.message import Limits
from live_bridge.identity import Identity
from live_bridge.ledger.audit import Finding, audit_url
from live_bridge.ledger.journal import NOWHERE, Receipt, is_signed, sign_receipt
from live_bridge.ledger.memory import MemoryStore
from live_bridge.ledger.orders import Author, Open, Order, Pay, Stake, encode
from live_bridge.ledger.remote import PREFIX, RemoteLedger
from live_bridge.ledger.service import LedgerRoutes
from live_bridge.ledger.sqlite import SqliteStore
from live_bridge.ledger.store import StoreError
from market.terms import MICRO

from .stage import LEDGER, NETWORK, Wall, accepted, authors, hold, ledger_on, opened, paid, person, refused

ROOT = Path(__file__).parents[3]


@asynccontextmanager
async def serving(handle, port: int = 0):
    """Serve a handler; gives a client and the URL."""
    server = server_of("own", handle, Limits(), [].append)
    client = client_of("own")
    port = await server.listen("127.0.0.1", port)
    try:
        yield client, f"http://127.0.0.1:{port}"
    finally:
        await client.close()
        await server.drain(1.0)


@asynccontextmanager
async def ledger_at(ledger, counts=None, patience_s: float = 5.0):
    """Serve a ledger, and reach it as another node does."""
    handle = LedgerRoutes(ledger, (counts if counts is not None else []).append).handle
    async with serving(handle) as (client, url):
        remote = await RemoteLedger.connect(client, url, network=NETWORK, patience_s=patience_s)
        try:
            yield remote, client, url
        finally:
            await remote.close()


async def ask(client, method: str, url: str, body: bytes = b""):
    """Status and JSON of an answer."""
    reply = await client.request(method, url, [], body)
    assert reply.header(b"content-type") == b"application/json"
    return reply.status, orjson.loads(await reply.body(10**7))


def test_a_ledger_far_away_does_what_one_at_hand_does(engine) -> None:
    async def run() -> None:
        async with ledger_on(await engine(), Wall()) as ledger, ledger_at(ledger) as (remote, client, url):
            ann, bob = await opened(remote, 2)
            (receipt, *_) = await accepted(remote, ann, hold(bob, "h", 5 * MICRO), paid(bob, "h", 4 * MICRO), Stake(MICRO))
            assert await refused(remote, ann, Pay(bob.identity.id, 1000 * MICRO)) == "insufficient_credit"
            assert await remote.accounts() == await ledger.accounts()
            assert remote.founding == ledger.founding
            assert is_signed(receipt, NETWORK, LEDGER.public) and remote.signed(receipt) is receipt
            assert (await audit_url(client, url)).minted_micro == 2 * 102 * MICRO

    asyncio.run(run())


def test_many_orders_at_once_go_in_few_bodies() -> None:
    async def run() -> None:
        bodies = []
        async with ledger_on(MemoryStore()) as ledger:
            routes = LedgerRoutes(ledger, [].append)

            async def counted(request, response):
                bodies.append(request.method)
                await routes.handle(request, response)

            async with serving(counted) as (client, url):
                remote = await RemoteLedger.connect(client, url, network=NETWORK, patience_s=5.0)
                ann, bob = await opened(remote, 2)
                bodies.clear()
                receipts = await asyncio.gather(*(remote.submit(ann.write(Pay(bob.identity.id, 1))) for _ in range(300)))
                assert all(receipt.accepted for receipt in receipts) and len(bodies) <= 4
                assert len({receipt.order_id for receipt in receipts}) == 300
                await remote.close()

    asyncio.run(run())


def test_one_order_or_many_in_a_body_have_their_receipts_in_turn() -> None:
    async def run() -> None:
        counts: list[str] = []
        async with ledger_on(MemoryStore()) as ledger, ledger_at(ledger, counts) as (_, client, url):
            ann, bob = authors(2)
            status, value = await ask(client, "POST", f"{url}{PREFIX}orders", encode(ann.write(Open())))
            assert status == 200 and [receipt["accepted"] for receipt in value["receipts"]] == [True]
            orders = [
                orjson.loads(encode(author.write(terms))) for author, terms in ((bob, Open()), (ann, Stake(1)), (bob, Stake(2)))
            ]
            orders[1:1] = [{"kind": "mint"}, "order", None]
            status, value = await ask(client, "POST", f"{url}{PREFIX}orders", orjson.dumps({"orders": orders}))
            receipts = [Receipt(**receipt) for receipt in value["receipts"]]
            assert status == 200
            assert [receipt.code for receipt in receipts] == ["", "malformed", "malformed", "malformed", "", ""]
            assert [receipt.account for receipt in receipts if receipt.accepted] == [
                bob.identity.id,
                ann.identity.id,
                bob.identity.id,
            ]
            assert all(is_signed(receipt, NETWORK, LEDGER.public) for receipt in receipts)
            assert counts == ["malformed"] * 3

    asyncio.run(run())


def test_the_same_order_again_has_the_same_bytes_as_its_receipt() -> None:
    async def run() -> None:
        async with ledger_on(MemoryStore()) as ledger, ledger_at(ledger) as (_, client, url):
            (ann,) = await opened(ledger, 1)
            body = encode(ann.write(Stake(5)))
            replies = [await client.request("POST", f"{url}{PREFIX}orders", [], body) for _ in range(20)]
            assert len({await reply.body(10_000) for reply in replies}) == 1

    asyncio.run(run())


ASKED = [
    ("POST", "orders", b"{", 400, "body: is not JSON"),
    ("POST", "orders", b'{"orders": []}', 400, "orders: must be a list of 1 to 1000"),
    ("POST", "orders", b'{"orders": 5}', 400, "orders: must be a list"),
    ("POST", "orders", b'{"orders": [' + b"1," * 1000 + b"1]}", 400, "orders: must be a list"),
    ("POST", "orders", b"[" * 2000, 400, "body: is not JSON"),
    ("GET", "orders", b"", 405, "does not answer GET"),
    ("POST", "accounts", b"", 405, "does not answer POST"),
    ("GET", "secrets", b"", 404, "there is only accounts, head, journal, orders"),
    ("GET", "journal?from=x", b"", 400, "from: must be a whole number"),
    ("GET", "journal?from=-1", b"", 400, "from: must be a whole number"),
    ("GET", "journal?most=1001", b"", 400, "most: must be a whole number in [0, 1000], got '1001'"),
    ("GET", "journal?from=%C2%B2", b"", 400, "from: must be"),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"), ASKED, ids=[f"{method}-{path}"[:30] for method, path, *_ in ASKED]
)
def test_what_is_no_request_for_a_ledger_is_named(method: str, path: str, body: bytes, status: int, text: str) -> None:
    async def run() -> None:
        async with ledger_on(MemoryStore()) as ledger, ledger_at(ledger) as (_, client, url):
            found, value = await ask(client, method, f"{url}{PREFIX}{path}", body)
            assert found == status and text in value["error"]["message"] and value["error"]["type"] == "invalid_request_error"

    asyncio.run(run())


def test_the_journal_is_given_in_pages() -> None:
    async def run() -> None:
        async with ledger_on(MemoryStore()) as ledger, ledger_at(ledger) as (_, client, url):
            ann, bob = await opened(ledger, 2)
            await accepted(ledger, ann, *(Pay(bob.identity.id, 1) for _ in range(20)))
            places = []
            for first in range(0, 25, 5):
                status, value = await ask(client, "GET", f"{url}{PREFIX}journal?from={first}&most=5")
                assert status == 200
                places += [entry["place"] for entry in value["entries"]]
            assert places == list(range(23))
            _, value = await ask(client, "GET", f"{url}{PREFIX}head")
            assert value["head"]["place"] == 22

    asyncio.run(run())


def lying(ledger, lie):
    """A handler that changes what the ledger says: `lie(path, value)` works on parsed JSON in place."""
    routes = LedgerRoutes(ledger, [].append)

    class Caught:
        def send(self, status, headers, body):
            self.value = orjson.loads(body)

    async def handle(request, response):
        caught = Caught()
        await routes.handle(request, caught)
        lie(request.path.removeprefix(PREFIX), caught.value)
        response.send(200, [(b"content-type", b"application/json")], orjson.dumps(caught.value))

    return handle


def lie_accepted(path, value) -> None:
    if path == "orders":
        value["receipts"][0]["accepted"] = True


def lie_balance(path, value) -> None:
    if path == "orders":
        value["receipts"][0]["credit_micro"] += 1


def lie_none(path, value) -> None:
    if path == "orders":
        value["receipts"] = []


def lie_more(path, value) -> None:
    if path == "orders":
        value["receipts"][0]["more"] = 1


def lie_kind(path, value) -> None:
    if path == "orders":
        value["receipts"][0]["credit_micro"] = None


def lie_other_ledger(path, value) -> None:
    if path == "orders":
        receipt = Receipt(**value["receipts"][0])._replace(accepted=True)
        value["receipts"][0] = sign_receipt(Identity(b"X" * 32), NETWORK, receipt)._asdict()


@pytest.mark.parametrize("lie", [lie_accepted, lie_balance, lie_none, lie_more, lie_kind, lie_other_ledger])
def test_a_receipt_that_the_ledger_has_not_signed_is_not_believed(lie) -> None:
    async def run() -> None:
        async with ledger_on(MemoryStore()) as ledger, serving(lying(ledger, lie)) as (client, url):
            remote = await RemoteLedger.connect(client, url, network=NETWORK, patience_s=0.1)
            ann, bob = await opened(ledger, 2)
            with pytest.raises(StoreError, match="whether the order was done is not known"):
                await remote.submit(ann.write(Pay(bob.identity.id, 1000 * MICRO)))
            await remote.close()

    asyncio.run(run())


def test_a_receipt_of_another_order_is_not_believed() -> None:
    kept: list = []

    def lie(path, value) -> None:
        if path == "orders":
            kept.append(value["receipts"])
            value["receipts"] = kept[0]

    async def run() -> None:
        async with ledger_on(MemoryStore()) as ledger, serving(lying(ledger, lie)) as (client, url):
            remote = await RemoteLedger.connect(client, url, network=NETWORK, patience_s=0.1)
            ann, bob = await opened(ledger, 2)
            assert (await remote.submit(ann.write(Pay(bob.identity.id, 1)))).accepted
            with pytest.raises(StoreError, match="a receipt is for another order"):
                await remote.submit(ann.write(Pay(bob.identity.id, 1000 * MICRO)))
            await remote.close()

    asyncio.run(run())


def test_balances_that_the_ledger_has_not_signed_or_that_are_old_are_not_believed() -> None:
    kept: list = []

    def richer(path, value) -> None:
        if path == "accounts" and kept == ["lie"]:
            next(iter(value["accounts"].values()))[0] += 1

    def older(path, value) -> None:
        if path == "accounts":
            kept.append(dict(value))
            if len(kept) == 3:
                value.update(kept[0])

    async def run() -> None:
        async with ledger_on(MemoryStore()) as ledger:
            ann, bob = await opened(ledger, 2)
            async with serving(lying(ledger, richer)) as (client, url):
                remote = await RemoteLedger.connect(client, url, network=NETWORK, patience_s=0.1)
                assert await remote.accounts() == await ledger.accounts()
                kept.append("lie")
                with pytest.raises(StoreError, match="accounts are not signed by the ledger"):
                    await remote.accounts()
                await remote.close()
            kept.clear()
            async with serving(lying(ledger, older)) as (client, url):
                remote = await RemoteLedger.connect(client, url, network=NETWORK, patience_s=0.1)
                await remote.accounts()
                await accepted(ledger, ann, Pay(bob.identity.id, 1))
                await remote.accounts()
                with pytest.raises(StoreError, match="has shown entry 3 before"):
                    await remote.accounts()
                await remote.close()

    asyncio.run(run())


def test_an_audit_by_url_finds_a_lie() -> None:
    def changed(path, value) -> None:
        if path == "journal":
            for entry in value["entries"]:
                if entry["place"] == 2:
                    entry["after"][0] += 1

    def shorter(path, value) -> None:
        if path == "journal":
            value["entries"] = [entry for entry in value["entries"] if entry["place"] < 2]

    async def run() -> None:
        async with ledger_on(MemoryStore()) as ledger:
            await opened(ledger, 3)
            for lie, place in ((changed, 2), (shorter, 2)):
                async with serving(lying(ledger, lie)) as (client, url):
                    with pytest.raises(Finding) as finding:
                        await audit_url(client, url)
                    assert finding.value.place == place

    asyncio.run(run())


def test_a_malformed_order_never_leaves_the_house() -> None:
    async def run() -> None:
        async with ledger_on(MemoryStore()) as ledger, ledger_at(ledger) as (remote, _, _):
            (ann,) = await opened(remote, 1)
            bad = Order("pay", ann.identity.public.hex(), 5, Pay("bob", 1), "0" * 128)
            receipt = await remote.submit(bad)
            assert (receipt.accepted, receipt.code, receipt.place) == (False, "malformed", NOWHERE)
            forged = Order("stake", ann.identity.public.hex(), 5, Stake(1), "0" * 128)
            assert (await remote.submit(forged)).code == "signature"

    asyncio.run(run())


def test_a_node_joins_only_the_ledger_of_its_network() -> None:
    async def run() -> None:
        async with ledger_on(MemoryStore()) as ledger:
            async with serving(LedgerRoutes(ledger, [].append).handle) as (client, url):
                with pytest.raises(StoreError, match="is the ledger of network 'test', not of 'other'"):
                    await RemoteLedger.connect(client, url, network="other", patience_s=1.0)

            async def other(request, response):
                response.send(200, [], b'{"hello": 1}')

            async with serving(other) as (client, url):
                with pytest.raises(StoreError, match="no ledger answers there"):
                    await RemoteLedger.connect(client, url, network=NETWORK, patience_s=1.0)

    asyncio.run(run())


def test_an_engine_that_cannot_write_is_a_503_and_the_order_is_sent_again() -> None:
    async def run() -> None:
        async with ledger_on(MemoryStore()) as ledger, ledger_at(ledger) as (remote, client, url):
            ann, bob = await opened(remote, 2)
            write = ledger.store.write
            failures = [2]

            async def failing(orders, now_us, apply):
                if failures[0] > 0:
                    failures[0] -= 1
                    raise StoreError("disk is full")
                return await write(orders, now_us, apply)

            ledger.store.write = failing
            status, value = await ask(client, "POST", f"{url}{PREFIX}orders", encode(ann.write(Stake(1))))
            assert status == 503 and "disk is full" in value["error"]["message"] and value["error"]["type"] == "server_error"
            assert (await remote.submit(ann.write(Pay(bob.identity.id, 1)))).accepted
            assert failures == [0]

    asyncio.run(run())


def test_a_ledger_that_answers_only_the_second_time_has_done_the_order_once(tmp_path: Path) -> None:
    """The answer is lost behind the commit: the node asks again and gets the first receipt."""

    async def run() -> None:
        async with ledger_on(SqliteStore(tmp_path / "l.sqlite")) as ledger:
            routes = LedgerRoutes(ledger, [].append)
            lost = [1]

            async def forgetful(request, response):
                if request.method == "POST" and lost[0] > 0:
                    lost[0] -= 1
                    await ledger.submit_all([])
                    await routes.handle(request, Deaf())
                    response.start(200, [])
                    response.abort()
                    return
                await routes.handle(request, response)

            async with serving(forgetful) as (client, url):
                remote = await RemoteLedger.connect(client, url, network=NETWORK, patience_s=5.0)
                ann, bob = await opened(ledger, 2)
                assert (await remote.submit(ann.write(Pay(bob.identity.id, MICRO)))).accepted
                assert lost == [0]
                assert (await remote.accounts())[bob.identity.id].credit_micro == 101 * MICRO
                await remote.close()

    asyncio.run(run())


class Deaf:
    """A response that nobody hears."""

    def send(self, status, headers, body) -> None:
        assert status == 200


def free_port() -> int:
    """A port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(home: Path, port: int) -> subprocess.Popen:
    """Start `live_bridge ledger serve`, and wait until it says where."""
    words = [sys.executable, "-m", "live_bridge", "ledger", "serve", "--home", str(home), "--listen", f"127.0.0.1:{port}"]
    process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "RULES": "python"}, stdout=subprocess.PIPE, text=True)
    assert "ledger" in process.stdout.readline()
    return process


def test_orders_outlive_the_kill_of_their_ledger(tmp_path: Path, capsys) -> None:
    """A real process, killed while orders come in and started again: every order is done once, and each has its receipt."""
    port = free_port()

    async def run() -> int:
        loop = asyncio.get_running_loop()
        process = await loop.run_in_executor(None, serve, tmp_path, port)
        client = client_of("own")
        remote = await RemoteLedger.connect(client, f"http://127.0.0.1:{port}", network="wwwserve", patience_s=30.0)
        ann, bob = (Author(person(k), remote.founding.realm) for k in range(2))
        await accepted(remote, ann, Open())
        await accepted(remote, bob, Open())
        done = 0

        async def pay() -> None:
            nonlocal done
            for _ in range(40):
                assert (await remote.submit(ann.write(Pay(bob.identity.id, 1)))).accepted
                done += 1

        paying = asyncio.gather(*(pay() for _ in range(5)))
        while done < 20:
            await asyncio.sleep(0)
        process.kill()
        process.communicate()
        process = await loop.run_in_executor(None, serve, tmp_path, port)
        await paying
        assert (await remote.accounts())[bob.identity.id].credit_micro == 100 * MICRO + 200
        await audit_url(client, f"http://127.0.0.1:{port}")
        await remote.close()
        await client.close()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        return process.returncode

    assert asyncio.run(run()) == 0
    assert command(["ledger", "audit", str(tmp_path / "ledger.sqlite")]) == 0
    assert "203 entries" in capsys.readouterr().out


def test_the_commands_reach_a_ledger_by_its_url(tmp_path: Path, capsys) -> None:
    port = free_port()
    process = serve(tmp_path, port)
    try:
        assert command(["ledger", "audit", f"http://127.0.0.1:{port}"]) == 0
        assert "1 entries, 0 accounts, 0.000000 credits" in capsys.readouterr().out
        assert command(["ledger", "accounts", f"http://127.0.0.1:{port}/"]) == 0
        assert capsys.readouterr().out.split() == ["account", "credit", "stake", "unbonding", "escrow"]
        assert command(["ledger", "serve", "--home", str(tmp_path / "b"), "--listen", f"127.0.0.1:{port}"]) == 2
        assert f"cannot use 127.0.0.1:{port}" in capsys.readouterr().err
        assert command(["ledger", "serve", "--home", str(tmp_path), "--listen", "127.0.0.1:0", "--network", "other"]) == 2
        assert "network wwwserve (now other)" in capsys.readouterr().err
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert (tmp_path / "ledger.key").stat().st_mode & 0o777 == 0o600
