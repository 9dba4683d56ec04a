"""Duels between real nodes before scripted engines: fair judges, stakes that move, and an end whatever fails or hangs."""

import asyncio
import json
import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from live_bridge.ledger.journal import from_json
from live_bridge.purse import MICRO_S
from tests.live_bridge.towns import JSON, Engine, Script, Town, town

ALWAYS, NEVER = "fixed:3-4-2", "fixed:3-0-2"
SHOWN = re.compile(r"<<ANSWER ([AB]) (\w+)>>\n.*?quality (\d+).*?\n<<END ANSWER \1 \2>>", re.DOTALL)
HOLD_TTL_S = 900.0


def is_judging(request: Any) -> bool:
    return b"You compare two answers" in request.body


def verdict(request: Any) -> str:
    """What a model that judges truthfully replies: the letter of the answer of higher quality."""
    qualities = {letter: int(quality) for letter, _, quality in SHOWN.findall(json.loads(request.body)["messages"][0]["content"])}
    return max(qualities, key=lambda letter: qualities[letter])


def honest(quality: int, *, answer: Script | None = None, judge: Script | None = None) -> Script:
    """An engine of some quality, which says the truth about others; `answer` and `judge` do as they like instead."""

    async def script(request: Any, response: Any) -> None:
        if is_judging(request):
            if judge is not None:
                await judge(request, response)
                return
            choice = {"index": 0, "message": {"role": "assistant", "content": verdict(request)}}
        elif answer is not None:
            await answer(request, response)
            return
        else:
            choice = {"index": 0, "text": f"an answer of quality {quality}"}
        body = {"choices": [choice], "usage": {"completion_tokens": 3}}
        response.send(200, JSON, json.dumps(body).encode())

    return script


async def hang(request: Any, response: Any) -> None:
    """Never answer."""
    await asyncio.Event().wait()


async def drop(request: Any, response: Any) -> None:
    """Close the connection without a byte."""
    response.abort()


async def entries(place: Town) -> list[tuple[Any, dict[str, Any]]]:
    """The ledger's journal: entries, and the order of each."""
    found: list[Any] = []
    while page := (await place.get(f"/market/v1/ledger/journal?from={len(found)}"))["entries"]:
        found += [from_json(each) for each in page]
    return [(entry, json.loads(entry.body)) for entry in found]


async def ids(place: Town) -> list[str]:
    return [(await place.get("/market/v1/state", k))["id"] for k in range(len(place.urls))]


async def nothing_is_left(place: Town) -> bool:
    """Whether no duel, no copy, no judge and no credit set aside is left anywhere."""
    states = [await place.get("/market/v1/state", k) for k in range(len(place.urls))]
    escrow = [state["balances"]["escrow"] for state in states]
    return all(state["duels"] == 0 and state["totals"]["in_flight"] == 0 and state["works"] == 0 for state in states) and not any(
        escrow
    )


def market(tmp_path: Path, engines: list[Engine], deadline_s: float = 20.0, **terms: Any) -> Any:
    """Node 0 forwards everything, and every request is duelled; the others execute and judge."""
    policies = [ALWAYS, *[NEVER] * (len(engines) - 1)]
    settings = {"duels": {"deadline_s": deadline_s}, "ledger": {"hold_ttl_s": HOLD_TTL_S}}
    return town(tmp_path, engines, {"duel_rate": 1, **terms}, policy=policies, **settings)


async def with_engines(count: int, scene: Any) -> None:
    engines = [Engine(honest(k)) for k in range(count)]
    for engine in engines:
        await engine.begin()
    try:
        await scene(engines)
    finally:
        for engine in engines:
            engine.end()


def test_the_better_answer_wins_and_judges_are_neither_duellist_nor_origin(tmp_path: Path) -> None:
    requests = 16

    async def scene(engines: list[Engine]) -> None:
        async with market(tmp_path, engines) as place:
            me, *others = await ids(place)
            before = {each: sum(held) for each, held in (await place.get("/market/v1/ledger/accounts"))["accounts"].items()}
            for _ in range(requests):
                code, _, _ = await place.ask(0)
                assert code == 200

            async def settled() -> bool:
                return await place.metric('wwwserve_duels_total{result="settled"}') == requests and await nothing_is_left(place)

            await place.until(settled)
            found = [(entry, order) for entry, order in await entries(place) if order.get("kind") == "duel"]
            assert len(found) == requests and all(entry.accepted for entry, _ in found)
            won: Counter[str] = Counter()
            for entry, order in found:
                terms = order["terms"]
                duellists = [terms["executor_a"], terms["executor_b"]]
                judges = [vote["judge"] for vote in terms["judges"]]
                assert entry.account == me and not {me, *duellists} & set(judges) and len(set(judges)) == 2
                better = max(duellists, key=others.index)
                assert {vote["verdict"] for vote in terms["judges"]} == {"AB"[duellists.index(better)]}
                assert entry.reason == ("won_by_a" if better == duellists[0] else "won_by_b")
                won[better] += 1
            assert won[others[0]] == 0 and won[others[-1]] > 0
            await stakes_have_moved(place, before, others)
            states = [await place.get("/market/v1/state", k) for k in range(1, 5)]
            assert [state["counters"]["duels_won"] for state in states] == [won[each] for each in others]
            assert sum(state["counters"]["duels_lost"] for state in states) == requests

    asyncio.run(with_engines(5, scene))


async def stakes_have_moved(place: Town, before: dict[str, int], others: list[str]) -> None:
    """Beyond what it was paid, the best has won and the worst has lost; all that was there is there."""
    after = {each: sum(held) for each, held in (await place.get("/market/v1/ledger/accounts"))["accounts"].items()}
    assert sum(after.values()) == sum(before.values())
    found = await entries(place)
    payee = {order["terms"]["hold_id"]: order["terms"]["payee"] for _, order in found if order.get("kind") == "hold"}
    paid: Counter[str] = Counter()
    for entry, order in found:
        if order.get("kind") == "settle" and entry.accepted:
            paid[payee[order["terms"]["hold_id"]]] += order["terms"]["amount_micro"]
    gained = {each: after[each] - before[each] - paid[each] for each in others}
    assert gained[others[-1]] > MICRO_S // 10
    assert gained[others[0]] < -MICRO_S // 10


def by_turn(first: Script | None, second: Script | None) -> Script:
    """Answers of all engines together: what the first copy of a request meets, and what the second does; None = an answer.

    On a busy machine the second copy overtakes the user's own, though rarely.
    """
    seen: Counter[bytes] = Counter()

    async def script(request: Any, response: Any) -> None:
        seen[request.body] += 1
        chosen = {1: first, 2: second}.get(seen[request.body])
        await (chosen or honest(1))(request, response)

    return script


@pytest.mark.parametrize(("fault", "result"), [(hang, "called_off"), (drop, "undecided")])
def test_a_duel_ends_when_its_judges_hang_or_break(tmp_path: Path, fault: Script, result: str) -> None:
    async def scene(engines: list[Engine]) -> None:
        for k, engine in enumerate(engines):
            engine.script = honest(k, judge=fault)
        async with market(tmp_path, engines, deadline_s=1.0) as place:
            before = (await place.get("/market/v1/state"))["balances"]
            for k in range(3):
                assert (await place.ask(0, prompt=f"question {k}"))[0] == 200
            await place.until(lambda: nothing_is_left(place), 1.0 + 7.0)
            assert await place.metric(f'wwwserve_duels_total{{result="{result}"}}') == 3
            assert await place.metric('wwwserve_duels_total{result="settled"}') == 0
            after = (await place.get("/market/v1/state"))["balances"]
            executions = 3 * 2
            votes = 3 * 2 if result == "undecided" else 0  # a judge whose model says nothing abstains, and is paid for that
            assert sum(before.values()) - sum(after.values()) == pytest.approx(executions + votes)

    asyncio.run(with_engines(5, scene))


async def patient(place: Town, prompt: str) -> int | None:
    """A user who waits for 5 s; returns the status, None when nothing came."""
    try:
        async with asyncio.timeout(5.0):
            return (await place.ask(0, prompt=prompt))[0]
    except TimeoutError:
        return None


@pytest.mark.parametrize("fault", [hang, drop])
def test_a_duel_ends_when_the_second_executor_hangs_or_breaks(tmp_path: Path, fault: Script) -> None:
    async def scene(engines: list[Engine]) -> None:
        answers = by_turn(None, fault)
        for k, engine in enumerate(engines):
            engine.script = honest(k, answer=answers)
        async with market(tmp_path, engines, deadline_s=1.0) as place:
            codes = [await patient(place, f"question {k}") for k in range(3)]
            assert set(codes) <= {200, None} and 200 in codes
            await place.until(lambda: nothing_is_left(place), 1.0 + 7.0)
            ended = [
                await place.metric(f'wwwserve_duels_total{{result="{how}"}}') for how in ("called_off", "settled", "undecided")
            ]
            if fault is hang:
                assert ended == [3, 0, 0]
            else:  # a third executor may have stood in
                assert sum(ended) >= 2
            assert sum(engine.running for engine in engines) == 0
            if fault is hang:
                assert sum(engine.left for engine in engines) == 3

    asyncio.run(with_engines(4, scene))


def test_a_duel_ends_when_the_first_executor_hangs_and_its_user_may_wait_on(tmp_path: Path) -> None:
    async def scene(engines: list[Engine]) -> None:
        answers = by_turn(hang, None)
        for k, engine in enumerate(engines):
            engine.script = honest(k, answer=answers)
        async with market(tmp_path, engines, deadline_s=1.0) as place:
            user = asyncio.create_task(place.ask(0))

            async def over() -> bool:
                state = await place.get("/market/v1/state")
                called_off = await place.metric('wwwserve_duels_total{result="called_off"}')
                return called_off == 1 and (state["duels"], state["works"], state["totals"]["in_flight"]) == (0, 1, 1)

            await place.until(over, 1.0 + 7.0)
            assert not user.done()
            user.cancel()
            await asyncio.gather(user, return_exceptions=True)
            await place.until(lambda: nothing_is_left(place))
            state = await place.get("/market/v1/state")
            assert sum(state["balances"].values()) == pytest.approx(102.0 - 1.0)  # the copy was executed, and paid

    asyncio.run(with_engines(4, scene))


def test_a_request_whose_first_executor_breaks_is_answered_and_no_duel_is_left(tmp_path: Path) -> None:
    async def scene(engines: list[Engine]) -> None:
        answers = by_turn(drop, None)
        for k, engine in enumerate(engines):
            engine.script = honest(k, answer=answers)
        async with market(tmp_path, engines, deadline_s=1.0) as place:
            codes = [(await place.ask(0, prompt=f"question {k}"))[0] for k in range(3)]
            assert codes == [200] * 3
            await place.until(lambda: nothing_is_left(place), 1.0 + 7.0)

    asyncio.run(with_engines(4, scene))


@pytest.mark.parametrize("word", [signal.SIGSTOP, signal.SIGKILL])
def test_a_duel_ends_when_whole_nodes_freeze_or_die(tmp_path: Path, word: signal.Signals) -> None:
    async def scene(engines: list[Engine]) -> None:
        async with market(tmp_path, engines, deadline_s=1.0, suspect_rounds=50) as place:
            gone = [place.fleet.pids()[f"n{k}"] for k in (3, 4)]
            judged = asyncio.Event()

            async def judge(request: Any, response: Any) -> None:
                for pid in gone if not judged.is_set() else []:
                    os.kill(pid, word)  # as soon as the first judge is asked; the others are drawn, and cannot answer
                judged.set()
                await hang(request, response)

            for k, engine in enumerate(engines):
                engine.script = honest(k, judge=judge)
            try:
                codes = [(await place.ask(0, prompt=f"question {k}"))[0] for k in range(2)]
                await asyncio.wait_for(judged.wait(), 10.0)

                async def over() -> bool:
                    state = await place.get("/market/v1/state")
                    return (state["duels"], state["works"]) == (0, 0) and state["balances"]["escrow"] == 0.0

                await place.until(over, 1.0 + 9.0)
                assert codes == [200] * 2
                assert await place.metric('wwwserve_duels_total{result="settled"}') == 0
            finally:
                for pid in gone if word == signal.SIGSTOP else []:
                    os.kill(pid, signal.SIGCONT)

    asyncio.run(with_engines(5, scene))
