"""R2: a user who leaves takes nothing with him: the engine stops, money comes back, nothing is counted as under way any more."""

import asyncio
import json
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from live_bridge.host import PROMISE_S
from live_bridge.http.client import Client
from live_bridge.journal import read
from live_bridge.replay import replay
from tests.live_bridge.test_promises_streams import holds
from tests.live_bridge.towns import ALWAYS, NEVER, PATIENCE_S, Engine, Town, silent, steady, stream, town

ROOT = Path(__file__).parents[2]
EACH = 10
"""Cancels of one kind and distance."""
HOP_S = 0.1
OPEN = 0
CANCELS = 1000


def one_at_a_time(folder: Path) -> str:
    """Write the profile of an engine that runs one request at a time."""
    values = yaml.safe_load((ROOT / "conf" / "serving" / "l4_qwen3_8b.yaml").read_text(encoding="utf-8"))
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(values | {"max_num_seqs": 1}), encoding="utf-8")
    return str(path)


def asking(place: Town, at: int, client: Client | None = None) -> asyncio.Task[Any]:
    """Begin to ask node `at` for a stream."""
    body = json.dumps({"prompt": "hello", "stream": True, "max_tokens": 8}).encode()
    url = place.urls[at] + "/v1/completions"
    return asyncio.create_task((client or place.client).request("POST", url, [], body))


async def leave(task: asyncio.Task[Any]) -> None:
    """Leave before the answer has begun."""
    task.cancel()
    await asyncio.wait({task})


async def before_the_first_token(place: Town, engine: Engine, at: int) -> float:
    """Leave while the engine works on its first token; seconds until the engine knows."""
    left = engine.left
    engine.script = silent
    task = asking(place, at)
    await engine.until(lambda: engine.running == 1)
    began = time.perf_counter()
    await leave(task)
    await engine.until(lambda: engine.left > left and engine.running == 0)
    return time.perf_counter() - began


async def in_mid_stream(place: Town, engine: Engine, at: int) -> float:
    """Leave after some tokens; seconds until the engine knows."""
    left = engine.left
    engine.script = stream(5, hold=asyncio.Event(), after=3)
    reply = await asking(place, at)
    said = b""
    while b" t2" not in said:
        said += await anext(reply)
    began = time.perf_counter()
    reply.close()
    await engine.until(lambda: engine.left > left and engine.running == 0)
    return time.perf_counter() - began


async def in_the_queue(place: Town, engine: Engine, at: int) -> float:
    """Leave while the work waits at node 1, whose engine is busy; seconds until it is out of the queue, as far as polling tells."""
    asked = len(engine.asked)
    task = asking(place, at)
    await place.until(lambda: queued(place, 1, 1))
    began = time.perf_counter()
    await leave(task)
    await place.until(lambda: queued(place, 1, 0))
    assert len(engine.asked) == asked
    return time.perf_counter() - began


async def queued(place: Town, at: int, count: int) -> bool:
    """Whether so many requests wait at node `at`."""
    return bool((await place.get("/market/v1/state", at))["totals"]["queued"] == count)


async def busy(place: Town, engine: Engine) -> list[asyncio.Task[Any]]:
    """Fill node 1's engine: one request runs, one waits in it, and the next will wait at the node."""
    engine.script = silent
    tasks = [asking(place, 1), asking(place, 1)]
    await engine.until(lambda: engine.running == 2)
    return tasks


async def at_rest(place: Town) -> bool:
    """Whether no node has anything under way or set aside."""
    for at in range(len(place.urls)):
        state = await place.get("/market/v1/state", at)
        if state["totals"]["in_flight"] or state["totals"]["queued"] or state["balances"]["escrow"]:
            return False
        if await place.metric("wwwserve_in_flight", at):
            return False
    return True


def files(place: Town) -> list[int]:
    """Open files and sockets of each node."""
    return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in place.fleet.pids().values()]


def assert_nothing_is_left(place: Town) -> None:
    """Run each journal through the rules again: a mind that is at rest knows of no work at all."""
    for home in place.homes:
        found = replay(read(home / "journal.jsonl"), str(home))
        assert found.different is None
        brain = found.brain
        assert (brain.works, brain.engine.works, list(brain.line.works)) == ({}, {}, [])
        assert (brain.node.away, brain.node.guests, brain.node.queued) == (0, 0, 0)
        assert (brain.node.queued_prompt, brain.node.queued_output, brain.engine.record.running) == (0, 0, 0)
    assert all(state != OPEN for *_, state in holds(place.homes[0]))


Way = Callable[[Town, Engine, int], Awaitable[float]]


def test_sixty_users_leave_in_the_queue_before_the_first_token_and_in_mid_stream_over_one_hop_and_two(tmp_path: Path) -> None:
    took: dict[tuple[str, int], list[float]] = {}

    async def cancel(place: Town, engine: Engine, ways: tuple[Way, ...]) -> None:
        for way in ways:
            for at in (1, 0):
                took[way.__name__, at] = [await way(place, engine, at) for _ in range(EACH)]

    async def scene() -> Town:
        async with (
            Engine() as mine,
            Engine() as theirs,
            town(tmp_path, [mine, theirs], policy=[ALWAYS, NEVER], profile=one_at_a_time(tmp_path), **steady()) as place,
        ):
            before = files(place)
            await cancel(place, theirs, (before_the_first_token, in_mid_stream))
            blockers = await busy(place, theirs)
            await cancel(place, theirs, (in_the_queue,))
            for task in blockers:
                await leave(task)
            await place.until(lambda: at_rest(place))
            assert all(now <= then + 8 for now, then in zip(files(place), before, strict=True))
            assert mine.asked == []
            return place

    place = asyncio.run(scene())
    assert_nothing_is_left(place)
    for (way, at), seconds in took.items():
        assert statistics.median(seconds) <= HOP_S * (2 - at), (way, at)
    paid = [(paid_micro, tokens) for _, paid_micro, tokens, _ in holds(place.homes[0])]
    assert len(paid) == 3 * EACH
    assert paid.count((0, 0)) == 2 * EACH  # nothing was delivered
    assert sum(0 < micro < 1_000_000 and tokens == 3 for micro, tokens in paid) == EACH  # 3 of 8 tokens were


@pytest.mark.slow
def test_a_thousand_users_leave_at_any_moment_and_nothing_leaks(tmp_path: Path) -> None:
    draw = random.Random(0)

    async def user(place: Town, count: int) -> None:
        for _ in range(count):
            task = asking(place, draw.randrange(2))
            await asyncio.wait({task}, timeout=draw.choice((0.0, 0.003, 0.01, 0.03, 0.1)))
            if task.done():
                task.result().close()
            else:
                await leave(task)

    async def scene() -> Town:
        async with (
            Engine(stream(50, hold=asyncio.Event(), after=3)) as mine,
            Engine(stream(50, hold=asyncio.Event(), after=3)) as theirs,
            town(tmp_path, [mine, theirs], policy=[ALWAYS, NEVER], **steady(initial_credit=2000)) as place,
        ):
            await user(place, 20)  # what a node keeps open it has opened by then
            before = files(place)
            await asyncio.gather(*(user(place, CANCELS // 8) for _ in range(8)))
            await place.until(lambda: at_rest(place), PROMISE_S + PATIENCE_S)  # what was accepted and never sent lapses
            assert mine.running == theirs.running == 0
            assert all(now <= then + 32 for now, then in zip(files(place), before, strict=True))
            return place

    assert_nothing_is_left(asyncio.run(scene()))
