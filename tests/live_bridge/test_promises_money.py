"""M5, M6, M7 between nodes: nobody is paid for what was not asked for or not delivered, nobody works for what is not set aside."""

import asyncio
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from live_bridge.trade import WITHDRAW
from tests.live_bridge.strangers import Stranger
from tests.live_bridge.test_promises_streams import holds
from tests.live_bridge.towns import ALWAYS, NEVER, Engine, Script, Town, broken_off, hang_up, status, steady, stream, town, whole

PRICE = 1_000_000
REFUSED_S = 0.005
DISPUTES = 'wwwserve_messages_refused_total{reason="token_dispute"}'
EXECUTOR = 1


async def owned(place: Town) -> dict[str, int]:
    """What each account owns, by the ledger (micro-credits), wherever in it."""
    accounts = (await place.get("/market/v1/ledger/accounts"))["accounts"]
    return {owner: sum(held) for owner, held in accounts.items()}


async def ids(place: Town) -> list[str]:
    return [(await place.get("/market/v1/state", at))["id"] for at in range(len(place.urls))]


async def at_rest(place: Town) -> bool:
    states = [await place.get("/market/v1/state", at) for at in range(len(place.urls))]
    return all(state["totals"]["in_flight"] == state["balances"]["escrow"] == 0 for state in states)


def test_work_without_its_payment_is_refused_at_once_and_reaches_no_engine(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Engine() as mine, Engine() as theirs, town(tmp_path, [mine, theirs], **steady()) as place:
            founder, executor = await ids(place)
            rich, poor = await Stranger.of(place, tmp_path / "rich"), await Stranger.of(place, tmp_path / "poor")
            await rich.open()
            before = await owned(place)
            good, short, elsewhere = await rich.hold(executor), await rich.hold(executor, PRICE - 1), await rich.hold(founder)
            brief = await rich.hold(executor, ttl_us=50_000)
            forged = good | {"receipt": [*good["receipt"][:-1], "0" * 128]}
            refused: dict[str, tuple[int, bytes]] = {}
            for name, proof in {"none": {}, "short": short, "elsewhere": elsewhere, "forged": forged, "brief": brief}.items():
                refused[name] = await rich.work(executor, await rich.offer(executor), proof)
            refused["another's"] = await poor.work(executor, await poor.offer(executor), good)
            assert {code for code, _ in refused.values()} == {402}, refused
            assert theirs.asked == []

            took = []
            for _ in range(20):
                work_id = await poor.offer(executor)
                began = time.perf_counter()
                assert (await poor.work(executor, work_id, {}))[0] == 402
                took.append(time.perf_counter() - began)
            assert statistics.quantiles(took, n=4)[0] <= REFUSED_S  # what it takes where nothing else takes time
            assert theirs.asked == []

            work_id = await rich.offer(executor)
            assert (await rich.work(executor, work_id, good))[0] == 200
            assert len(theirs.asked) == 1
            for again in (await rich.offer(executor), await rich.offer(executor, work_id)):
                assert (await rich.work(executor, again, good))[0] == 402  # it has paid once
            assert len(theirs.asked) == 1
            assert await owned(place) == before
            for one in (rich, poor):
                await one.leave()

    asyncio.run(scene())


def test_work_and_answers_that_nobody_asked_for_pay_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Engine() as mine, Engine() as theirs, town(tmp_path, [mine, theirs], **steady()) as place:
            _, executor = await ids(place)
            one, other = await Stranger.of(place, tmp_path / "one"), await Stranger.of(place, tmp_path / "other")
            await one.open()
            await other.open()
            before = await owned(place)
            proof = await one.hold(executor)
            assert (await one.work(executor, f"{one.identity.id[:12]}.1.99", proof))[0] == 409  # never offered
            work_id = await one.offer(executor)
            assert (await other.work(executor, work_id, await other.hold(executor)))[0] == 409  # not offered by it
            assert (await one.work(executor, work_id, proof))[0] == 200
            assert (await one.work(executor, work_id, proof))[0] == 409  # done
            assert len(theirs.asked) == 1
            receipt = {"id": work_id, "tokens": 1000, "hold": proof["order"]["terms"]["hold_id"]}
            assert (await other.say(executor, "/market/v1/verdict", {"order": proof["order"], "receipt": proof["receipt"]}))[
                0
            ] == 400
            assert (await other.say(executor, "/market/v1/work", receipt))[0] == 400
            status_, _, _ = await place.ask(0, path="/market/v1/answer", **receipt)
            assert status_ == 404  # there is no door for answers: they come in reply to work, or not at all
            assert await owned(place) == before
            for stranger in (one, other):
                await stranger.leave()

    asyncio.run(scene())


def test_a_promise_is_withdrawn_by_whom_it_was_given_to_and_by_nobody_else(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Engine() as mine, Engine() as theirs, town(tmp_path, [mine, theirs], **steady()) as place:
            _, executor = await ids(place)
            one, other = await Stranger.of(place, tmp_path / "one"), await Stranger.of(place, tmp_path / "other")
            await one.open()
            proof = await one.hold(executor)
            work_id = await one.offer(executor)
            for letter in ({"id": work_id}, {"id": [work_id]}, {}, [work_id], None):
                assert await other.say(executor, WITHDRAW, letter) == (200, {"withdrawn": False})
            assert await one.say(executor, WITHDRAW, {"id": work_id}) == (200, {"withdrawn": True})
            assert await one.say(executor, WITHDRAW, {"id": work_id}) == (200, {"withdrawn": False})
            assert (await one.work(executor, work_id, proof))[0] == 409
            work_id = await one.offer(executor)
            assert (await one.work(executor, work_id, proof))[0] == 200  # what was not spent pays for the next
            for stranger in (one, other):
                await stranger.leave()

    asyncio.run(scene())


class Fate(NamedTuple):
    """What becomes of an answer, and what is paid for it."""

    engine: Script
    paid_micro: int
    tokens: int
    disputed: bool = False
    body: Mapping[str, Any] = MappingProxyType({"stream": True})


OF_A_MILLION = b'{"choices":[{"text":" a"}],"usage":{"completion_tokens":1000000}}'
FATES = {
    "whole": Fate(stream(5), PRICE, 5),
    "whole, in one piece": Fate(whole(5), PRICE, 5, body={}),
    "whole, of unknown length": Fate(status(200, b'{"choices":[{"text":" a"}]}'), PRICE, 1, body={}),
    "an error": Fate(status(500), 0, 0),
    "no answer": Fate(hang_up, 0, 0),
    "refused by the engine": Fate(status(422), 0, 0),
    "a part": Fate(broken_off(2), PRICE * 2 // 8, 2),
    "all tokens, but not the end": Fate(broken_off(8), PRICE - 1, 8),
    "an engine that claims more": Fate(status(200, OF_A_MILLION), PRICE, len(OF_A_MILLION), disputed=True, body={}),
    "a node that claims more": Fate(stream(5), PRICE, 5, disputed=True, body={"stream": True, "cheat": "claims more"}),
    "a node that claims more for a part": Fate(
        broken_off(3), PRICE * 3 // 8, 3, disputed=True, body={"stream": True, "cheat": "claims more"}
    ),
    "a node that signs nothing": Fate(stream(5), PRICE * 5 // 8, 5, body={"stream": True, "cheat": "signs nothing"}),
    "a node that hangs up": Fate(stream(5), PRICE * 5 // 8, 5, body={"stream": True, "cheat": "hangs up"}),
}
"""For 8 tokens asked."""


def test_an_executor_is_paid_for_what_it_has_delivered_whatever_it_claims(tmp_path: Path) -> None:
    disputes: dict[str, float] = {}

    async def scene() -> None:
        async with (
            Engine() as mine,
            Engine() as theirs,
            town(tmp_path, [mine, theirs], policy=[ALWAYS, NEVER], rogue=True, **steady()) as place,
        ):
            for count, (name, fate) in enumerate(FATES.items(), 1):
                theirs.script = fate.engine
                before = await place.metric(DISPUTES) if any(disputes.values()) else 0.0
                _, said, _ = await place.ask(0, **fate.body)
                if 0 < fate.paid_micro < PRICE:
                    assert f'"tokens_delivered":{fate.tokens}'.encode() in said
                await place.know_each_other()  # an executor that has failed is offered nothing until it is heard of again
                await place.until(lambda: at_rest(place))
                assert len(theirs.asked) == count
                disputes[name] = (await place.metric(DISPUTES) if fate.disputed else before) - before

    asyncio.run(scene())
    found = [(paid, tokens) for _, paid, tokens, _ in holds(tmp_path / "n0" / "home")]
    assert dict(zip(FATES, found, strict=True)) == {name: (fate.paid_micro, fate.tokens) for name, fate in FATES.items()}
    assert disputes == {name: fate.disputed for name, fate in FATES.items()}


def test_an_origin_without_credit_serves_its_users_at_home(tmp_path: Path) -> None:
    """It has credit for three: of ten at once three are delegated, seven run at home, and none is refused."""

    async def scene() -> None:
        async with (
            Engine() as mine,
            Engine() as theirs,
            town(tmp_path, [mine, theirs], policy=[ALWAYS, NEVER], **steady(initial_credit=3, stake_rate=0)) as place,
        ):
            answers = await asyncio.gather(*(place.ask(0) for _ in range(10)))
            assert [code for code, _, _ in answers] == [200] * 10
            assert (len(mine.asked), len(theirs.asked)) == (7, 3)
            await place.until(lambda: at_rest(place))
            assert (await place.ask(0))[0] == 200
            assert (len(mine.asked), len(theirs.asked)) == (8, 3)

    asyncio.run(scene())
    assert [(paid, tokens) for _, paid, tokens, _ in holds(tmp_path / "n0" / "home")] == [(PRICE, 3)] * 3
