"""What ledger tests share: people with keys, a clock that stands still until it is moved, and ledgers on each engine."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from math import inf
from typing import Any

from live_bridge.config import terms_named
from live_bridge.identity import Identity
from live_bridge.ledger.journal import Receipt
from live_bridge.ledger.ledger import LocalLedger
from live_bridge.ledger.memory import MemoryStore
from live_bridge.ledger.orders import Author, Delivery, Duel, Hold, Open, Realm, Settle, Side, Vote, duel_name
from live_bridge.ledger.store import Store
from live_bridge.peers.frames import RECEIPT_DOMAIN, receipt_bytes
from live_bridge.peers.frames import Receipt as Claim
from live_bridge.peers.judge import sign_vote
from market.duel import ABSTAIN, FOR_A, FOR_B
from market.terms import MICRO, Terms

NETWORK = "test"
TERMS = terms_named("paper")
LEDGER = Identity(b"L" * 32)
REALM = Realm(NETWORK, LEDGER.id)
SECOND_US = 1_000_000
VOTES = {"A": FOR_A, "B": FOR_B, "abstain": ABSTAIN}


@cache
def person(number: int) -> Identity:
    """One of any number of people, always the same."""
    return Identity(hashlib.sha256(number.to_bytes(8, "big")).digest())


class Wall:
    """A clock on the wall that stands still."""

    def __init__(self) -> None:
        self.s = 1_000_000.0

    def __call__(self) -> float:
        return self.s


@asynccontextmanager
async def ledger_on(
    store: Store, wall: Any = time.time, terms: Terms = TERMS, counts: list[str] | None = None, network: str = NETWORK,
    identity: Identity = LEDGER, speed: float = 1.0,
) -> AsyncIterator[LocalLedger]:  # fmt: skip
    """Run a ledger, and close it."""
    count = (counts if counts is not None else []).append
    ledger = await LocalLedger.start(store, identity, network, terms, speed=speed, unix_s=wall, count=count, tick_s=inf)
    try:
        yield ledger
    finally:
        await ledger.close()


def terms_with(**values: Any) -> Terms:
    """The paper's terms, but for these."""
    return replace(TERMS, **values)


def authors(count: int, realm: Realm = REALM) -> list[Author]:
    """People who write orders, each from sequence 1."""
    return [Author(person(k), realm, 0) for k in range(count)]


async def opened(ledger: LocalLedger, count: int) -> list[Author]:
    """People with accounts."""
    people = authors(count, ledger.founding.realm)
    for receipt in await ledger.submit_all([author.write(Open()) for author in people]):
        assert receipt.accepted
    return people


def hold(payee: Author, hold_id: str, amount: int = MICRO, ttl_s: float = 900, request: str = "r1", purpose: str = "work") -> Hold:
    """Set aside for `payee`."""
    return Hold(hold_id, payee.identity.id, amount, round(ttl_s * SECOND_US), purpose, request)


def delivery(payee: Author, hold_id: str, tokens: int = 10, text: bytes = b"an answer", network: str = NETWORK) -> Delivery:
    """What `payee` has signed for."""
    digest = hashlib.sha256(text).digest()
    signature = payee.identity.sign(RECEIPT_DOMAIN, receipt_bytes(network, hold_id, tokens, digest))
    return Delivery.of(payee.identity.public, Claim(hold_id, tokens, digest, signature))


def paid(payee: Author, hold_id: str, amount: int = MICRO, tokens: int = 10, text: bytes = b"an answer") -> Settle:
    """Pay `payee` for what it has delivered."""
    return Settle(hold_id, amount, tokens, delivery(payee, hold_id, tokens, text))


def vote(judge: Author, duel: Duel, verdict: str) -> Vote:
    """`judge`'s vote."""
    return Vote.of(sign_vote(judge.identity, NETWORK, duel.duel_id, duel.executor_a, duel.executor_b, VOTES[verdict]))


def duel_of(origin: Author, a: Author, b: Author, votes: Iterable[tuple[Author, str]], tag: str = "r1") -> Duel:
    """A duel between what a and b have delivered under the holds TAG.a and TAG.b; a vote may be `absent`."""
    sides = [
        Side(who.identity.id, f"{tag}.{side}", hashlib.sha256(side.encode()).hexdigest())
        for who, side in ((a, "a"), (b, "b"))
    ]  # fmt: skip
    name = duel_name(NETWORK, origin.identity.id, tag, *sides)
    bare = Duel(name, a.identity.id, b.identity.id, f"{tag}.a", f"{tag}.b", ())
    cast = [Vote.none(judge.identity.id) if verdict == "absent" else vote(judge, bare, verdict) for judge, verdict in votes]
    return Duel(bare.duel_id, bare.executor_a, bare.executor_b, bare.hold_a, bare.hold_b, tuple(cast))


async def delivered_twice(ledger: LocalLedger, origin: Author, a: Author, b: Author, tag: str = "r1") -> None:
    """Have a and b answer one request of `origin`'s, and be paid for it."""
    for who, side in ((a, "a"), (b, "b")):
        name = f"{tag}.{side}"
        await accepted(ledger, origin, hold(who, name, request=tag), paid(who, name, text=side.encode()))


async def accepted(ledger: LocalLedger, author: Author, *terms: Any) -> list[Receipt]:
    """Have orders done that must be accepted."""
    receipts = await ledger.submit_all([author.write(each) for each in terms])
    assert all(receipt.accepted for receipt in receipts), receipts
    return receipts


async def refused(ledger: LocalLedger, author: Author, terms: Any) -> str:
    """Have an order refused that must move nothing; returns why."""
    before = await ledger.accounts()
    receipt = await ledger.submit(author.write(terms))
    assert not receipt.accepted
    assert await ledger.accounts() == before
    return receipt.code


async def wealth(ledger: LocalLedger) -> int:
    """All money (micro-credits)."""
    return sum(sum(account) for account in (await ledger.accounts()).values())


def on_memory(play: Any, **how: Any) -> None:
    """Run `play(ledger)` on an engine in memory."""

    async def run() -> None:
        async with ledger_on(MemoryStore(), **how) as ledger:
            await play(ledger)

    asyncio.run(run())


def run_all(plays: Sequence[Coroutine[Any, Any, Any]]) -> Coroutine[Any, Any, list[Any]]:
    """Have coroutines run at once."""

    async def run() -> list[Any]:
        return list(await asyncio.gather(*plays))

    return run()
