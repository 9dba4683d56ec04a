"""Orders on the wire: one form for one order, and nothing that was touched on the way counts."""

import asyncio
import random
from dataclasses import replace

import orjson
import pytest

from live_bridge.ledger.memory import MemoryStore
from live_bridge.ledger.orders import (
    KINDS,
    Author,
    Duel,
    Hold,
    Open,
    Order,
    OrderError,
    Pay,
    Realm,
    Settle,
    Stake,
    Unstake,
    Vote,
    check,
    decode,
    encode,
    order_id,
)  # fmt: skip
from market.terms import MICRO

from .stage import NETWORK, REALM, authors, delivery, duel_of, hold, ledger_on, opened, paid, person

ANN, BOB, CAT, DAN, EVE = authors(5)


def one_of_each() -> list[Order]:
    """An order of every kind, with all that can stand in it."""
    return [
        ANN.write(terms)
        for terms in (
            Open(), Pay(BOB.identity.id, 5), hold(BOB, "h1"), paid(BOB, "h1"), Settle("h1", 0, 0, None), Stake(7), Unstake(3),
            duel_of(ANN, BOB, CAT, [(DAN, "A"), (EVE, "absent")]),
        )
    ]  # fmt: skip


@pytest.mark.parametrize("order", one_of_each(), ids=lambda order: order.kind)
def test_an_order_comes_back_from_the_wire_as_it_was(order: Order) -> None:
    again = decode(orjson.loads(encode(order)))
    assert again == order
    assert check(again, REALM).body == encode(order)


def test_every_kind_is_tried() -> None:
    assert {order.kind for order in one_of_each()} == set(KINDS)


def counts(body: bytes, realm: Realm = REALM) -> bool:
    """Whether a ledger would look at these bytes."""
    try:
        check(decode(orjson.loads(body)), realm)
    except (orjson.JSONDecodeError, OrderError):
        return False
    return True


@pytest.mark.parametrize("order", one_of_each(), ids=lambda order: order.kind)
def test_no_byte_of_an_order_can_be_changed(order: Order) -> None:
    body = encode(order)
    assert counts(body)
    for place in range(len(body)):
        for flip in (0x01, 0x20, 0x80):  # another character, other case, no character at all
            changed = bytearray(body)
            changed[place] ^= flip
            assert not counts(bytes(changed)), bytes(changed)


def test_a_thousand_changed_orders_are_refused_and_move_nothing() -> None:
    async def play() -> None:
        reasons: list[str] = []
        async with ledger_on(MemoryStore(), counts=reasons) as ledger:
            people = await opened(ledger, 4)
            before = await ledger.accounts()
            chance = random.Random(4)
            tried = 0
            for k in range(1000):
                payer, payee = people[k % 4], people[(k + 1) % 4]
                body = bytearray(encode(payer.write(Pay(payee.identity.id, 1 + k))))
                body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
                try:
                    order = decode(orjson.loads(bytes(body)))
                except (orjson.JSONDecodeError, OrderError):
                    continue
                tried += 1
                assert not (await ledger.submit(order)).accepted
            assert await ledger.accounts() == before
            assert tried > 300
            assert len(reasons) == tried and set(reasons) == {"signature", "malformed"}

    asyncio.run(play())


@pytest.mark.parametrize("realm", [Realm("other", REALM.ledger), Realm(NETWORK, person(9).id)], ids=["network", "ledger"])
@pytest.mark.parametrize("order", one_of_each(), ids=lambda order: order.kind)
def test_an_order_counts_in_one_network_and_for_one_ledger(order: Order, realm: Realm) -> None:
    with pytest.raises(OrderError) as refused:
        check(order, realm)
    assert refused.value.code == "signature"


def test_nobody_can_sign_for_another() -> None:
    order = ANN.write(Pay(CAT.identity.id, 5))
    for forged in (
        replace(order, public=BOB.identity.public.hex()),
        replace(BOB.write(Pay(CAT.identity.id, 5)), public=order.public),
        replace(order, signature="0" * 128),
        replace(order, sequence=order.sequence + 1),
        replace(order, terms=Pay(BOB.identity.id, 5)),
    ):
        with pytest.raises(OrderError) as refused:
            check(forged, REALM)
        assert refused.value.code == "signature"
        assert refused.value.order_id == order_id(forged, REALM).hex()


def test_a_stake_cannot_be_turned_into_an_unstaking() -> None:
    order = ANN.write(Stake(5))
    with pytest.raises(OrderError, match="signature"):
        check(replace(order, kind="unstake", terms=Unstake(5)), REALM)


SHAPES = [
    (Pay(BOB.identity.id, 0), "amount_micro: must be a whole number in [1, "),
    (Pay(BOB.identity.id, -1), "amount_micro"),
    (Pay(BOB.identity.id, 2**63), "amount_micro"),
    (Pay(BOB.identity.id, True), "amount_micro"),
    (Pay(BOB.identity.id, 1.0), "amount_micro"),
    (Pay("bob", 1), "payee: must be 40 hexadecimal characters, got 'bob'"),
    (Pay(BOB.identity.id.upper(), 1), "payee"),
    (Pay(None, 1), "payee"),
    (Hold("", BOB.identity.id, 1, 1, "work", "r"), "hold_id"),
    (Hold("h" * 65, BOB.identity.id, 1, 1, "work", "r"), "hold_id"),
    (Hold("h\n", BOB.identity.id, 1, 1, "work", "r"), "hold_id"),
    (Hold("h", BOB.identity.id, 1, 0, "work", "r"), "ttl_us"),
    (Hold("h", BOB.identity.id, 1, 10**15 + 1, "work", "r"), "ttl_us"),
    (Settle("h", -1, 0, None), "amount_micro"),
    (Settle("h", 1, -1, None), "tokens"),
    (Stake(0), "amount_micro"),
    (Unstake(0), "amount_micro"),
    (Duel("d" * 40, BOB.identity.id, CAT.identity.id, "a", "b", ()), "judges: must be 1 to 3, got 0"),
    (Duel("d" * 40, BOB.identity.id, CAT.identity.id, "a", "b", (Vote.none(DAN.identity.id),) * 4), "must be 1 to 3, got 4"),
    (Duel("d" * 40, BOB.identity.id, CAT.identity.id, "a", "b", (Vote(DAN.identity.id, "C", "", ""),)), "verdict"),
]  # fmt: skip


@pytest.mark.parametrize(("terms", "text"), SHAPES, ids=lambda value: str(value)[:30])
def test_what_has_no_good_shape_is_named(terms: object, text: str) -> None:
    order = Order(type(terms).__name__.lower(), ANN.identity.public.hex(), 1, terms, "0" * 128)
    with pytest.raises(OrderError) as refused:
        check(order, REALM)
    assert refused.value.code == "malformed" and text in str(refused.value)


BODIES = [
    (lambda order: [], "order: must hold kind, public, sequence, terms, signature, found list"),
    (lambda order: {**order, "more": 1}, "order: must hold"),
    (lambda order: {key: order[key] for key in order if key != "public"}, "order: must hold"),
    (lambda order: {**order, "kind": "mint"}, "kind: must be one of open, pay"),
    (lambda order: {**order, "kind": ["pay"]}, "kind: must be one of"),
    (lambda order: {**order, "terms": {"payee": "x"}}, "pay: must hold payee, amount_micro"),
    (lambda order: {**order, "terms": None}, "pay: must hold"),
]


@pytest.mark.parametrize(("change", "text"), BODIES)
def test_what_cannot_be_read_is_named(change, text: str) -> None:
    with pytest.raises(OrderError) as refused:
        decode(change(orjson.loads(encode(ANN.write(Pay(BOB.identity.id, 1))))))
    assert refused.value.code == "malformed" and text in str(refused.value)


def test_an_opening_has_no_sequence_but_zero_and_nothing_else_has_zero() -> None:
    assert ANN.write(Open()).sequence == 0
    for order in (replace(ANN.write(Open()), sequence=1), replace(ANN.write(Stake(1)), sequence=0)):
        with pytest.raises(OrderError, match="sequence: 0 is for open"):
            check(order, REALM)


def test_an_author_never_uses_a_sequence_twice_not_even_after_a_restart() -> None:
    first = Author(person(0), REALM)
    used = [first.write(Stake(1)).sequence for _ in range(1000)]
    assert used == sorted(set(used))
    assert Author(person(0), REALM).write(Stake(1)).sequence > used[-1]


def test_a_delivery_counts_for_its_hold_tokens_and_answer_alone() -> None:
    good = paid(BOB, "h1")
    assert good.delivery is not None
    for forged in (
        replace(good, hold_id="h2"),
        replace(good, delivery=replace(good.delivery, tokens=11)),
        replace(good, delivery=replace(good.delivery, digest="0" * 64)),
        replace(good, delivery=replace(good.delivery, public=CAT.identity.public.hex())),
        replace(good, delivery=delivery(BOB, "h1", network="other")),
    ):
        with pytest.raises(OrderError) as refused:
            check(ANN.write(forged), REALM)
        assert refused.value.code == "delivery_signature"


def test_a_vote_counts_for_its_judge_duel_and_executors_alone() -> None:
    good = duel_of(ANN, BOB, CAT, [(DAN, "A")])
    (cast,) = good.judges
    forged = [
        replace(good, judges=(replace(cast, verdict="B"),)),
        replace(good, judges=(replace(cast, judge=EVE.identity.id),)),
        replace(good, judges=(replace(cast, public=EVE.identity.public.hex()),)),
        replace(good, duel_id="0" * 40),
        replace(good, executor_a=good.executor_b, executor_b=good.executor_a),
    ]
    for duel in forged:
        with pytest.raises(OrderError) as refused:
            check(ANN.write(duel), REALM)
        assert refused.value.code == "vote_signature"
    signed_absence = replace(good, judges=(replace(cast, verdict="absent"),))
    with pytest.raises(OrderError, match="is absent"):
        check(ANN.write(signed_absence), REALM)


def test_more_money_than_there_is_can_be_written_but_not_spent() -> None:
    async def play() -> None:
        async with ledger_on(MemoryStore()) as ledger:
            ann, bob = await opened(ledger, 2)
            for amount in (100 * MICRO + 1, 2**63 - 1):
                assert (await ledger.submit(ann.write(Pay(bob.identity.id, amount)))).reason == "insufficient_credit"

    asyncio.run(play())
