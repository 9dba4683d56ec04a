"""The `openai` Python client, as users have it, gets from a node what it gets from the engine itself, over one hop and two."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from live_bridge.http.message import Request, Response
from tests.live_bridge.towns import (
    ALWAYS,
    EVENTS,
    JSON,
    NEVER,
    PATIENCE_S,
    Engine,
    broken_off,
    silent,
    status,
    steady,
    stream,
    town,
)

MESSAGES = [{"role": "system", "content": "Kurz."}, {"role": "user", "content": [{"type": "text", "text": "Wie heißt du? 🙂"}]}]
PARAMETERS = {"type": "object", "properties": {"q": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": PARAMETERS}}]
TOKENS = ("Ich", " heiße", " Ωλ🙂", "")
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, "prompt_tokens_details": None}


def logprob(token: str) -> dict[str, Any]:
    """Of a token of a chat, beside that of another."""
    top = [{"token": token, "logprob": -0.25, "bytes": list(token.encode())}, {"token": " x", "logprob": -7.5, "bytes": None}]
    return top[0] | {"top_logprobs": top}


def chat_choice(asked: dict[str, Any], tokens: tuple[str, ...], part: bool) -> dict[str, Any]:
    """What a choice of a chat says."""
    said: dict[str, Any] = {"role": "assistant", "content": "".join(tokens)}
    if "tools" in asked:
        said["tool_calls"] = [{"index": 0, "id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"q":"Ω'}}]
    logprobs = {"content": [logprob(token) for token in tokens], "refusal": None} if asked.get("logprobs") else None
    return {"delta" if part else "message": said, "logprobs": logprobs}


def text_choice(asked: dict[str, Any], tokens: tuple[str, ...]) -> dict[str, Any]:
    """What a choice of a completion says."""
    lists = {
        "tokens": list(tokens),
        "token_logprobs": [-0.25] * len(tokens),
        "top_logprobs": None,
        "text_offset": [0] * len(tokens),
    }
    return {"text": "".join(tokens), "logprobs": lists if asked.get("logprobs") else None}


async def as_vllm(request: Request, response: Response) -> None:
    """Answer a chat or a completion, whole or streamed, with all that was asked for, and say what was asked."""
    asked, chat = json.loads(request.body), request.path.endswith("chat/completions")
    head = {
        "id": "cmpl-7",
        "created": 1_790_000_000,
        "model": asked["model"],
        "object": "chat.completion" if chat else "text_completion",
    }

    def answer(tokens: tuple[str, ...], numbers: range, part: bool) -> dict[str, Any]:
        said = chat_choice(asked, tokens, part) if chat else text_choice(asked, tokens)
        choices = [{"index": k, "finish_reason": None if part and tokens[0] else "stop"} | said for k in numbers]
        return head | {"choices": choices, "kv_transfer_params": None, "asked": asked}

    numbers = range(asked.get("n") or 1)
    if not asked.get("stream"):
        more = [(b"x-request-id", b"of-the-engine"), (b"x-odd", b"\xe9")]
        response.send(200, JSON + more, json.dumps(answer(TOKENS, numbers, part=False) | {"usage": USAGE}).encode())
        return
    head["object"] = "chat.completion.chunk" if chat else "text_completion"
    events = [answer((token,), range(k, k + 1), part=True) for token in TOKENS for k in numbers]
    if asked.get("stream_options"):
        events.append(head | {"choices": [], "usage": USAGE})
    response.start(200, EVENTS)
    for event in events:
        await response.write(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    response.end()


class Ask(NamedTuple):
    """What a user asks for."""

    chat: bool
    fields: dict[str, Any]


EXTRA = {"extra_body": {"top_k": 5, "ignore_eos": True, "guided": {"x": [1.5, None]}}, "seed": 7, "temperature": 0.0}
WHOLE = [
    Ask(True, {}),
    Ask(True, {"logprobs": True, "top_logprobs": 2}),
    Ask(True, {"n": 3, "logprobs": True}),
    Ask(True, {"tools": TOOLS, "tool_choice": "auto"} | EXTRA),
    Ask(False, {}),
    Ask(False, {"logprobs": 1, "n": 2}),
    Ask(False, {"prompt": [5, 6, 7]} | EXTRA),
]
ASKS = [
    Ask(ask.chat, ask.fields | more)
    for ask in WHOLE
    for more in ({}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}})
]


def user_of(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-secret", max_retries=0, timeout=PATIENCE_S)


async def begin(user: AsyncOpenAI, ask: Ask) -> Any:
    """Ask, as the client's documentation has it."""
    if ask.chat:
        return await user.chat.completions.create(**{"model": "stub", "messages": MESSAGES, "max_tokens": 8} | ask.fields)
    return await user.completions.create(**{"model": "stub", "prompt": "Es war", "max_tokens": 8} | ask.fields)


async def told(user: AsyncOpenAI, ask: Ask) -> list[Any]:
    """All that the client makes of the answer."""
    answer = await begin(user, ask)
    if isinstance(answer, openai.AsyncStream):
        return [event.model_dump() async for event in answer]
    return [answer.model_dump()]


def check_that_all_was_told(ask: Ask, answers: list[Any]) -> None:
    """See that the scripted engine has given what was asked for, so that equal answers are not equally empty."""
    pieces = [choice for answer in answers for choice in answer["choices"]]
    said = [choice.get("text") or (choice.get("message") or choice.get("delta") or {}).get("content") or "" for choice in pieces]
    wanted = ask.fields.get("n", 1)
    assert "".join(said) == "".join(TOKENS) * wanted or Counter("".join(said)) == Counter("".join(TOKENS) * wanted)
    assert {choice["index"] for choice in pieces} == set(range(wanted))
    assert all(bool(choice["logprobs"]) == bool(ask.fields.get("logprobs")) for choice in pieces)
    if "tools" in ask.fields:
        assert "look_up" in str(pieces)
    sent = answers[0]["asked"]
    assert {key: sent[key] for key in ask.fields if key != "extra_body"} == {
        k: v for k, v in ask.fields.items() if k != "extra_body"
    }
    assert sent.items() >= ask.fields.get("extra_body", {}).items()
    assert bool(answers[-1].get("usage")) == ("stream_options" in ask.fields or "stream" not in ask.fields)


def test_the_client_gets_from_a_node_what_it_gets_from_the_engine(tmp_path: Path) -> None:
    async def scene() -> None:
        async with (
            Engine(as_vllm) as mine,
            Engine(as_vllm) as theirs,
            town(tmp_path, [mine, theirs], policy=[ALWAYS, NEVER], **steady()) as place,
            user_of(theirs.url) as direct,
            user_of(place.urls[1]) as near,
            user_of(place.urls[0]) as far,
        ):
            for ask in ASKS:
                answers = [await told(user, ask) for user in (direct, near, far)]
                check_that_all_was_told(ask, answers[0])
                assert answers[0] == answers[1] == answers[2]
            assert (len(mine.asked), len(theirs.asked)) == (0, 3 * len(ASKS))
            keys = Counter(request.header(b"authorization") for request in theirs.asked)
            assert keys == {b"Bearer sk-secret": len(ASKS), None: 2 * len(ASKS)}  # a user's key is for whoever is asked
            assert sum(request.header(b"accept-encoding") is not None for request in theirs.asked) == len(ASKS)
            assert (await far.models.list()).model_dump() == (await direct.models.list()).model_dump()
            answers = [await begin(user, ASKS[0]) for user in (direct, near, far)]
            assert {answer._request_id for answer in answers} == {"of-the-engine"}
            await asyncio.to_thread(of_the_plain_client, place.urls[0])

    asyncio.run(scene())


def of_the_plain_client(url: str) -> None:
    """The same without asyncio."""
    with OpenAI(base_url=f"{url}/v1", api_key="sk-secret", max_retries=0, timeout=PATIENCE_S) as user:
        events = user.chat.completions.create(model="stub", messages=MESSAGES, stream=True)
        assert "".join(event.choices[0].delta.content or "" for event in events) == "".join(TOKENS)
        assert user.completions.create(model="stub", prompt="Es war").choices[0].text == "".join(TOKENS)


async def leave(user: AsyncOpenAI, engine: Engine) -> None:
    """Leave a stream in the middle, and an answer before it has come."""
    left = engine.left
    engine.script = stream(9, hold=asyncio.Event(), after=2)
    events = await begin(user, Ask(False, {"stream": True}))
    assert (await anext(events)).choices[0].text == " t0"
    await events.close()
    await engine.until(lambda: engine.left == left + 1)
    engine.script = silent
    task = asyncio.create_task(begin(user, Ask(True, {})))
    await engine.until(lambda: engine.running == 1)
    task.cancel()
    await engine.until(lambda: engine.left == left + 2)


async def fail(user: AsyncOpenAI, engine: Engine, far: bool) -> None:
    """Have the engine refuse, fail, and break off: each is the error that the client has for it."""
    for code, kind in ((400, openai.BadRequestError), (422, openai.UnprocessableEntityError), (429, openai.RateLimitError)):
        engine.script = status(code, b'{"error":{"message":"nein","param":"n","code":"c7","type":"t"}}')
        with pytest.raises(kind) as refused:
            await begin(user, Ask(True, {}))
        assert (refused.value.body, refused.value.status_code) == (
            {"message": "nein", "param": "n", "code": "c7", "type": "t"},
            code,
        )
    engine.script = broken_off(2)
    events = await begin(user, Ask(False, {"stream": True}))
    assert [(await anext(events)).choices[0].text for _ in range(2)] == [" t0", " t1"]
    with pytest.raises(openai.APIError) as broke:
        await anext(events)
    assert isinstance(broke.value.body, dict)
    assert (broke.value.code, broke.value.body["tokens_delivered"]) == ("executor_failed", 2)
    if not far:
        engine.script = status(500)
        with pytest.raises(openai.InternalServerError) as failed:
            await begin(user, Ask(True, {}))
        assert (failed.value.status_code, failed.value.code) == (502, "executor_failed")


def test_a_client_that_leaves_or_is_failed_sees_what_it_would_see_at_the_engine(tmp_path: Path) -> None:
    async def scene() -> None:
        async with (
            Engine() as mine,
            Engine() as theirs,
            town(tmp_path, [mine, theirs], policy=[ALWAYS, NEVER], **steady()) as place,
        ):
            for at in (1, 0):
                async with user_of(place.urls[at]) as user:
                    await leave(user, theirs)
                    await fail(user, theirs, far=at == 0)
            assert mine.asked == []

    asyncio.run(scene())
