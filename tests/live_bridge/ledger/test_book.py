"""Who may do what: every reason for which an order is refused, and where the money goes when it is not."""

from dataclasses import replace

import pytest

from live_bridge.ledger.book import REASONS
from live_bridge.ledger.journal import NOWHERE
from live_bridge.ledger.ledger import AccountView
from live_bridge.ledger.orders import Open, Pay, Settle, Stake, Unstake
from market.terms import MICRO

from .stage import (
    Wall,
    accepted,
    authors,
    delivered_twice,
    delivery,
    duel_of,
    hold,
    on_memory,
    opened,
    paid,
    person,
    refused,
    terms_with,
    wealth,
)  # fmt: skip

ENDOWED = AccountView(100 * MICRO, 2 * MICRO, 0, 0)


def test_an_account_is_endowed_once_however_often_it_is_opened() -> None:
    async def play(ledger):
        (ann,) = authors(1)
        first = await ledger.submit(ann.write(Open()))
        assert first.accepted and first.place == 1
        for _ in range(10):
            assert await ledger.submit(ann.write(Open())) == first
        assert await ledger.accounts() == {ann.identity.id: ENDOWED}

    on_memory(play)


def test_nothing_can_be_done_without_an_account() -> None:
    async def play(ledger):
        (bob,) = await opened(ledger, 1)
        ann = authors(2)[1]
        receipt = await ledger.submit(ann.write(Pay(bob.identity.id, 1)))
        assert (receipt.reason, receipt.place) == ("no_account", NOWHERE)
        assert (await ledger.store.head()).place == 1

    on_memory(play)


def test_a_payment_moves_credit_and_its_receipt_shows_what_is_left() -> None:
    async def play(ledger):
        ann, bob = await opened(ledger, 2)
        (receipt,) = await accepted(ledger, ann, Pay(bob.identity.id, 30 * MICRO))
        assert receipt.credit_micro == 70 * MICRO and receipt.stake_micro == 2 * MICRO
        assert (await ledger.accounts())[bob.identity.id].credit_micro == 130 * MICRO
        assert await refused(ledger, ann, Pay(bob.identity.id, 70 * MICRO + 1)) == "insufficient_credit"
        assert await refused(ledger, ann, Pay(ann.identity.id, 1)) == "to_itself"
        assert await refused(ledger, ann, Pay(person(77).id, 1)) == "unknown_payee"

    on_memory(play)


def test_a_refusal_is_final_even_when_there_is_credit_later() -> None:
    async def play(ledger):
        ann, bob = await opened(ledger, 2)
        order = ann.write(Pay(bob.identity.id, 101 * MICRO))
        first = await ledger.submit(order)
        assert first.reason == "insufficient_credit"
        await accepted(ledger, bob, Pay(ann.identity.id, 50 * MICRO))
        assert await ledger.submit(order) == first
        assert (await ledger.accounts())[ann.identity.id].credit_micro == 150 * MICRO

    on_memory(play)


def test_a_hold_sets_aside_and_a_settlement_pays_and_gives_the_rest_back() -> None:
    async def play(ledger):
        ann, bob = await opened(ledger, 2)
        await accepted(ledger, ann, hold(bob, "h", 10 * MICRO))
        assert (await ledger.accounts())[ann.identity.id] == AccountView(90 * MICRO, 2 * MICRO, 0, 10 * MICRO)
        await accepted(ledger, ann, paid(bob, "h", 4 * MICRO))
        accounts = await ledger.accounts()
        assert accounts[ann.identity.id] == AccountView(96 * MICRO, 2 * MICRO, 0, 0)
        assert accounts[bob.identity.id] == AccountView(104 * MICRO, 2 * MICRO, 0, 0)

    on_memory(play)


def test_holds_that_cannot_be() -> None:
    async def play(ledger):
        ann, bob, cat = await opened(ledger, 3)
        await accepted(ledger, ann, hold(bob, "h"))
        assert await refused(ledger, ann, hold(ann, "self")) == "to_itself"
        assert await refused(ledger, ann, replace(hold(bob, "x"), payee=person(77).id)) == "unknown_payee"
        assert await refused(ledger, ann, hold(bob, "h")) == "hold_exists"
        assert await refused(ledger, cat, hold(bob, "h")) == "hold_exists"
        assert await refused(ledger, ann, hold(bob, "big", 99 * MICRO + 1)) == "insufficient_credit"

    on_memory(play)


def test_what_is_set_aside_cannot_be_spent_or_staked() -> None:
    async def play(ledger):
        ann, bob = await opened(ledger, 2)
        await accepted(ledger, ann, hold(bob, "h", 100 * MICRO))
        assert await refused(ledger, ann, Pay(bob.identity.id, 1)) == "insufficient_credit"
        assert await refused(ledger, ann, Stake(1)) == "insufficient_credit"
        assert await refused(ledger, ann, hold(bob, "more", 1)) == "insufficient_credit"

    on_memory(play)


def test_only_the_origin_settles_once_in_time_and_never_more_than_is_held() -> None:
    wall = Wall()

    async def play(ledger):
        ann, bob, cat = await opened(ledger, 3)
        await accepted(ledger, ann, hold(bob, "h"), hold(bob, "late", ttl_s=60))
        assert await refused(ledger, ann, paid(bob, "none")) == "no_such_hold"
        assert await refused(ledger, bob, paid(bob, "h")) == "not_the_origin"
        assert await refused(ledger, cat, Settle("h", 0, 0, None)) == "not_the_origin"
        assert await refused(ledger, ann, paid(bob, "h", MICRO + 1)) == "above_held"
        assert await refused(ledger, ann, replace(paid(bob, "h"), delivery=delivery(cat, "h"))) == "not_the_payee"
        await accepted(ledger, ann, paid(bob, "h"))
        assert await refused(ledger, ann, paid(bob, "h")) == "hold_settled"
        wall.s += 60
        assert await refused(ledger, ann, paid(bob, "late")) == "hold_expired"

    on_memory(play, wall=wall)


def test_an_executor_is_paid_only_with_proof_of_delivery() -> None:
    async def play(ledger):
        ann, bob = await opened(ledger, 2)
        await accepted(ledger, ann, hold(bob, "h", 10 * MICRO))
        assert await refused(ledger, ann, Settle("h", 10 * MICRO, 10, None)) == "no_proof_of_delivery"
        assert await refused(ledger, ann, Settle("h", 5 * MICRO, 0, None)) == "no_proof_of_delivery"
        assert await refused(ledger, ann, paid(bob, "h", 5 * MICRO, tokens=0)) == "no_proof_of_delivery"
        await accepted(ledger, ann, Settle("h", 0, 0, None))
        assert (await ledger.accounts())[bob.identity.id] == ENDOWED

    on_memory(play)


def test_a_truncated_answer_is_paid_in_part_by_the_tokens_that_were_counted() -> None:
    async def play(ledger):
        ann, bob = await opened(ledger, 2)
        await accepted(ledger, ann, hold(bob, "h", 10 * MICRO))
        await accepted(ledger, ann, Settle("h", 3 * MICRO, 30, None))
        accounts = await ledger.accounts()
        assert accounts[bob.identity.id].credit_micro == 103 * MICRO
        assert accounts[ann.identity.id] == AccountView(97 * MICRO, 2 * MICRO, 0, 0)

    on_memory(play)


def test_a_claim_of_ten_times_the_tokens_is_paid_as_counted_and_disputed() -> None:
    async def play(ledger):
        ann, bob = await opened(ledger, 2)
        await accepted(ledger, ann, hold(bob, "h", 10 * MICRO))
        claim = Settle("h", MICRO, 10, delivery(bob, "h", tokens=100))
        (receipt,) = await accepted(ledger, ann, claim)
        assert receipt.reason == "disputed"
        assert (await ledger.accounts())[bob.identity.id].credit_micro == 101 * MICRO

    on_memory(play)


def test_a_hold_comes_back_when_its_time_is_over() -> None:
    wall = Wall()

    async def play(ledger):
        ann, bob = await opened(ledger, 2)
        await accepted(ledger, ann, hold(bob, "short", MICRO, ttl_s=60), hold(bob, "long", MICRO, ttl_s=120))
        wall.s += 59.9
        assert (await ledger.accounts())[ann.identity.id].escrow_micro == 2 * MICRO
        wall.s += 0.1
        assert (await ledger.accounts())[ann.identity.id] == AccountView(99 * MICRO, 2 * MICRO, 0, MICRO)
        wall.s += 60
        await ledger.tick()
        assert (await ledger.accounts())[ann.identity.id] == ENDOWED
        head = await ledger.store.head()
        await ledger.tick()
        assert await ledger.store.head() == head, "a tick without anything due writes nothing"

    on_memory(play, wall=wall)


def test_released_stake_is_free_after_its_time_and_not_before() -> None:
    wall = Wall()

    async def play(ledger):
        (ann,) = await opened(ledger, 1)
        await accepted(ledger, ann, Stake(10 * MICRO))
        assert await refused(ledger, ann, Unstake(12 * MICRO + 1)) == "insufficient_stake"
        await accepted(ledger, ann, Unstake(5 * MICRO))
        assert (await ledger.accounts())[ann.identity.id] == AccountView(90 * MICRO, 7 * MICRO, 5 * MICRO, 0)
        assert await refused(ledger, ann, Stake(91 * MICRO)) == "insufficient_credit"
        wall.s += 60
        assert (await ledger.accounts())[ann.identity.id] == AccountView(95 * MICRO, 7 * MICRO, 0, 0)
        (receipt,) = await accepted(ledger, ann, Stake(91 * MICRO))
        assert receipt.credit_micro == 4 * MICRO and receipt.unbonding_micro == 0

    on_memory(play, wall=wall)


def test_more_releases_than_an_account_has_room_for_still_come_free() -> None:
    wall = Wall()

    async def play(ledger):
        (ann,) = await opened(ledger, 1)
        for _ in range(20):
            wall.s += 1
            await accepted(ledger, ann, Unstake(MICRO // 10))
        assert (await ledger.accounts())[ann.identity.id].unbonding_micro == 2 * MICRO
        wall.s += 61
        assert (await ledger.accounts())[ann.identity.id] == AccountView(102 * MICRO, 0, 0, 0)

    on_memory(play, wall=wall)


def test_market_time_runs_as_fast_as_the_ledger_was_founded_for() -> None:
    wall = Wall()

    async def play(ledger):
        ann, bob = await opened(ledger, 2)
        await accepted(ledger, ann, hold(bob, "h", ttl_s=100))
        wall.s += 4.9
        assert (await ledger.accounts())[ann.identity.id].escrow_micro == MICRO
        wall.s += 0.1
        assert (await ledger.accounts())[ann.identity.id].escrow_micro == 0

    on_memory(play, wall=wall, speed=20.0)


def test_time_in_the_journal_never_runs_back_though_the_clock_is_set_back() -> None:
    wall = Wall()

    async def play(ledger):
        ann, bob = await opened(ledger, 2)
        wall.s += 100
        await accepted(ledger, ann, hold(bob, "h", ttl_s=50))
        wall.s -= 1000
        await accepted(ledger, ann, Pay(bob.identity.id, 1))
        times = [entry.at_us for entry in await ledger.store.journal(0, 100)]
        assert times == sorted(times)
        assert (await ledger.accounts())[ann.identity.id].escrow_micro == MICRO

    on_memory(play, wall=wall)


def test_a_duel_moves_stakes_by_its_votes() -> None:
    async def play(ledger):
        origin, a, b, *judges = await opened(ledger, 6)
        await delivered_twice(ledger, origin, a, b)
        duel = duel_of(origin, a, b, [(judges[0], "B"), (judges[1], "B"), (judges[2], "A")])
        before = await ledger.accounts()
        (receipt,) = await accepted(ledger, origin, duel)
        assert receipt.reason == "won_by_b"
        after = await ledger.accounts()
        moved = {who: after[who.identity.id].credit_micro - before[who.identity.id].credit_micro for who in (a, b, *judges)}
        lost = {who: before[who.identity.id].stake_micro - after[who.identity.id].stake_micro for who in (a, b, *judges)}
        assert moved == {a: 0, b: 200_000, judges[0]: 20_000, judges[1]: 20_000, judges[2]: 0}
        assert lost == {a: 200_000, b: 0, judges[0]: 0, judges[1]: 0, judges[2]: 40_000}
        assert await wealth(ledger) == 6 * 102 * MICRO

    on_memory(play)


@pytest.mark.parametrize(
    ("verdicts", "result", "lost_micro"),
    [
        (["A", "A", "absent"], "won_by_a", [0, 200_000, 0, 0, 10_000]),
        (["A", "abstain", "absent"], "won_by_a", [0, 200_000, 0, 10_000, 10_000]),
        (["A", "B", "abstain"], "tie", [0, 0, 0, 0, 0]),
        (["absent", "absent", "absent"], "tie", [0, 0, 0, 0, 0]),
        (["abstain"], "tie", [0, 0, 0]),
        (["A"], "won_by_a", [0, 200_000, 0]),
    ],
)
def test_absent_judges_lose_a_little_and_a_tie_moves_nothing(verdicts, result: str, lost_micro) -> None:
    async def play(ledger):
        origin, a, b, *judges = await opened(ledger, 3 + len(verdicts))
        await delivered_twice(ledger, origin, a, b)
        (receipt,) = await accepted(ledger, origin, duel_of(origin, a, b, list(zip(judges, verdicts, strict=True))))
        assert receipt.reason == result
        accounts = await ledger.accounts()
        assert [2 * MICRO - accounts[who.identity.id].stake_micro for who in (a, b, *judges)] == lost_micro
        assert await wealth(ledger) == (3 + len(verdicts)) * 102 * MICRO

    on_memory(play)


def test_stake_on_its_way_out_is_slashed_too() -> None:
    async def play(ledger):
        origin, a, b, judge = await opened(ledger, 4)
        await delivered_twice(ledger, origin, a, b)
        await accepted(ledger, b, Unstake(2 * MICRO))
        await accepted(ledger, origin, duel_of(origin, a, b, [(judge, "A")]))
        assert (await ledger.accounts())[b.identity.id] == AccountView(101 * MICRO, 0, 1_800_000, 0)

    on_memory(play)


def test_origin_and_executors_never_judge_and_nobody_judges_twice() -> None:
    async def play(ledger):
        origin, a, b, judge, other = await opened(ledger, 5)
        stranger = authors(9)[8]
        await delivered_twice(ledger, origin, a, b)
        for votes in (
            [(origin, "A")], [(a, "A")], [(b, "B")], [(judge, "A"), (judge, "A")], [(judge, "A"), (judge, "absent")],
            [(judge, "A"), (stranger, "A")], [(other, "A"), (origin, "absent")],
        ):  # fmt: skip
            assert await refused(ledger, origin, duel_of(origin, a, b, votes)) == "duel_judges", votes

    on_memory(play)


def test_no_more_judges_than_the_terms_say() -> None:
    async def play(ledger):
        origin, a, b, *judges = await opened(ledger, 5)
        await delivered_twice(ledger, origin, a, b)
        assert await refused(ledger, origin, duel_of(origin, a, b, [(judge, "A") for judge in judges])) == "duel_judges"
        await accepted(ledger, origin, duel_of(origin, a, b, [(judges[0], "A")]))

    on_memory(play, terms=terms_with(judges=1))


def test_a_duel_needs_two_proven_deliveries_to_one_request_of_this_origin() -> None:
    async def play(ledger):
        origin, a, b, judge, other = await opened(ledger, 5)

        async def tried(who, tag):
            return await refused(ledger, who, duel_of(who, a, b, [(judge, "A")], tag))

        assert await tried(origin, "none") == "duel_holds"
        await accepted(ledger, origin, hold(a, "open.a", request="open"), hold(b, "open.b", request="open"))
        assert await tried(origin, "open") == "duel_holds"
        for who, side in ((a, "a"), (b, "b")):
            name = f"unproved.{side}"
            await accepted(ledger, origin, hold(who, name, request="unproved"), Settle(name, 1, 1, None))
            name = f"apart.{side}"
            await accepted(ledger, origin, hold(who, name, request=name), paid(who, name, text=side.encode()))
            name = f"unpaid.{side}"
            await accepted(ledger, origin, hold(who, name, request="unpaid"), paid(who, name, 0, text=side.encode()))
            name = f"swapped.{side}"
            payee = b if who is a else a
            await accepted(ledger, origin, hold(payee, name, request="swapped"), paid(payee, name, text=side.encode()))
        assert await tried(origin, "unproved") == "duel_holds"
        assert await tried(origin, "apart") == "duel_holds"
        assert await tried(origin, "unpaid") == "duel_holds"
        assert await tried(origin, "swapped") == "duel_holds"
        await delivered_twice(ledger, origin, a, b, "good")
        assert await tried(other, "good") == "duel_holds"
        await accepted(ledger, origin, duel_of(origin, a, b, [(judge, "A")], "good"))

    on_memory(play)


def test_a_duel_is_settled_once_and_cannot_be_turned_round() -> None:
    async def play(ledger):
        origin, a, b, judge = await opened(ledger, 4)
        await delivered_twice(ledger, origin, a, b)
        duel = duel_of(origin, a, b, [(judge, "A")])
        await accepted(ledger, origin, duel)
        assert await refused(ledger, origin, duel) == "duel_holds"
        turned = replace(duel_of(origin, b, a, [(judge, "A")]), hold_a="r1.b", hold_b="r1.a")
        assert await refused(ledger, origin, turned) == "duel_holds"

    on_memory(play)


def test_votes_on_other_answers_do_not_count() -> None:
    async def play(ledger):
        origin, a, b, judge = await opened(ledger, 4)
        for who, side in ((a, "a"), (b, "b")):
            await accepted(ledger, origin, hold(who, f"r1.{side}"), paid(who, f"r1.{side}", text=b"not what was judged"))
        assert await refused(ledger, origin, duel_of(origin, a, b, [(judge, "A")])) == "duel_name"

    on_memory(play)


def test_executors_are_two_and_neither_is_the_origin() -> None:
    async def play(ledger):
        origin, a, b, judge = await opened(ledger, 4)
        await delivered_twice(ledger, origin, a, b)
        for first, second in ((a, a), (origin, b), (a, origin)):
            assert await refused(ledger, origin, duel_of(origin, first, second, [(judge, "A")])) == "duel_executors"

    on_memory(play)


def test_a_duel_ends_in_its_time_or_not_at_all() -> None:
    wall = Wall()

    async def play(ledger):
        origin, a, b, judge = await opened(ledger, 4)
        await delivered_twice(ledger, origin, a, b, "early")
        await delivered_twice(ledger, origin, a, b, "late")
        wall.s += 600
        await accepted(ledger, origin, duel_of(origin, a, b, [(judge, "A")], "early"))
        wall.s += 0.001
        assert await refused(ledger, origin, duel_of(origin, a, b, [(judge, "A")], "late")) == "duel_late"

    on_memory(play, wall=wall)


def test_every_reason_has_an_explanation() -> None:
    import inspect
    import re

    from live_bridge.ledger import book, orders

    said = set(re.findall(r'(?:return|else) "([a-z_]+)"', inspect.getsource(book)))
    said |= set(re.findall(r'OrderError\("([a-z_]+)"', inspect.getsource(orders)))
    assert len(said) > 20
    assert said <= set(REASONS)
