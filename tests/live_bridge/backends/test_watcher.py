"""A watched engine: news and its age, and what a node learns when the news stops, lies or comes back."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from live_bridge.backends.watcher import Watcher
from live_bridge.clock import Clock
from live_bridge.http.client import Client
from live_bridge.http.message import Limits, Request, Response
from live_bridge.http.server import Server
from tests.live_bridge.backends.test_metrics import VLLM, two_engines

PERIOD_S = 0.05
STALE_S = 0.4


class Backend:
    """An engine's /metrics that does as it is told."""

    def __init__(self) -> None:
        self.status, self.text, self.hang, self.asked = 200, VLLM, False, asyncio.Condition()
        self.well: int | None = None  # what /health says for itself
        self.count, self.keys, self.paths = 0, set[bytes | None](), set[str]()
        self.server: Server | None = None
        self.port = 0

    async def handle(self, request: Request, response: Response) -> None:
        if request.path == "/health" and self.well is not None:
            response.send(self.well, [], b"")
            return
        self.keys.add(request.header(b"authorization"))
        self.paths.add(request.path)
        async with self.asked:
            self.count += 1
            self.asked.notify_all()
        if self.hang:
            await asyncio.Event().wait()
        response.send(self.status, [], self.text.encode())

    async def up(self) -> None:
        self.server = Server(self.handle, Limits(), lambda event: None)
        self.port = await self.server.listen("127.0.0.1", self.port)

    def down(self) -> None:
        assert self.server is not None
        self.server.close()

    async def polls(self, more: int) -> None:
        """Wait until it has been asked so many times more, and the answers have been taken."""
        async with self.asked:
            goal = self.count + more
            await self.asked.wait_for(lambda: self.count >= goal)
        await asyncio.sleep(0.01)


Scenario = Callable[[Backend, Watcher, Counter[str]], Coroutine[Any, Any, None]]


def watched(scenario: Scenario, kind: Any = "vllm", speed: float = 1.0) -> None:
    """Run a scenario with an engine that is up, watched, and read once."""

    async def main() -> None:
        backend, client, counts = Backend(), Client(), Counter[str]()
        await backend.up()
        watcher = Watcher(
            client,
            f"http://127.0.0.1:{backend.port}/",
            kind,
            Clock(speed),
            PERIOD_S * speed,
            STALE_S * speed,
            [(b"authorization", b"Bearer engine-key")],
            lambda event: counts.update([event]),
        )
        assert (watcher.load(), watcher.age_s, watcher.alive) == (None, math.inf, False)
        await watcher.poll()
        watching = asyncio.create_task(watcher.run())
        try:
            async with asyncio.timeout(10):
                await scenario(backend, watcher, counts)
        finally:
            watching.cancel()
            backend.down()
            await client.close()

    asyncio.run(main())


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("speed", [1.0, 20.0])
def test_a_healthy_engine_is_read_again_and_again(speed: float) -> None:
    async def scenario(backend: Backend, watcher: Watcher, counts: Counter[str]) -> None:
        first = watcher.load()
        assert first is not None and first.running == 3
        backend.text = two_engines(VLLM)
        await backend.polls(2)
        second = watcher.load()
        assert second is not None and (second.running, second.waiting) == (15, 35)
        assert second.read_s > first.read_s
        assert watcher.alive and watcher.error is None
        assert 0.0 <= watcher.age_s <= STALE_S * speed
        assert counts["backend_poll_ok"] >= 3 and len(counts) == 1
        assert backend.keys == {b"Bearer engine-key"} and backend.paths == {"/metrics"}

    watched(scenario, speed=speed)


@pytest.mark.parametrize(
    ("spoil", "reason", "text"),
    [
        (lambda backend: setattr(backend, "status", 404), "status", "answers 404"),
        (
            lambda backend: setattr(backend, "text", VLLM.replace("kv_cache_usage", "kv_use")),
            "missing",
            "has no vllm:kv_cache_usage",
        ),
        (lambda backend: setattr(backend, "text", VLLM.replace(" 3.0", " NaN")), "bad", "got NaN"),
        (lambda backend: setattr(backend, "text", two_engines(VLLM).replace(" 12.0", " -1")), "bad", "got -1"),
        (lambda backend: setattr(backend, "text", ""), "missing", "is this a vLLM server"),
    ],
)
def test_an_engine_that_answers_without_readable_metrics_is_alive_and_never_idle(
    spoil: Callable[[Backend], None], reason: str, text: str
) -> None:
    async def scenario(backend: Backend, watcher: Watcher, counts: Counter[str]) -> None:
        spoil(backend)
        await until(lambda: watcher.load() is None)
        assert watcher.age_s > STALE_S
        assert watcher.alive
        assert watcher.error is not None and text in watcher.error and watcher.url in watcher.error
        assert counts[f"backend_poll_{reason}"] > 2
        backend.status, backend.text = 200, VLLM
        await backend.polls(2)
        assert watcher.load() is not None and watcher.error is None

    watched(scenario)


def test_an_engine_that_hangs_is_neither_alive_nor_idle_once_the_news_is_stale() -> None:
    async def scenario(backend: Backend, watcher: Watcher, counts: Counter[str]) -> None:
        backend.hang = True
        await backend.polls(1)
        assert watcher.load() is not None
        await until(lambda: watcher.load() is None and not watcher.alive)
        assert counts["backend_poll_timeout"] > 0
        assert "no answer within 0.175 s" in str(watcher.error)
        assert counts["backend_poll_silent"] > 0

    watched(scenario)


def test_an_engine_whose_front_says_503_dies_only_by_and_by() -> None:
    async def scenario(backend: Backend, watcher: Watcher, counts: Counter[str]) -> None:
        backend.status = 503
        await backend.polls(2)
        assert watcher.alive
        await until(lambda: not watcher.alive)
        assert watcher.load() is None
        assert counts["backend_poll_status"] > 2

    watched(scenario)


@pytest.mark.parametrize("spoil", [lambda backend: setattr(backend, "hang", True), lambda backend: setattr(backend, "status", 500)])
def test_an_engine_that_is_well_is_not_called_down_because_its_metrics_hang_or_fail(spoil: Callable[[Backend], None]) -> None:
    async def scenario(backend: Backend, watcher: Watcher, counts: Counter[str]) -> None:
        backend.well = 200
        spoil(backend)
        await until(lambda: watcher.load() is None)
        loop = asyncio.get_running_loop()
        end_s = loop.time() + 3 * STALE_S
        while loop.time() < end_s:
            assert watcher.alive, watcher.error
            await asyncio.sleep(0.01)
        assert watcher.load() is None and watcher.age_s > STALE_S  # well, and not idle
        assert counts["backend_poll_timeout"] + counts["backend_poll_status"] > 2 and counts["backend_poll_silent"] == 0
        backend.well = 503  # its engine has died behind the server
        await until(lambda: not watcher.alive)

    watched(scenario)


def test_who_asks_is_told_at_once_that_an_engine_is_gone_and_once_only() -> None:
    async def scenario(backend: Backend, watcher: Watcher, counts: Counter[str]) -> None:
        told: list[bool] = []
        watcher.turned = lambda: told.append(watcher.alive)
        backend.down()
        await until(lambda: counts["backend_poll_unreachable"] > 2)
        assert told == [False]
        await backend.up()
        await until(lambda: watcher.alive)
        backend.down()
        await until(lambda: len(told) == 2)

    watched(scenario)


def test_a_dead_engine_is_seen_at_once_and_a_revived_one_within_two_periods() -> None:
    async def scenario(backend: Backend, watcher: Watcher, counts: Counter[str]) -> None:
        backend.down()
        await until(lambda: counts["backend_poll_unreachable"] > 0)
        assert not watcher.alive and watcher.load() is None
        assert watcher.age_s <= STALE_S  # not for want of news: nobody is there
        await backend.up()
        loop = asyncio.get_running_loop()
        back_s = loop.time()
        await until(lambda: watcher.alive and watcher.load() is not None)
        assert loop.time() - back_s <= 2 * PERIOD_S + 0.1

    watched(scenario)


def test_a_failed_request_makes_the_watcher_look_at_once() -> None:
    async def scenario(backend: Backend, watcher: Watcher, counts: Counter[str]) -> None:
        slow = Watcher(watcher._client, f"http://127.0.0.1:{backend.port}", "vllm", Clock(), 60.0, 120.0, [], lambda event: None)
        watching = asyncio.create_task(slow.run())
        await until(lambda: slow.alive)
        backend.down()
        assert slow.alive
        slow.wake()
        await until(lambda: not slow.alive)
        watching.cancel()

    watched(scenario)


def test_an_engine_without_metrics_is_only_asked_whether_it_is_there() -> None:
    async def scenario(backend: Backend, watcher: Watcher, counts: Counter[str]) -> None:
        backend.status = 401
        await backend.polls(2)
        assert backend.paths == {"/v1/models"}
        assert watcher.alive and watcher.load() is None
        backend.down()
        await until(lambda: not watcher.alive)

    watched(scenario, kind="openai")
