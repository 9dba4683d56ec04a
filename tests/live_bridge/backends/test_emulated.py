"""The emulated engine behind its API: forms, counts, refusals, streams, users who leave, and time as the rules say."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
import uvloop

from live_bridge.backends.emulated import Emulated
from live_bridge.backends.metrics import read
from live_bridge.clock import Clock
from live_bridge.config import profile_named
from live_bridge.http.client import Client
from live_bridge.http.message import Limits
from live_bridge.http.server import Server

PROFILE = profile_named("a100_qwen3_8b")
MODEL = "emulated-8b"


class Up:
    """An emulated engine that listens, and a client."""

    def __init__(self, emulated: Emulated, clock: Clock, url: str, client: Client) -> None:
        self.emulated, self.clock, self.url, self.client = emulated, clock, url, client

    async def post(self, path: str, **asked: Any) -> tuple[int, Any]:
        return await self.post_bytes(path, json.dumps(asked).encode())

    async def post_bytes(self, path: str, body: bytes, method: str = "POST") -> tuple[int, Any]:
        with await self.client.request(method, self.url + path, [(b"content-type", b"application/json")], body) as reply:
            raw = await reply.body(2**24)
            return reply.status, json.loads(raw) if raw else None

    async def stream(self, path: str, **asked: Any) -> list[Any]:
        """The events of a stream, and at its end None for [DONE]."""
        with await self.client.request("POST", self.url + path, [], json.dumps({**asked, "stream": True}).encode()) as reply:
            assert (reply.status, reply.header(b"content-type")) == (200, b"text/event-stream; charset=utf-8")
            text = b"".join([chunk async for chunk in reply]).decode()
        assert text.endswith("data: [DONE]\n\n")
        events = text[: -len("\n\n")].split("\n\n")
        assert all(event.startswith("data: ") for event in events)
        return [None if event == "data: [DONE]" else json.loads(event.removeprefix("data: ")) for event in events]

    async def get(self, path: str) -> bytes:
        with await self.client.request("GET", self.url + path) as reply:
            assert reply.status == 200
            return await reply.body(2**20)


@asynccontextmanager
async def up(speed: float = 100.0, **options: Any) -> AsyncIterator[Up]:
    clock = Clock(speed)
    emulated = Emulated(options.pop("profile", PROFILE), clock, MODEL, **options)
    counts: list[str] = []
    server, client = Server(emulated.handle, Limits(), counts.append), Client()
    port = await server.listen("127.0.0.1", 0)
    try:
        yield Up(emulated, clock, f"http://127.0.0.1:{port}", client)
        load = emulated.load()
        assert (load.running, load.waiting) == (0, 0)
        assert "handler_failed" not in counts
    finally:
        emulated.engine.close()
        server.close()
        await client.close()


def scenario(main: Callable[[Up], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20), up(**options) as engine:
            await main(engine)

    uvloop.run(bounded())


def test_a_completion_has_vllms_form() -> None:
    async def main(engine: Up) -> None:
        status, said = await engine.post("/v1/completions", model=MODEL, prompt="Hello there", max_tokens=5, ignore_eos=True)
        assert status == 200
        assert said["id"].startswith("cmpl-")
        assert (said["object"], said["model"]) == ("text_completion", MODEL)
        counts = {"prompt_tokens": 3, "total_tokens": 8, "completion_tokens": 5}
        assert said["usage"] == {**counts, "prompt_tokens_details": None, "completion_tokens_details": None}
        (choice,) = said["choices"]
        assert (choice["index"], choice["finish_reason"], choice["stop_reason"]) == (0, "length", None)
        assert len(choice["text"].split()) == 5

    scenario(main)


def test_a_chat_has_vllms_form() -> None:
    async def main(engine: Up) -> None:
        messages = [{"role": "system", "content": "abcd"}, {"role": "user", "content": [{"type": "text", "text": "efghi"}]}]
        asked = {"messages": messages, "max_completion_tokens": 4, "max_tokens": 9, "ignore_eos": True}
        status, said = await engine.post("/v1/chat/completions", **asked)
        assert status == 200
        assert (said["object"], said["usage"]["prompt_tokens"], said["usage"]["completion_tokens"]) == ("chat.completion", 3, 4)
        message = said["choices"][0]["message"]
        assert message["role"] == "assistant" and len(message["content"].split()) == 4

    scenario(main)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("interval", [1, 4])
def test_a_stream_says_what_the_whole_answer_says(path: str, interval: int) -> None:
    async def main(engine: Up) -> None:
        chat = "chat" in path
        asked: dict[str, Any] = {"max_tokens": 50, "ignore_eos": True, "n": 2}
        asked |= {"messages": [{"role": "user", "content": "x"}]} if chat else {"prompt": [7] * 40}
        *events, counted, done = await engine.stream(path, **asked, stream_options={"include_usage": True})
        assert done is None
        assert counted["choices"] == []
        prompt = 1 if chat else 40
        assert counted["usage"] == {"prompt_tokens": prompt, "total_tokens": prompt + 100, "completion_tokens": 100}
        assert {event["object"] for event in events} == {"chat.completion.chunk" if chat else "text_completion"}
        assert len({event["id"] for event in events}) == 1
        for index in range(2):
            mine = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
            if chat:
                assert mine.pop(0)["delta"] == {"role": "assistant", "content": ""}
            texts = [one["delta"]["content"] if chat else one["text"] for one in mine]
            assert [len(text.split()) for text in texts[:2]] == [1, 1] if interval == 1 else [1, 4]
            assert all(1 <= len(text.split()) <= interval for text in texts)
            assert len("".join(texts).split()) == 50
            assert [one["finish_reason"] for one in mine] == [None] * (len(mine) - 1) + ["length"]
            if interval == 1:
                assert len(mine) == 50

    scenario(main, stream_interval=interval)


def test_streamed_and_whole_answers_have_the_same_words() -> None:
    async def main(engine: Up) -> None:
        asked = {"prompt": "x", "max_tokens": 700, "ignore_eos": True}
        _, whole = await engine.post("/v1/completions", **asked)
        events = await engine.stream("/v1/completions", **asked)
        streamed = "".join(event["choices"][0]["text"] for event in events[:-1])
        assert len(whole["choices"][0]["text"].split()) == 700
        # each answer begins one word later than the one before
        assert whole["choices"][0]["text"].split()[1:-1] == streamed.split()[:-2]
        assert whole["choices"][0]["text"].split()[-1] == streamed.split()[-1] == "[quality=0.2800]"

    scenario(main)


def test_answers_end_by_themselves_at_seeded_lengths() -> None:
    lengths: list[list[int]] = []

    async def main(engine: Up) -> None:
        answers = [await engine.post("/v1/completions", prompt="x", max_tokens=200) for _ in range(40)]
        lengths.append([said["usage"]["completion_tokens"] for _, said in answers])
        for _, said in answers:
            tokens, reason = said["usage"]["completion_tokens"], said["choices"][0]["finish_reason"]
            assert 1 <= tokens <= 200
            assert reason == ("length" if tokens == 200 else "stop")

    for seed in (1, 1, 2):
        scenario(main, seed=seed, answer_tokens=60.0)
    assert lengths[0] == lengths[1] != lengths[2]
    assert 40 <= sum(lengths[0]) / 40 <= 80


def test_min_tokens_is_kept() -> None:
    async def main(engine: Up) -> None:
        for _ in range(20):
            _, said = await engine.post("/v1/completions", prompt="x", max_tokens=80, min_tokens=70)
            assert 70 <= said["usage"]["completion_tokens"] <= 80

    scenario(main, answer_tokens=10.0)


def test_prompts_are_measured_in_tokens_or_in_bytes_by_four() -> None:
    async def main(engine: Up) -> None:
        for prompt, tokens in (([1, 2, 3], 3), ("", 1), ("abcde", 2), ("äöü", 2), (["abcd", "abcdefgh"], 3), ([[1, 2], [3]], 3)):
            _, said = await engine.post("/v1/completions", prompt=prompt, max_tokens=1, ignore_eos=True)
            assert said["usage"]["prompt_tokens"] == tokens, prompt
            assert len(said["choices"]) == (2 if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1)

    scenario(main)


@pytest.mark.parametrize(
    ("change", "status", "param", "text"),
    [
        ({"model": "other"}, 404, "model", "The model `other` does not exist."),
        ({"model": 3}, 400, "model", "model must be text"),
        ({"prompt": None}, 400, "prompt", "prompt must be text"),
        ({"prompt": []}, 400, "prompt", "not empty"),
        ({"prompt": [1, "a"]}, 400, "prompt", "list of token ids"),
        ({"prompt": [True]}, 400, "prompt", "list of token ids"),
        ({"max_tokens": 0}, 400, "max_tokens", "at least 1, got 0"),
        ({"max_tokens": "5"}, 400, "max_tokens", "whole number"),
        ({"max_tokens": True}, 400, "max_tokens", "whole number"),
        ({"max_tokens": 10**9}, 400, "max_tokens", "maximum context length is 400000 tokens"),
        ({"min_tokens": 17}, 400, "min_tokens", "at most max_tokens=16, got 17"),
        ({"n": 0}, 400, "n", "at least 1"),
        ({"n": 1000}, 400, "n", "at most 128"),
        ({"stream": 1}, 400, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", "only with stream"),
        ({"logprobs": 0}, 400, "logprobs", "not emulated"),
        ({"echo": True}, 400, "echo", "not emulated"),
    ],
)
def test_what_cannot_be_answered_is_refused_as_vllm_refuses(change: dict[str, Any], status: int, param: str, text: str) -> None:
    async def main(engine: Up) -> None:
        got, said = await engine.post("/v1/completions", **{"prompt": "x", **change})
        assert got == status
        assert set(said) == {"error"}
        assert (said["error"]["code"], said["error"]["param"]) == (status, param)
        assert said["error"]["type"] == {400: "BadRequestError", 404: "NotFoundError"}[status]
        assert text in said["error"]["message"]

    scenario(main, profile=PROFILE)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (None, "list of messages"),
        ([], "not empty"),
        (["hi"], "object with a role"),
        ([{"content": "x"}], "with a role"),
        ([{"role": "user", "content": 5}], "text or a list"),
    ],
)
def test_a_chat_without_proper_messages_is_refused(messages: Any, text: str) -> None:
    async def main(engine: Up) -> None:
        status, said = await engine.post("/v1/chat/completions", messages=messages)
        assert (status, text in said["error"]["message"]) == (400, True)

    scenario(main)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"null", b'"x"', b"\xff", b"[" * 5000, b'{"prompt": NaN}'])
def test_a_body_that_is_no_json_object_is_a_400(body: bytes) -> None:
    async def main(engine: Up) -> None:
        status, said = await engine.post_bytes("/v1/completions", body)
        assert (status, said["error"]["code"]) == (400, 400)

    scenario(main)


def test_unknown_paths_and_methods_are_refused() -> None:
    async def main(engine: Up) -> None:
        assert (await engine.post_bytes("/v1/embeddings", b"{}"))[0] == 404
        status, said = await engine.post_bytes("/v1/completions", b"", method="GET")
        assert (status, said["error"]["type"]) == (405, "MethodNotAllowedError")

    scenario(main)


def test_models_health_and_metrics_answer() -> None:
    async def main(engine: Up) -> None:
        card = json.loads(await engine.get("/v1/models"))["data"][0]
        assert (card["id"], card["max_model_len"]) == (MODEL, 16 * PROFILE.kv_blocks)
        assert await engine.get("/health") == b""
        await engine.post("/v1/completions", prompt=[1] * 30, max_tokens=20, ignore_eos=True)
        text = (await engine.get("/metrics")).decode()
        assert f'num_gpu_blocks="{PROFILE.kv_blocks}"' in text
        figures = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if not line.startswith("#")}
        assert figures["vllm:prompt_tokens_total"] == 30
        assert figures["vllm:generation_tokens_total"] == 20
        assert figures["vllm:e2e_request_latency_seconds_count"] == 1
        alone_s = PROFILE.h_s + 20 * PROFILE.a_s
        assert figures["vllm:e2e_request_latency_seconds_sum"] == pytest.approx(alone_s, rel=0.05)

    scenario(main)


def test_metrics_are_those_that_a_node_reads_from_vllm() -> None:
    async def main(engine: Up) -> None:
        asked = {"prompt": [1] * 1000, "max_tokens": 3000, "ignore_eos": True}
        under_way = [asyncio.ensure_future(engine.post("/v1/completions", **asked)) for _ in range(3)]
        while engine.emulated.load().running < 3:
            await asyncio.sleep(0.001)
        load = read((await engine.get("/metrics")).decode(), "vllm", engine.url, 0.0)
        assert (load.running, load.waiting, load.kv_blocks) == (3, 0, PROFILE.kv_blocks)
        assert 3 * 63 / PROFILE.kv_blocks <= load.usage < 3 * 250 / PROFILE.kv_blocks
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        while engine.emulated.load().running:
            await asyncio.sleep(0.001)

    scenario(main, speed=10.0)


@pytest.mark.parametrize("stream", [True, False])
def test_when_the_user_leaves_the_engine_drops_the_work(stream: bool) -> None:
    async def main(engine: Up) -> None:
        body = json.dumps({"prompt": "x", "max_tokens": 100_000, "ignore_eos": True, "stream": stream}).encode()

        async def ask() -> None:
            with await engine.client.request("POST", f"{engine.url}/v1/completions", [], body) as reply:
                async for _ in reply:
                    pass

        task = asyncio.ensure_future(ask())
        while engine.emulated.load().running == 0:
            await asyncio.sleep(0.001)
        left_s = asyncio.get_running_loop().time()
        task.cancel()
        while engine.emulated.load().running:
            await asyncio.sleep(0.001)
        assert asyncio.get_running_loop().time() - left_s < 0.1
        assert engine.emulated.engine.totals.aborted == 1

    scenario(main, speed=1.0)


def test_an_unmodified_openai_client_is_served() -> None:
    async def main(engine: Up) -> None:
        async with openai.AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0) as client:
            assert [model.id async for model in client.models.list()] == [MODEL]
            messages: Any = [{"role": "user", "content": "Hello"}]
            chat = await client.chat.completions.create(model=MODEL, messages=messages, max_tokens=6)
            assert chat.usage is not None and 1 <= chat.usage.completion_tokens <= 6
            stream = await client.chat.completions.create(
                model=MODEL, messages=messages, max_tokens=6, stream=True, extra_body={"ignore_eos": True}
            )
            words = [chunk.choices[0].delta.content async for chunk in stream]
            assert len("".join(word or "" for word in words).split()) == 6
            done = await client.completions.create(model=MODEL, prompt="x", max_tokens=3, n=2, extra_body={"ignore_eos": True})
            assert [len(choice.text.split()) for choice in done.choices] == [3, 3]
            with pytest.raises(openai.BadRequestError, match="at least 1"):
                await client.completions.create(model=MODEL, prompt="x", max_tokens=0)
            with pytest.raises(openai.NotFoundError, match="does not exist"):
                await client.completions.create(model="other", prompt="x")

    scenario(main)


def test_latencies_over_sockets_are_those_of_the_rules() -> None:
    async def main(engine: Up) -> None:
        late = []

        async def one(at_s: float, prompt: int, output: int) -> None:
            await engine.clock.sleep(at_s - engine.clock.now())
            await engine.post("/v1/completions", prompt=[1] * prompt, max_tokens=output, ignore_eos=True)
            late.append(engine.clock.now())

        jobs: list[Any] = []
        submit = engine.emulated.engine.submit

        def noted(*args: Any, **kwargs: Any) -> Any:
            ticket = submit(*args, **kwargs)
            jobs.append(ticket.jobs[0])
            return ticket

        engine.emulated.engine.submit = noted  # type: ignore[method-assign]
        await asyncio.gather(*(one(0.13 * i, 50 + 37 * i % 400, 20 + 53 * i % 150) for i in range(60)))
        ends = sorted(job.finish_s for job in jobs)
        lags_ms = sorted((told - end) / engine.clock.speed * 1e3 for told, end in zip(late, ends, strict=True))
        assert lags_ms[0] > -1.0
        assert lags_ms[30] < 5.0

    scenario(main, speed=10.0)


def test_model_names_are_escaped_in_metrics() -> None:
    async def main() -> None:
        emulated = Emulated(PROFILE, Clock(), 'odd "name"\\')
        text = {}

        class Kept:
            def send(self, status: int, headers: Any, body: bytes) -> None:
                text["body"] = body.decode()

        await emulated._metrics(None, Kept())  # type: ignore[arg-type]
        assert r'model_name="odd \"name\"\\"' in text["body"]
        assert read(text["body"], "vllm", "x", 0.0).running == 0
        assert math.isclose(emulated.load().usage, 0.0)

    asyncio.run(main())
