"""Users ask when they are due and not when they are answered, and whatever becomes of a request is an outcome."""

import asyncio
import math
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from live_bridge.clock import Clock
from live_bridge.episode import FAILED, FINISHED, UNFINISHED, Ask
from live_bridge.http.client import Client
from live_bridge.load import Load, Outcome, Stream, Target, body_of, repeated
from tests.live_bridge.stub_engine import SSE, Script, StubEngine, event, usage, whole


def ask(arrival_s: float = 0.0, provider: int = 0, tokens: int = 3) -> Ask:
    return Ask(arrival_s, provider, 4, tokens, 7, 10.0)


def play(
    script: Script, asks: Sequence[Ask], *, speed: float = 1.0, until_s: float = math.inf, look: Callable[..., Any] | None = None
) -> tuple[list[Outcome], StubEngine]:
    async def main() -> tuple[list[Outcome], StubEngine]:
        async with StubEngine(script) as engine:
            client = Client()
            load = Load([Target(engine.url, "m")] * 2, client, Clock(speed))
            try:
                found = await load.play(asks, until_s)
                if look is not None:
                    await look(engine, load)
            finally:
                await client.close()
            return found, engine

    return uvloop.run(main())


def test_a_whole_answer_is_finished_with_its_tokens_and_executor() -> None:
    (found,), engine = play(whole, [ask()])
    assert found.status == FINISHED and found.tokens == 3 and found.executor == "ab12" and found.why == ""
    assert 0.0 < found.ttft_s <= found.latency_s < 1.0
    _, body, forecast = engine.asked[0]
    assert forecast == b"7" and len(body["prompt"]) == 4 and body["stream"] is True
    assert body["max_tokens"] == body["min_tokens"] == 3 and body["ignore_eos"] is True


def test_requests_leave_when_due_though_nobody_answers() -> None:
    opened = asyncio.Event()

    async def never(body: dict[str, Any], response: Any) -> None:
        await opened.wait()

    due = [0.1 * k for k in range(8)]
    found, engine = play(never, [ask(t) for t in due], until_s=1.2)
    gaps = [came - engine.asked[0][0] for came, _, _ in engine.asked]
    assert len(gaps) == 8 and all(abs(gap - t) < 0.25 for gap, t in zip(gaps, due, strict=True))
    assert [one.status for one in found] == [UNFINISHED] * 8


def test_all_times_are_market_seconds() -> None:
    async def slow(body: dict[str, Any], response: Any) -> None:
        await asyncio.sleep(0.1)
        await whole(body, response)

    (first, second), engine = play(slow, [ask(0.0), ask(10.0)], speed=50.0)
    assert 0.1 < engine.asked[1][0] - engine.asked[0][0] < 1.0
    assert 5.0 <= first.latency_s < 50.0 and 5.0 <= second.latency_s < 50.0


def test_latency_counts_from_when_a_request_was_due_and_not_from_when_it_could_be_sent() -> None:
    async def main() -> Outcome:
        async with StubEngine() as engine:
            client = Client()
            load = Load([Target(engine.url, "m")], client, Clock())
            playing = asyncio.create_task(load.play([ask(0.05)], math.inf))
            await asyncio.sleep(0.01)
            spin = asyncio.get_running_loop().time() + 0.3
            while asyncio.get_running_loop().time() < spin:
                pass  # this process is too busy to send
            (found,) = await playing
            assert load.punctuality.max_ms > 200
            await client.close()
            return found

    found = uvloop.run(main())
    assert found.late_s > 0.2 and found.latency_s > found.late_s


def test_the_first_token_is_noted_before_the_last() -> None:
    async def paced(body: dict[str, Any], response: Any) -> None:
        response.start(200, SSE)
        await asyncio.sleep(0.1)
        await response.write(event())
        await asyncio.sleep(0.2)
        await response.write(event() * 2 + usage(3) + b"data: [DONE]\n\n")
        response.end()

    (found,), _ = play(paced, [ask()])
    assert 0.1 <= found.ttft_s <= found.latency_s - 0.15


async def refuse(body: dict[str, Any], response: Any) -> None:
    response.send(503, [(b"retry-after", b"1")], b'{"error": {"message": "nobody is there"}}')


async def cut(body: dict[str, Any], response: Any) -> None:
    response.start(200, SSE)
    await response.write(event())
    response.abort()


async def unfinished(body: dict[str, Any], response: Any) -> None:
    response.start(200, SSE)
    await response.write(event())
    response.end()


async def short(body: dict[str, Any], response: Any) -> None:
    response.start(200, SSE)
    await response.write(event() * 2 + usage(2) + b"data: [DONE]\n\n")
    response.end()


async def broken(body: dict[str, Any], response: Any) -> None:
    response.start(200, SSE)
    await response.write(event() + b'event: error\ndata: {"error": {"code": "executor_failed", "tokens": 1}}\n\n')
    response.end()


@pytest.mark.parametrize(
    ("script", "why", "token"),
    [
        (refuse, 'status 503: {"error": {"message": "nobody is there"}}', False),
        (cut, "Broken: ", True),
        (unfinished, "the stream ended without [DONE]", True),
        (short, "the answer has 2 tokens, 3 were asked for", True),
        (broken, 'the stream ended with an error: {"error": {"code": "executor_failed", "tokens": 1}}', True),
    ],
)
def test_no_failure_is_dropped(script: Script, why: str, token: bool) -> None:
    found, _ = play(script, [ask(), ask(0.01)])
    for one in found:
        assert one.status == FAILED and math.isinf(one.latency_s) and one.why.startswith(why), one
        assert math.isfinite(one.ttft_s) == token


def test_a_provider_that_is_not_there_fails_its_own_requests_alone() -> None:
    async def main() -> list[Outcome]:
        async with StubEngine() as engine:
            client = Client()
            done: list[Outcome] = []
            load = Load([Target(engine.url, "m"), Target("http://127.0.0.1:1", "m")], client, Clock(), done.append)
            found = await load.play([ask(0.0, 1), ask(0.0, 0), ask(0.0, 1)], math.inf)
            await client.close()
            assert sorted(map(str, done)) == sorted(map(str, found))
            return found

    found = uvloop.run(main())
    assert [one.status for one in found] == [FAILED, FINISHED, FAILED]
    assert found[0].why.startswith("ConnectFailed") and found[0].http_status == 0


def test_at_the_end_the_engine_sees_that_users_leave() -> None:
    async def endless(body: dict[str, Any], response: Any) -> None:
        response.start(200, SSE)
        while True:
            await response.write(event())
            await asyncio.sleep(0.02)

    async def until_left(engine: StubEngine, load: Load) -> None:
        async with asyncio.timeout(2.0):
            while engine.left < 3:
                await asyncio.sleep(0.01)

    found, _ = play(endless, [ask(0.0), ask(0.01), ask(0.02)], until_s=0.3, look=until_left)
    assert [one.status for one in found] == [UNFINISHED] * 3
    assert all(math.isfinite(one.ttft_s) and math.isinf(one.latency_s) for one in found)


def test_what_is_known_when_the_load_is_called_off_stays_known() -> None:
    async def main() -> list[Outcome]:
        async with StubEngine() as engine:
            client, first = Client(), asyncio.Event()
            load = Load([Target(engine.url, "m")], client, Clock(), lambda _: first.set())
            playing = asyncio.create_task(load.play([ask(0.0), ask(60.0)], math.inf))
            await first.wait()
            playing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await playing
            await client.close()
            return load.outcomes

    assert [one.status for one in uvloop.run(main())] == [FINISHED]


@given(st.lists(st.integers(1, 400), max_size=12), st.integers(1, 30), st.booleans())
def test_a_stream_reads_the_same_however_it_is_cut(cuts: list[int], tokens: int, carriage: bool) -> None:
    raw = event() * tokens + usage(tokens) + b"data: [DONE]\n\n"
    raw = raw.replace(b"\n", b"\r\n") if carriage else raw
    stream, at = Stream(), 0
    for size in [*cuts, len(raw)]:
        stream.feed(raw[at : at + size])
        at += size
    assert (stream.begun, stream.done, stream.tokens, stream.error) == (True, True, tokens, "")


def test_an_error_before_any_token_is_no_first_token() -> None:
    stream = Stream()
    stream.feed(b'data: {"error": {"message": "no"}}\n\n')
    assert not stream.begun and stream.error == '{"error": {"message": "no"}}'


def test_a_comment_is_no_token_and_half_an_event_neither() -> None:
    stream = Stream()
    stream.feed(b": waiting\n\n")
    assert not stream.begun
    stream.feed(b'data: {"choices": [{"text": "')
    assert not stream.begun
    stream.feed(b' a"}]}\n\n')
    assert stream.begun


def test_an_endless_stream_takes_no_more_memory_than_a_short_one() -> None:
    stream, chunk = Stream(), event() * 50
    stream.feed(chunk)
    tracemalloc.start()
    for _ in range(2000):
        stream.feed(chunk)
    assert tracemalloc.get_traced_memory()[0] < 50_000
    tracemalloc.stop()
    assert not stream.done


def test_no_two_prompts_are_alike_and_each_is_the_same_next_time() -> None:
    bodies = [body_of(ask(), "m", number) for number in range(200)]
    assert len(set(bodies)) == 200 and bodies[7] == body_of(ask(), "m", 7)


def test_a_repeated_demand_goes_on_a_period_later() -> None:
    asks = [ask(1.0), ask(4.0)]
    assert [one.arrival_s for one in islice(repeated(asks, 10.0), 5)] == [1.0, 4.0, 11.0, 14.0, 21.0]
    assert list(repeated([], 10.0)) == []


def test_a_fault_of_the_generator_itself_is_not_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fault(self: Load, *args: Any) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(Load, "_listen", fault)
    with pytest.raises(ExceptionGroup) as caught:
        play(whole, [ask()])
    assert caught.group_contains(ZeroDivisionError)
