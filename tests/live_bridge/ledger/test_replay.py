"""Nothing counts twice: recorded orders sent again, shuffled, after a restart, after expiry, and to another ledger."""

import asyncio
import random
from dataclasses import replace

from live_bridge.identity import Identity
from live_bridge.ledger.journal import NOWHERE
from live_bridge.ledger.memory import MemoryStore
from live_bridge.ledger.orders import Open, Order, Pay, Settle, Stake, Unstake
from market.terms import MICRO

from .stage import Wall, authors, delivery, duel_of, hold, ledger_on, opened, paid


def evening(people) -> list[Order]:
    """Orders of every kind, some of which are refused."""
    ann, bob, cat, dan = people
    out = [author.write(Open()) for author in people]
    for k in range(10):
        out += [ann.write(Pay(bob.identity.id, MICRO)), bob.write(hold(cat, f"h{k}")), bob.write(paid(cat, f"h{k}"))]
    out += [ann.write(Pay(bob.identity.id, 1000 * MICRO)), ann.write(hold(bob, "left", ttl_s=60)), cat.write(Stake(MICRO))]
    out += [cat.write(Unstake(2 * MICRO)), ann.write(Settle("left", 0, 0, None)), ann.write(Settle("left", 0, 0, None))]
    for who, side in ((bob, "a"), (cat, "b")):
        out += [ann.write(hold(who, f"r1.{side}")), ann.write(paid(who, f"r1.{side}", text=side.encode()))]
    return [*out, ann.write(duel_of(ann, bob, cat, [(dan, "A")]))]


def test_every_order_sent_a_hundred_times_has_one_effect_and_its_first_receipt(engine) -> None:
    wall = Wall()

    async def run() -> None:
        orders = evening(authors(4))
        async with ledger_on(await engine(), wall) as ledger:
            first = dict(zip(orders, await ledger.submit_all(orders), strict=True))
            assert {receipt.accepted for receipt in first.values()} == {True, False}
            before = await ledger.store.state()
        chance = random.Random(0)
        async with ledger_on(await engine(), wall) as ledger:
            for turn in range(100):
                chance.shuffle(orders)
                if turn == 50:
                    wall.s += 10_000  # every hold and every release is long over
                receipts = await ledger.submit_all(orders)
                assert receipts == [first[order] for order in orders]
            after = await ledger.store.state()
        assert after == before

    asyncio.run(run())


def test_orders_mean_nothing_to_another_ledger_of_the_same_name() -> None:
    async def run() -> None:
        orders = evening(authors(4))
        counts: list[str] = []
        other = Identity(b"M" * 32)
        async with ledger_on(MemoryStore(), identity=other, counts=counts) as ledger:
            await opened(ledger, 4)
            before = await ledger.store.state()
            receipts = await ledger.submit_all(orders)
            assert {(receipt.accepted, receipt.code, receipt.place) for receipt in receipts} == {(False, "signature", NOWHERE)}
            assert await ledger.store.state() == before
            assert counts == ["signature"] * len(orders)

    asyncio.run(run())


def test_a_sequence_number_serves_one_order(engine) -> None:
    async def run() -> None:
        async with ledger_on(await engine()) as ledger:
            ann, bob = await opened(ledger, 2)
            twin = authors(1)[0]  # the same account in two places, which does not know what it has signed
            first = await ledger.submit(ann.write(Pay(bob.identity.id, MICRO)))
            second = await ledger.submit(twin.write(Pay(bob.identity.id, 2 * MICRO)))
            assert first.accepted and (second.accepted, second.reason, second.place) == (False, "sequence_used", NOWHERE)
            assert (await ledger.accounts())[bob.identity.id].credit_micro == 101 * MICRO

    asyncio.run(run())


def test_a_refused_order_uses_its_sequence_number_too(engine) -> None:
    async def run() -> None:
        async with ledger_on(await engine()) as ledger:
            ann, bob = await opened(ledger, 2)
            twin = authors(1)[0]
            assert (await ledger.submit(ann.write(Pay(bob.identity.id, 1000 * MICRO)))).reason == "insufficient_credit"
            assert (await ledger.submit(twin.write(Pay(bob.identity.id, MICRO)))).reason == "sequence_used"

    asyncio.run(run())


def test_orders_of_one_account_may_arrive_in_any_order(engine) -> None:
    async def run() -> None:
        async with ledger_on(await engine()) as ledger:
            ann, bob = await opened(ledger, 2)
            orders = [ann.write(Pay(bob.identity.id, MICRO)) for _ in range(50)]
            assert all(receipt.accepted for receipt in await ledger.submit_all(orders[::-1]))

    asyncio.run(run())


def test_an_unsolicited_answer_pays_nothing(engine) -> None:
    """For an unknown, an expired and a settled hold, and for one of another's."""
    wall = Wall()

    async def run() -> None:
        async with ledger_on(await engine(), wall) as ledger:
            ann, bob, cat = await opened(ledger, 3)
            holds = [hold(bob, "expired", ttl_s=10), hold(bob, "settled"), hold(bob, "open")]
            await ledger.submit_all([*map(ann.write, holds), ann.write(paid(bob, "settled"))])
            wall.s += 10
            before = await ledger.accounts()
            tried = [(ann, name) for name in ("unknown", "expired", "settled")]
            tried += [(bob, name) for name in ("unknown", "expired", "settled", "open")]
            receipts = [await ledger.submit(who.write(paid(bob, name))) for who, name in tried]
            reasons = ["no_such_hold", "hold_expired", "hold_settled", "no_such_hold", *["not_the_origin"] * 3]
            assert [receipt.reason for receipt in receipts] == reasons
            stolen = replace(paid(cat, "open"), delivery=delivery(cat, "open"))
            assert (await ledger.submit(ann.write(stolen))).reason == "not_the_payee"
            assert await ledger.accounts() == before

    asyncio.run(run())
