"""R3, R5, R6: what fails before the user has got anything is done once more; what fails later is told; a 4xx is no failure."""

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from live_bridge.http.message import Request, Response
from live_bridge.journal import read
from live_bridge.replay import replay
from tests.live_bridge.streams import events_of
from tests.live_bridge.test_promises_money import PRICE, at_rest
from tests.live_bridge.test_promises_streams import holds
from tests.live_bridge.towns import (
    ALWAYS,
    NEVER,
    Engine,
    Script,
    Town,
    broken_off,
    calm,
    hang_up,
    silent,
    status,
    steady,
    stream,
    town,
    whole,
)

RETRIED_S = 2.0
EXECUTIONS = 2
RESERVE = 10
"""Retries that a node has before its traffic has earned any."""
ERRORS = (400, 413, 422, 429)


def after(first: Script, then: Script) -> Script:
    """Do `first` once, and `then` ever after."""
    scripts = [first]

    async def script(request: Request, response: Response) -> None:
        await (scripts.pop() if scripts else then)(request, response)

    return script


async def at_work(engines: dict[str, Engine]) -> str:
    """Wait until one of these engines is at work; the name of its node."""
    waits = {asyncio.create_task(engine.until(lambda engine=engine: engine.running == 1)): name for name, engine in engines.items()}
    done, others = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    return waits[done.pop()]


def error_of(said: bytes) -> dict[str, object]:
    """The error that a broken stream ends with; there is nothing behind it and no [DONE]."""
    *before, last = events_of(said)
    assert last.name == "error" and all(event.data != "[DONE]" for event in before)
    found: dict[str, object] = json.loads(last.data)["error"]
    return found


async def kill_both(place: Town, engines: dict[str, Engine]) -> None:
    """Kill one executor before its first token, then the other in mid-stream."""
    asking = asyncio.create_task(place.ask(0, stream=True))
    first = await at_work(engines)
    [second] = set(engines) - {first}
    engines[second].script = stream(5)
    began = time.perf_counter()
    os.kill(place.fleet.pids()[first], signal.SIGKILL)
    code, said, _ = await asking
    assert time.perf_counter() - began <= RETRIED_S
    assert (code, [event.name for event in events_of(said)]) == (200, ["message"] * 6)
    assert said.endswith(b'" t4"}]}\n\ndata: [DONE]\n\n')
    await engines[first].until(lambda: engines[first].left == 1)

    engines[second].script = stream(5, hold=asyncio.Event(), after=3)
    body = b'{"prompt":"hello","stream":true,"max_tokens":8}'
    with await place.client.request("POST", place.urls[0] + "/v1/completions", [], body) as reply:
        said = b""
        while b" t2" not in said:
            said += await anext(reply)
        os.kill(place.fleet.pids()[second], signal.SIGKILL)
        said += await reply.body(1 << 20)
    assert [event.name for event in events_of(said)] == ["message"] * 3 + ["error"]
    error = error_of(said)
    assert (error["code"], error["tokens_delivered"]) == ("executor_failed", 3)


def test_a_killed_executor_is_replaced_before_its_first_token_and_told_of_behind_it(tmp_path: Path) -> None:
    async def scene() -> None:
        engines = {"n1": Engine(silent), "n2": Engine(silent)}
        async with (
            Engine(whole()) as mine,
            engines["n1"],
            engines["n2"],
            town(tmp_path, [mine, *engines.values()], policy=[ALWAYS, NEVER, NEVER], **steady()) as place,
        ):
            await kill_both(place, engines)
            assert mine.asked == []
            assert (await place.ask(0))[1]["choices"][0]["text"] == " a a a"  # nobody else is left
            assert len(mine.asked) == 1
            await place.until(lambda: at_rest_alone(place))

    asyncio.run(scene())
    paid = [(paid_micro, tokens) for _, paid_micro, tokens, _ in holds(tmp_path / "n0" / "home")]
    assert paid == [(0, 0), (PRICE, 5), (PRICE * 3 // 8, 3)]


def test_work_at_a_peer_that_hangs_comes_back_when_it_is_believed_gone(tmp_path: Path) -> None:
    async def scene() -> None:
        async with (
            Engine(whole()) as mine,
            Engine(silent) as theirs,
            town(tmp_path, [mine, theirs], policy=[ALWAYS, NEVER], **calm(gossip_s=0.3, suspect_rounds=6, gone_rounds=6)) as place,
        ):
            begun = asyncio.create_task(place.ask(0))
            await theirs.until(lambda: theirs.running == 1)
            theirs.script = stream(5, hold=asyncio.Event(), after=2)
            body = b'{"prompt":"hello","stream":true,"max_tokens":8}'
            with await place.client.request("POST", place.urls[0] + "/v1/completions", [], body) as reply:
                said = b""
                while b" t1" not in said:
                    said += await anext(reply)
                pid = place.fleet.pids()["n1"]
                os.kill(pid, signal.SIGSTOP)  # its connections stay open, and nothing comes any more
                try:
                    async with asyncio.timeout(20.0):
                        said += await reply.body(1 << 20)
                        code, answer, headers = await begun
                finally:
                    os.kill(pid, signal.SIGCONT)
            assert (code, answer["choices"][0]["text"], len(mine.asked)) == (200, " a a a", 1)
            assert dict(headers)[b"market-executor"] == (await place.get("/market/v1/state"))["id"].encode()
            assert (error_of(said)["code"], error_of(said)["tokens_delivered"]) == ("executor_gone", 2)
            await place.until(lambda: at_rest_alone(place))
            await theirs.until(lambda: theirs.left == 2)

    asyncio.run(scene())
    journal = tmp_path / "n0" / "home" / "journal.jsonl"
    assert sum(command[0] == "recall" for _, commands in list(read(journal))[1:] for command in commands) == 2
    assert replay(read(journal), str(journal)).different is None


def test_a_failed_request_shows_at_once_that_the_engine_is_gone(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Engine() as engine, town(tmp_path, [engine], backend={"metrics_s": 600.0, "stale_s": 1200.0}) as place:
            assert (await place.ask())[0] == 200
            assert await place.metric("wwwserve_backend_up") == 1.0
            engine.end()
            assert (await place.ask())[0] in {502, 503}

            async def seen() -> bool:
                return await place.metric("wwwserve_backend_up") == 0.0

            await place.until(seen)  # long before the next reading of its metrics

    asyncio.run(scene())


async def at_rest_alone(place: Town) -> bool:
    state = await place.get("/market/v1/state")
    return bool(state["totals"]["in_flight"] == state["balances"]["escrow"] == 0)


FIRST_FAILS = {"500": status(500), "503": status(503), "no answer": hang_up}


def test_an_engine_that_fails_before_its_first_byte_is_asked_once_more_and_never_behind_it(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Engine() as engine, town(tmp_path, [engine], **steady()) as place:
            for fails in FIRST_FAILS.values():
                for then in (whole(2), stream(2)):
                    before = len(engine.asked)
                    engine.script = after(fails, then)
                    assert (await place.ask())[0] == 200
                    assert len(engine.asked) - before == EXECUTIONS
                    assert engine.asked[-1].body == engine.asked[-2].body
            engine.script = status(500)
            code, said, _ = await place.ask()
            assert (code, said["error"]["code"]) == (502, "executor_failed")
            before = len(engine.asked)
            engine.script = broken_off(2)
            code, said, _ = await place.ask(stream=True)
            assert error_of(said)["tokens_delivered"] == 2
            engine.script = broken_off(2, within=b'data: {"choi')
            code, said, _ = await place.ask(stream=True)
            assert error_of(said)["tokens_delivered"] == 3  # an event has begun, and the error stands apart from it
            assert len(engine.asked) - before == 2
            assert await place.metric('wwwserve_retries_total{after="local"}') == 2 * len(FIRST_FAILS) + 1

    asyncio.run(scene())


def test_work_that_fails_at_a_peer_is_done_at_home_and_runs_no_more_than_twice(tmp_path: Path) -> None:
    async def scene() -> None:
        async with (
            Engine() as mine,
            Engine() as theirs,
            town(tmp_path, [mine, theirs], policy=[ALWAYS, NEVER], **steady()) as place,
        ):
            for fails in FIRST_FAILS.values():
                theirs.script, mine.script = fails, whole(2)
                assert (await place.ask())[0] == 200
                await place.know_each_other()
                mine.script = status(500)
                code, said, _ = await place.ask()
                assert (code, said["error"]["code"]) == (502, "executor_failed")
                await place.know_each_other()
            assert len(mine.asked) == len(theirs.asked) == 2 * len(FIRST_FAILS)
            await place.until(lambda: at_rest(place))

    asyncio.run(scene())
    assert {(paid_micro, tokens) for _, paid_micro, tokens, _ in holds(tmp_path / "n0" / "home")} == {(0, 0)}


def test_retries_are_a_tenth_of_the_traffic_and_a_reserve(tmp_path: Path) -> None:
    requests = 200

    async def scene() -> None:
        async with Engine(hang_up) as engine, town(tmp_path, [engine], **steady()) as place:
            codes = Counter([(await place.ask())[0] for _ in range(requests)])
            assert codes == {502: requests}
            assert requests < len(engine.asked) <= requests + RESERVE + requests // 10
            engine.script = whole(1)
            assert (await place.ask())[0] == 200

    asyncio.run(scene())


async def as_asked(request: Request, response: Response) -> None:
    """Answer with the status that the prompt names."""
    await status(int(json.loads(request.body)["prompt"]), b'{"error":{"message":"\xc3\xa9"},"detail":[1]}')(request, response)


def mixed(bad: int) -> Iterator[int]:
    """So many errors of users, and a good request behind each fourth."""
    for k in range(bad):
        yield ERRORS[k % len(ERRORS)]
        if k % 4 == 3:
            yield 200


def test_a_thousand_errors_of_users_cost_no_good_request_its_answer(tmp_path: Path) -> None:
    async def ask(place: Town, at: int, bad: int) -> None:
        asked = mixed(bad)

        async def user() -> None:
            for wanted in asked:
                code, said, _ = await place.ask(at, prompt=str(wanted))
                assert (code, said["detail"]) == (wanted, [1])

        async with asyncio.TaskGroup() as users:
            for _ in range(8):
                users.create_task(user())

    async def scene() -> None:
        async with (
            Engine() as mine,
            Engine(as_asked) as theirs,
            town(tmp_path, [mine, theirs], policy=[ALWAYS, NEVER], **steady(initial_credit=1000)) as place,
        ):
            await ask(place, 1, 600)
            await ask(place, 0, 400)
            assert (len(mine.asked), len(theirs.asked)) == (0, 1250)
            for after_ in ("local", "peer"):
                assert await place.metric(f'wwwserve_retries_total{{after="{after_}"}}') == 0
            assert await place.metric('wwwserve_peers{status="alive"}') == 1
            await place.until(lambda: at_rest(place))

    asyncio.run(scene())
    paid = Counter(paid_micro for _, paid_micro, *_ in holds(tmp_path / "n0" / "home"))
    assert paid == {0: 400, PRICE: 100}
