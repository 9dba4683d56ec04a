"""One real node and markets of some, before engines that a test scripts."""

import asyncio
import json
from pathlib import Path

from live_bridge.journal import read
from tests.live_bridge.towns import Engine, stream, town, whole

ALWAYS = "fixed:3-4-2"
"""Forward everything."""


def test_a_request_is_answered_by_the_own_engine_unchanged(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Engine() as engine, town(tmp_path, [engine]) as place:
            code, answer, headers = await place.ask(
                headers=[(b"x-mine", b"1"), (b"authorization", b"Bearer secret")], top_p=0.5, odd={"a": [1]}
            )
            assert (code, answer["choices"][0]["text"]) == (200, " a a a")
            assert dict(headers)[b"market-executor"]
            [request] = engine.asked
            assert json.loads(request.body) == {"prompt": "hello there", "max_tokens": 8, "top_p": 0.5, "odd": {"a": [1]}}
            assert request.header(b"x-mine") == b"1"
            assert request.header(b"authorization") is None

    asyncio.run(scene())


def test_a_forwarded_request_is_paid_for_and_answered_by_the_peer(tmp_path: Path) -> None:
    async def scene() -> None:
        async with (
            Engine() as mine,
            Engine(whole(4, " b")) as theirs,
            town(tmp_path, [mine, theirs], policy=[ALWAYS, "fixed:3-0-2"]) as place,
        ):
            code, answer, _ = await place.ask(0)
            assert (code, answer["choices"][0]["text"]) == (200, " b b b b")
            assert (len(mine.asked), len(theirs.asked)) == (0, 1)

            async def paid() -> bool:
                balances = [(await place.get("/market/v1/state", k))["balances"] for k in (0, 1)]
                return [round(sum(one.values()), 6) for one in balances] == [101.0, 103.0]

            await place.until(paid)

    asyncio.run(scene())


def test_a_forwarded_stream_arrives_byte_for_byte(tmp_path: Path) -> None:
    async def scene() -> None:
        async with (
            Engine() as mine,
            Engine(stream(5)) as theirs,
            town(tmp_path, [mine, theirs], policy=[ALWAYS, "fixed:3-0-2"]) as place,
        ):
            _, here, _ = await place.ask(1, stream=True)
            _, there, headers = await place.ask(0, stream=True)
            assert here == there
            assert here.endswith(b"data: [DONE]\n\n")
            assert dict(headers)[b"content-type"].startswith(b"text/event-stream")

    asyncio.run(scene())


def test_the_journal_holds_what_was_done_and_nothing_that_was_said(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Engine() as engine, town(tmp_path, [engine]) as place:
            await place.ask(prompt="a secret question")

    asyncio.run(scene())
    path = tmp_path / "n0" / "home" / "journal.jsonl"
    assert "secret" not in path.read_text()
    events = [line[0][0] for line in read(path) if isinstance(line, list)]
    assert events.index("arrive") < events.index("end")


def test_a_request_that_names_a_model_goes_to_a_peer_that_serves_it_or_stays(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Engine() as mine, Engine() as theirs, town(tmp_path, [mine, theirs], policy=[ALWAYS, "fixed:3-0-2"]) as place:
            await place.ask(0, model="stub")
            assert (len(mine.asked), len(theirs.asked)) == (0, 1)
            await place.ask(0, model="another")
            assert (len(mine.asked), len(theirs.asked)) == (1, 1)

    asyncio.run(scene())
