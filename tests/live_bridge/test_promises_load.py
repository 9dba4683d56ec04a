"""R7: an engine whose metrics are gone is as busy as the node's own work makes it, never idle because nobody says otherwise."""

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from live_bridge.http.message import Request, Response
from tests.live_bridge.test_promises_cancel import asking, one_at_a_time, queued
from tests.live_bridge.towns import EVENTS, Engine, Town, silent, stream, town

AGE = "wwwserve_backend_metrics_age_seconds"
STALE_S = 0.6
OLD = "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:gpu_cache_usage_perc 0.0\n"


def said(running: object, waiting: object, usage: object = 0.0) -> Callable[[], str]:
    """What vLLM exports."""
    lines = (("num_requests_running", running), ("num_requests_waiting", waiting), ("kv_cache_usage_perc", usage))
    return lambda: "".join(f'vllm:{name}{{model_name="m"}} {value}\n' for name, value in lines)


def said_by_two(waiting: tuple[int, int]) -> Callable[[], str]:
    """What vLLM exports with two data-parallel engines."""
    names = ("num_requests_running", "kv_cache_usage_perc")
    zeros = [f'vllm:{name}{{engine="{k}"}} 0\n' for name in names for k in (0, 1)]
    return lambda: "".join([*zeros, *(f'vllm:num_requests_waiting{{engine="{k}"}} {count}\n' for k, count in enumerate(waiting))])


class Fault(NamedTuple):
    """How metrics fail."""

    status: int  # 0: no answer
    text: Callable[[], str]
    reason: str  # as it is counted


FAULTS = {
    "not there": Fault(404, said(0, 0), "status"),
    "renamed": Fault(200, lambda: said(0, 0)().replace("num_requests_waiting", "requests_waiting"), "missing"),
    "no number": Fault(200, said(0, "NaN"), "bad"),
    "below zero": Fault(200, said(-1, 0), "bad"),
    "of another kind": Fault(200, lambda: "<html>busy</html>", "missing"),
}
DEAF = {"failing": Fault(500, said(0, 0), "status"), "silent": Fault(0, said(0, 0), "timeout")}
"""As an engine that is down would answer: what tells the two apart is that tokens come."""


async def readings(place: Town, result: str) -> float:
    """How many readings have ended like this."""
    text = await place.get("/metrics")
    found = [line for line in text.splitlines() if line.startswith(f'wwwserve_backend_readings_total{{result="{result}"}}')]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


async def believed(place: Town, age: Callable[[float], bool]) -> None:
    """Wait until the latest reading is as old as that."""

    async def is_so() -> bool:
        return age(await place.metric(AGE))

    await place.until(is_so)


async def dripping(request: Request, response: Response) -> None:
    """Stream without an end."""
    response.start(200, EVENTS)
    while True:
        await response.write(b'data: {"choices":[{"index":0,"text":" t"}]}\n\n')
        await asyncio.sleep(0.02)


async def blinded(place: Town, engine: Engine, fault: Fault) -> None:
    """Let the metrics of a busy engine fail: its waiting work is not believed in for ever, and neither is it taken to be idle."""
    engine.metrics_status, engine.metrics = 200, said(0, 5)
    await believed(place, lambda age_s: age_s < STALE_S)
    tasks = [asking(place, 0)]
    await place.until(lambda: queued(place, 0, 1))
    failed = await readings(place, fault.reason)
    engine.metrics_status, engine.metrics = fault.status, fault.text
    await engine.until(lambda: engine.running == 1)
    await crowded(place, engine, tasks, fault, failed)


async def deafened(place: Town, engine: Engine, fault: Fault) -> None:
    """Let the metrics of an engine that talks answer as if it were down."""
    engine.metrics_status, engine.metrics = 200, said(0, 0)
    await believed(place, lambda age_s: age_s < STALE_S)
    tasks = [asking(place, 0)]
    await engine.until(lambda: engine.running == 1)
    failed = await readings(place, fault.reason)
    engine.metrics_status, engine.metrics = fault.status, fault.text
    await believed(place, lambda age_s: age_s > 2 * STALE_S)
    await crowded(place, engine, tasks, fault, failed)


async def crowded(place: Town, engine: Engine, tasks: list[asyncio.Task[Any]], fault: Fault, failed: float) -> None:
    """Send three more to a node whose engine runs one at a time: one runs, one waits in it, two wait here. Then all leave."""
    tasks += [asking(place, 0) for _ in range(3)]
    await place.until(lambda: queued(place, 0, 2))
    assert engine.running == 2
    await believed(place, lambda age_s: STALE_S < age_s < math.inf)
    assert await readings(place, fault.reason) > failed
    assert await place.metric("wwwserve_backend_up") == 1
    await all_leave(engine, tasks)


async def all_leave(engine: Engine, tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    for answer in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(answer, BaseException):
            answer.close()
    await engine.until(lambda: engine.running == 0)


def test_a_node_whose_engine_tells_nothing_goes_by_its_own_count(tmp_path: Path) -> None:
    backend: dict[str, Any] = {"metrics_s": 0.1, "stale_s": STALE_S}

    async def scene() -> None:
        async with Engine(silent) as engine:
            engine.metrics_status = 404
            async with town(tmp_path, [engine], profile=one_at_a_time(tmp_path), backend=backend) as place:
                assert math.isinf(await place.metric(AGE))  # there never was a reading
                tasks = [asking(place, 0) for _ in range(4)]
                await place.until(lambda: queued(place, 0, 2))
                assert engine.running == 2
                await all_leave(engine, tasks)
                for fault in FAULTS.values():
                    await blinded(place, engine, fault)
                engine.script = dripping
                for fault in DEAF.values():
                    await deafened(place, engine, fault)
                engine.metrics_status, engine.metrics, engine.script = 200, lambda: OLD, stream(2)
                assert (await place.ask(stream=True))[0] == 200
                await believed(place, lambda age_s: age_s < STALE_S)

    asyncio.run(scene())


def test_two_engines_behind_one_address_count_together(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Engine(silent) as engine:
            engine.metrics = said_by_two((0, 1))
            async with town(tmp_path, [engine], backend={"metrics_s": 0.1}) as place:
                task = asking(place, 0)
                await place.until(lambda: queued(place, 0, 1))
                assert engine.asked == []
                engine.metrics = said_by_two((0, 0))
                await engine.until(lambda: engine.running == 1)
                await all_leave(engine, [task])

    asyncio.run(scene())
