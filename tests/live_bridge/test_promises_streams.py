"""R1: what an engine streams arrives at the user with the same bytes, through one node and through two, when it was sent."""

import asyncio
import json
import sqlite3
import time
from collections import Counter
from pathlib import Path

import pytest

from live_bridge.facts import Facts
from live_bridge.http.message import Request, Response
from live_bridge.job import Job
from tests.live_bridge.streams import LONG, by_seed, made
from tests.live_bridge.towns import ALWAYS, EVENTS, NEVER, PATIENCE_S, Engine, Script, Town, steady, town

NEAR, FAR = range(400), range(400, 1000)
AT_ONCE = 16


async def answer(place: Town, at: int, seed: int) -> bytes:
    """Ask node `at` for the stream of `seed`; all its bytes."""
    body = json.dumps({"prompt": str(seed), "stream": True, "max_tokens": 8}).encode()
    with await place.client.request("POST", place.urls[at] + "/v1/completions", [], body, first_byte_s=PATIENCE_S) as reply:
        assert reply.status == 200
        return await reply.body(1 << 24)


async def compare(place: Town, at: int, seeds: range) -> list[int]:
    """Ask for all streams, some at once; the seeds of those that are not what the engine has sent."""
    wrong, waiting = [], iter(seeds)

    async def user() -> None:
        for seed in waiting:
            if await answer(place, at, seed) != made(seed).whole:
                wrong.append(seed)

    async with asyncio.TaskGroup() as users:
        for _ in range(AT_ONCE):
            users.create_task(user())
    return wrong


def holds(home: Path) -> list[tuple[int, int, int, int]]:
    """What a founder's ledger has set aside: (micro-credits held, paid, tokens, state), once its node has stopped."""
    with sqlite3.connect(home / "ledger.sqlite") as file:
        rows = file.execute("SELECT held_micro, paid_micro, tokens, state FROM holds").fetchall()
    file.close()
    return rows


def test_a_thousand_streams_arrive_byte_for_byte_through_one_node_and_through_two(tmp_path: Path) -> None:
    async def scene() -> None:
        async with (
            Engine(by_seed) as mine,
            Engine(by_seed) as theirs,
            town(tmp_path, [mine, theirs], policy=[ALWAYS, NEVER], **steady(initial_credit=5000)) as place,
        ):
            assert await compare(place, 1, NEAR) == []
            assert await compare(place, 0, FAR) == []
            assert (len(mine.asked), len(theirs.asked)) == (0, len(NEAR) + len(FAR))

    asyncio.run(scene())
    paid = holds(tmp_path / "n0" / "home")
    assert {(held_micro, paid_micro) for held_micro, paid_micro, *_ in paid} == {(1_000_000, 1_000_000)}
    assert Counter(tokens for _, _, tokens, _ in paid) == Counter(made(seed).tokens for seed in FAR)


def test_tokens_are_counted_alike_however_a_stream_is_cut() -> None:
    for seed in range(200):
        stream = made(seed)
        jobs = [Job("1", "/v1/completions", [], b"", Facts(1, 1, stream=True, model=""), 0.0) for _ in range(3)]
        ways = [stream.pieces, [stream.whole], [bytes([byte]) for byte in stream.whole[:4000]] + [stream.whole[4000:]]]
        for job, pieces in zip(jobs, ways, strict=True):
            for piece in pieces:
                job.note(piece)
        assert [job.tokens for job in jobs] == [stream.tokens] * 3


def test_a_piece_is_passed_on_when_it_comes_not_with_the_next(tmp_path: Path) -> None:
    """The engine sends a piece only when the user has the one before: one that is held back anywhere would hold up everything."""
    had = [asyncio.Event() for _ in range(20)]
    pieces = [
        b"d",
        b"ata",
        b": {",
        b'"text":"\xe6',
        b"\x97",
        b"\xa5",
        b'"}\n\n',
        b"x" * LONG,
        b": ping\r\n\r\n",
        *[b"data: 1\n\n"] * 11,
    ]

    async def in_step(request: Request, response: Response) -> None:
        response.start(200, EVENTS)
        for piece, event in zip(pieces, had, strict=True):
            await response.write(piece)
            await event.wait()
        response.end()

    async def listen(place: Town, at: int) -> None:
        body = b'{"prompt":"1","stream":true,"max_tokens":8}'
        with await place.client.request("POST", place.urls[at] + "/v1/completions", [], body) as reply:
            said = bytearray()
            for piece, event in zip(pieces, had, strict=True):
                due = len(said) + len(piece)
                while len(said) < due:
                    said += await anext(reply)
                event.set()
            assert said == b"".join(pieces)
            assert [chunk async for chunk in reply] == []

    async def scene() -> None:
        async with (
            Engine(in_step) as mine,
            Engine(in_step) as theirs,
            town(tmp_path, [mine, theirs], policy=[ALWAYS, NEVER], **steady()) as place,
        ):
            for at in (1, 0):
                for event in had:
                    event.clear()
                async with asyncio.timeout(PATIENCE_S):
                    await listen(place, at)
            assert len(theirs.asked) == 2

    asyncio.run(scene())


def pace(gaps_s: float, count: int) -> Script:
    """Stream so many tokens, one each `gaps_s`, by the clock."""

    async def script(request: Request, response: Response) -> None:
        response.start(200, EVENTS)
        due_s = time.perf_counter()
        for k in range(count):
            due_s += gaps_s
            await asyncio.sleep(due_s - time.perf_counter())
            await response.write(b'data: {"choices":[{"index":0,"text":" t%d"}]}\n\n' % k)
        response.end()

    return script


async def gaps_s(place: Town, url: str, streams: int) -> list[float]:
    """Read paced streams side by side; the time between two reads of each."""
    found: list[float] = []

    async def read() -> None:
        body = b'{"prompt":"1","stream":true,"max_tokens":8}'
        with await place.client.request("POST", f"{url}/v1/completions", [], body) as reply:
            last_s = None
            async for _ in reply:
                now_s = time.perf_counter()
                found.extend([] if last_s is None else [now_s - last_s])
                last_s = now_s

    await asyncio.gather(*(read() for _ in range(streams)))
    return found


@pytest.mark.slow
def test_a_node_adds_no_more_than_5_ms_to_the_gap_between_two_pieces(tmp_path: Path) -> None:
    """The 99th percentile of 32 streams at 100 pieces a second, against the engine itself just before; the best of five rounds."""

    async def scene() -> float:
        async with Engine(pace(0.01, 100)) as engine, town(tmp_path, [engine], **steady()) as place:
            added = []
            for _ in range(5):
                direct, near = [sorted(await gaps_s(place, url, 32)) for url in (engine.url, place.urls[0])]
                added.append(near[int(0.99 * len(near))] - direct[int(0.99 * len(direct))])
            return min(added)

    assert asyncio.run(scene()) <= 0.005
