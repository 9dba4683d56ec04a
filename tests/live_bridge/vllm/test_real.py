"""An unmodified openai client and a real vLLM, by itself and behind a node (promise V2); what it exports, read (R7)."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from live_bridge.backends.emulated import Emulated
from live_bridge.backends.metrics import Load, MissingMetricError, read
from live_bridge.clock import Clock
from live_bridge.config import profile_named
from live_bridge.http.client import Client
from live_bridge.http.message import Limits
from live_bridge.http.server import Server

pytestmark = pytest.mark.live
MESSAGES: Any = [{"role": "user", "content": "Tell me about markets."}]
GREEDY: dict[str, Any] = {"temperature": 0.0, "seed": 1}
LONG = {"ignore_eos": True}


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def fetched(url: str, path: str, asked: dict[str, Any] | bytes | None) -> tuple[int, str, bytes]:
    """Status, content type and body of an answer, as bytes."""

    async def main() -> tuple[int, str, bytes]:
        client = Client()
        body = asked if isinstance(asked, bytes) else b"" if asked is None else json.dumps(asked).encode()
        headers = [(b"content-type", b"application/json")]
        with await client.request("GET" if asked is None else "POST", url + path, headers, body) as reply:
            kind = (reply.header(b"content-type") or b"").decode()
            out = reply.status, kind, await reply.body(2**24)
        await client.close()
        return out

    return asyncio.run(main())


def load_of(url: str) -> Load:
    return read(fetched(url, "/metrics", None)[2].decode(), "vllm", f"{url}/metrics", 0.0)


def until(true: Callable[[], bool], seconds: float) -> float:
    begun_s = time.monotonic()
    while not true():
        assert time.monotonic() - begun_s < seconds
        time.sleep(0.02)
    return time.monotonic() - begun_s


def plain(body: bytes) -> bytes:
    """An answer without what differs from one request to the next: id and time."""
    return re.sub(rb'"created":\d+', b'"created":0', re.sub(rb'"id":"(chat)?cmpl-[^"]*"', b'"id":""', body))


# -- what clients do


def test_models_are_listed(served: str) -> None:
    with client_of(served) as client:
        assert "m" in [model.id for model in client.models.list()]


def test_answers_come_whole(served: str) -> None:
    with client_of(served) as client:
        chat = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=7, extra_body=LONG)
        assert chat.usage is not None and chat.usage.completion_tokens == 7
        assert chat.choices[0].finish_reason == "length" and chat.choices[0].message.role == "assistant"
        done = client.completions.create(model="m", prompt="a market", max_tokens=5, extra_body=LONG)
        assert done.usage is not None and done.usage.completion_tokens == 5


def test_answers_are_streamed(served: str) -> None:
    with client_of(served) as client:
        stream = client.chat.completions.create(
            model="m", messages=MESSAGES, max_tokens=20, stream=True, stream_options={"include_usage": True}, extra_body=LONG
        )
        chunks = list(stream)
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 20
        assert chunks[-2].choices[0].finish_reason == "length"
        assert len(chunks) >= 5


def test_several_choices_are_kept_apart(served: str) -> None:
    with client_of(served) as client:
        chat = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=6, n=3, temperature=1.0, extra_body=LONG)
        assert [choice.index for choice in chat.choices] == [0, 1, 2]
        assert len({choice.message.content for choice in chat.choices}) == 3
        stream = client.completions.create(model="m", prompt="x", max_tokens=6, n=2, stream=True, extra_body=LONG)
        assert {choice.index for chunk in stream for choice in chunk.choices} == {0, 1}


def test_probabilities_of_tokens_come_through(served: str) -> None:
    with client_of(served) as client:
        chat = client.chat.completions.create(
            model="m", messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=3, extra_body=LONG
        )
        content = chat.choices[0].logprobs.content if chat.choices[0].logprobs else None
        assert content is not None and len(content) == 4
        assert all(len(token.top_logprobs) == 3 and token.logprob <= 0.0 for token in content)
        done = client.completions.create(model="m", prompt="x", max_tokens=3, logprobs=2, extra_body=LONG)
        assert done.choices[0].logprobs is not None and len(done.choices[0].logprobs.token_logprobs or []) == 3


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_the_engine(served: str, direct: str, stream: bool) -> None:
    async def leave() -> None:
        async with openai.AsyncOpenAI(base_url=f"{served}/v1", api_key="none", max_retries=0) as client:
            # a minute and more, so that an engine that is free within seconds was told
            asking = client.completions.create(model="m", prompt="x", max_tokens=30_000, stream=stream, extra_body=LONG)
            task = asyncio.ensure_future(asking)
            if stream:
                got: Any = await task
                async for _ in got:
                    break
                await got.close()
            else:
                while (await asyncio.to_thread(load_of, direct)).running == 0:
                    assert not task.done()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    asyncio.run(leave())
    assert until(lambda: load_of(direct).running == 0, 5.0) < 5.0


# -- nothing is changed on the way


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", {"model": "m", "prompt": "one two", "max_tokens": 12, **GREEDY, **LONG}),
        ("/v1/completions", {"model": "m", "prompt": [5, 6, 7], "max_tokens": 8, "logprobs": 2, **GREEDY, **LONG}),
        ("/v1/chat/completions", {"model": "m", "messages": MESSAGES, "max_tokens": 12, **GREEDY, **LONG}),
        ("/v1/chat/completions", {"model": "m", "messages": MESSAGES, "max_tokens": 6, "n": 2, "logprobs": True, **GREEDY, **LONG}),
        ("/v1/completions", {"model": "m", "prompt": "x", "max_tokens": 99999}),
        ("/v1/completions", {"model": "m", "prompt": "x", "temperature": -1}),
        ("/v1/chat/completions", {"model": "m", "messages": []}),
    ],
)
def test_an_answer_through_a_node_is_the_engines(direct: str, node: str, path: str, asked: dict[str, Any]) -> None:
    status, kind, body = fetched(direct, path, asked)
    through = fetched(node, path, asked)
    assert through[:2] == (status, kind)
    assert plain(through[2]) == plain(body)


@pytest.mark.parametrize(("more", "expected"), [({}, 400), ({"echo": True}, 200)])
def test_whether_no_token_may_be_asked_for_is_the_engines_to_say(
    direct: str, node: str, more: dict[str, Any], expected: int
) -> None:
    asked = {"model": "m", "prompt": "x", "max_tokens": 0, **more}
    (status, kind, body), (own_status, own_kind, own_body) = (fetched(url, "/v1/completions", asked) for url in (direct, node))
    assert (own_status, own_kind) == (status, kind) == (expected, "application/json")
    assert set(json.loads(own_body)) == set(json.loads(body))


def test_a_stream_through_a_node_says_the_same_events(direct: str, node: str) -> None:
    asked = {"model": "m", "prompt": "one two three", "max_tokens": 40, "stream": True, **GREEDY, **LONG}

    def text(url: str) -> str:
        status, kind, body = fetched(url, "/v1/completions", asked)
        assert (status, kind) == (200, "text/event-stream; charset=utf-8")
        events = plain(body).decode().removesuffix("\n\n").split("\n\n")
        assert events.pop() == "data: [DONE]"
        # how many tokens share an event is up to the moment; what they say is not
        return "".join(json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events)

    assert text(direct) == text(node)


# -- what an engine tells


def test_a_real_engines_load_is_read(direct: str) -> None:
    idle = load_of(direct)
    assert (idle.running, idle.waiting, idle.source) == (0, 0, "metrics")
    assert idle.kv_blocks is not None and idle.kv_blocks > 1000

    async def busy() -> Load:
        async with openai.AsyncOpenAI(base_url=f"{direct}/v1", api_key="none", max_retries=0) as client:
            asks = [client.completions.create(model="m", prompt="x", max_tokens=1500, extra_body=LONG) for _ in range(12)]
            tasks = [asyncio.ensure_future(ask) for ask in asks]
            while (load := await asyncio.to_thread(load_of, direct)).running < 8:
                await asyncio.sleep(0.02)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return load

    load = asyncio.run(busy())
    assert load.running == 8 and load.waiting == 4
    assert 0.0 < load.usage < 1.0
    until(lambda: load_of(direct).running == 0, 10.0)


def test_the_kept_exposition_is_still_what_engines_say(direct: str) -> None:
    kept = (Path(__file__).parent / "metrics_0_32.txt").read_text(encoding="utf-8")
    said = fetched(direct, "/metrics", None)[2].decode()

    def names(text: str) -> set[str]:
        return {line.split("{")[0] for line in text.splitlines() if line.startswith("vllm:") and "_bucket" not in line}

    assert {name for name in names(kept) if "_created" not in name} <= names(said)
    assert read(kept, "vllm", "kept", 0.0).kv_blocks == 8192 * 128 // 16
    with pytest.raises(MissingMetricError, match=f"{direct}/metrics has no sglang"):
        read(said, "sglang", f"{direct}/metrics", 0.0)


# -- the emulated engine says it in the same form


def shape(value: Any) -> Any:
    """Keys and types of a document, without its values; what is absent counts as told."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_the_emulated_engine_answers_in_the_form_of_the_real_one(direct: str, path: str, stream: bool) -> None:
    asked: dict[str, Any] = {"model": "m", "max_tokens": 4, "stream": stream, **LONG}
    asked |= {"messages": MESSAGES} if "chat" in path else {"prompt": "one two"}
    if stream:
        asked["stream_options"] = {"include_usage": True}

    async def emulated() -> tuple[int, str, bytes]:
        engine = Emulated(profile_named("cpu_tiny"), Clock(), "m")
        server = Server(engine.handle, Limits(), lambda event: None)
        url = f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}"
        try:
            return await asyncio.to_thread(fetched, url, path, asked)
        finally:
            engine.engine.close()
            server.close()

    real, mine = fetched(direct, path, asked), asyncio.run(emulated())
    assert mine[:2] == real[:2]
    if not stream:
        assert without_names(shape(json.loads(mine[2]))) == without_names(shape(json.loads(real[2])))
        return
    events = [
        [json.loads(part[6:]) for part in body.decode().split("\n\n") if part.startswith("data: {")] for body in (mine[2], real[2])
    ]
    for place in (0, -2, -1):
        assert without_names(shape(events[0][place])) == without_names(shape(events[1][place]))


def without_names(document: dict[str, Any]) -> dict[str, Any]:
    """Leave out the build's fingerprint and what repeats the prompt: an emulated engine has neither."""
    return {key: value for key, value in document.items() if key not in {"system_fingerprint", "prompt_token_ids", "prompt_text"}}
