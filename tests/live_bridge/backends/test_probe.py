"""The probe over real sockets: tokens and their times, and engines that cannot be measured."""

import asyncio
import dataclasses
import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from live_bridge.backends import calibrate as command
from live_bridge.backends.emulated import Emulated
from live_bridge.backends.probe import HttpProbe, ProbeError, served_load, served_model, served_places, served_version, tokens_in
from live_bridge.clock import Clock
from live_bridge.config import profile_named
from live_bridge.http.client import Client
from live_bridge.http.message import Handler, Limits, Request, Response
from live_bridge.http.server import Server
from market.profile import Profile
from tests.live_bridge.backends.test_calibrate import command_line

PROFILE = profile_named("a100_qwen3_8b")
KEY = [(b"authorization", b"Bearer k")]


def against(handler: Handler, scenario: Callable[[str, Client], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        server, client = Server(handler, Limits(), lambda event: None), Client()
        port = await server.listen("127.0.0.1", 0)
        try:
            async with asyncio.timeout(20):
                await scenario(f"http://127.0.0.1:{port}", client)
        finally:
            server.close()
            await client.close()

    asyncio.run(main())


def emulated(
    scenario: Callable[[str, Client, Emulated], Coroutine[Any, Any, None]], profile: Profile = PROFILE, patience_s: float = 20.0
) -> None:
    async def main() -> None:
        engine = Emulated(profile, Clock(), "m")
        server, client = Server(engine.handle, Limits(), lambda event: None), Client()
        port = await server.listen("127.0.0.1", 0)
        try:
            async with asyncio.timeout(patience_s):
                await scenario(f"http://127.0.0.1:{port}", client, engine)
        finally:
            engine.engine.close()
            server.close()
            await client.close()

    asyncio.run(main())


def said(*events: str) -> Handler:
    async def handle(request: Request, response: Response) -> None:
        assert request.header(b"authorization") == b"Bearer k"
        response.start(200, [])
        for event in events:
            await response.write(f"data: {event}\n\n".encode())
        response.end()

    return handle


def test_tokens_are_timed_as_they_come() -> None:
    async def main(url: str, client: Client, engine: Emulated) -> None:
        timing = await HttpProbe(client, url, "m", Clock(), []).ask(100, 20)
        assert (timing.prompt, timing.output) == (100, 20)
        assert engine.engine.totals.prompt == 100
        step_s = (timing.token_s[-1] - timing.token_s[0]) / 19
        assert step_s == pytest.approx(PROFILE.a_s, rel=0.2)
        assert timing.ttft_s >= PROFILE.h_s + PROFILE.a_s
        assert timing.latency_s == timing.token_s[-1] - timing.sent_s

    emulated(main)


def test_no_prompt_is_ever_asked_twice() -> None:
    bodies: list[bytes] = []

    async def keep(request: Request, response: Response) -> None:
        bodies.append(request.body)
        response.send(503, [], b"busy")

    async def main(url: str, client: Client) -> None:
        for _ in range(3):
            with pytest.raises(ProbeError, match="answers 503: busy"):
                await HttpProbe(client, url, "m", Clock(), KEY).ask(30, 5)

    against(keep, main)
    first, second, third = (json.loads(body)["prompt"] for body in bodies)
    assert len({tuple(prompt[:16]) for prompt in (first, second, third)}) == 3  # not even a block of them is known
    assert len(set(first)) > 10


def test_several_tokens_in_an_event_are_counted_by_its_usage() -> None:
    events = [
        '{"choices": [{"text": "a"}], "usage": {"completion_tokens": 1}}',
        '{"choices": [{"text": "bcd"}], "usage": {"completion_tokens": 4}}',
        '{"choices": [], "usage": {"completion_tokens": 4}}',
        "[DONE]",
    ]

    async def main(url: str, client: Client) -> None:
        timing = await HttpProbe(client, url, "m", Clock(), KEY).ask(5, 4)
        assert timing.output == 4
        assert timing.token_s[1] == timing.token_s[3]
        with pytest.raises(ProbeError, match="sent 4 tokens where 9 were asked for.*ignore_eos"):
            await HttpProbe(client, url, "m", Clock(), KEY).ask(5, 9)

    against(said(*events), main)


@pytest.mark.parametrize(
    ("event", "tokens"),
    [
        (b'data: {"choices": [{}]}', 1),
        (b'data: {"choices": [], "usage": {"completion_tokens": 7}}', 4),
        (b'data: {"choices": [{}], "usage": {"completion_tokens": 3}}', 0),
        (b'data: {"choices": [{}], "usage": null}', 1),
        (b"data: [DONE]", 0),
        (b": ping", 0),
    ],
)
def test_tokens_of_an_event(event: bytes, tokens: int) -> None:
    assert tokens_in(event, 3) == tokens


def test_an_engine_that_breaks_off_cannot_be_measured() -> None:
    async def broken(request: Request, response: Response) -> None:
        response.start(200, [])
        await response.write(b'data: {"choices": [{}]}\n\n')
        response.abort()

    async def main(url: str, client: Client) -> None:
        with pytest.raises(ProbeError, match=url):
            await HttpProbe(client, url, "m", Clock(), []).ask(5, 4)

    against(broken, main)


def test_an_engine_tells_its_model_its_load_and_its_version() -> None:
    async def main(url: str, client: Client, engine: Emulated) -> None:
        assert await served_model(client, url + "/", []) == ("m", 16 * PROFILE.kv_blocks)
        assert (await served_load(client, url, [], Clock())).kv_blocks == PROFILE.kv_blocks
        assert await served_version(client, url, []) == "an engine that does not tell its version"

    emulated(main)


@pytest.mark.parametrize("places", [5, 24])
def test_the_places_of_an_engine_are_found_out_by_asking_for_more(places: int) -> None:
    async def main(url: str, client: Client, engine: Emulated) -> None:
        clock = Clock()
        assert await served_places(client, url, [], HttpProbe(client, url, "m", clock, [])) == places

    emulated(main, dataclasses.replace(PROFILE, max_num_seqs=places))


@pytest.mark.parametrize("text", ["", "[]", '{"data": []}', '{"data": [5]}'])
def test_an_odd_list_of_models_is_an_error(text: str) -> None:
    async def odd(request: Request, response: Response) -> None:
        response.send(200, [], text.encode())

    async def main(url: str, client: Client) -> None:
        with pytest.raises(ProbeError, match="is not a list of models"):
            await served_model(client, url, [])

    against(odd, main)


@pytest.mark.slow
def test_the_command_calibrates_an_engine_that_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--max-num-seqs",
        "256",
        "--context",
        "4096",
        "--loaded-s",
        "20",
        "--held-out-s",
        "15",
        "--key-file",
        str(tmp_path / "key"),
    ]
    (tmp_path / "key").write_text("secret\n", encoding="utf-8")
    out = tmp_path / "profile.yaml"

    async def main(url: str, client: Client, engine: Emulated) -> None:
        done = await asyncio.create_subprocess_exec(*program(url, words, out))
        assert await done.wait() == 0

    emulated(main, patience_s=180.0)
    profile = profile_named(str(out))
    assert profile.kv_blocks == PROFILE.kv_blocks
    assert profile.a_s == pytest.approx(PROFILE.a_s, rel=0.1)
    assert profile.error < 0.15


def program(url: str, words: list[str], out: Path) -> list[str]:
    """The command as a process of its own."""
    code = (
        "import argparse, sys; from live_bridge.backends import calibrate as c; p = argparse.ArgumentParser(); c.add_arguments(p); "
        "sys.exit(c.run(p.parse_args(sys.argv[1:])))"
    )
    return [sys.executable, "-c", code, url, *words, "--out", str(out)]


def test_an_engine_that_tells_too_little_is_asked_for_by_option(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    async def bare(request: Request, response: Response) -> None:
        body = b'{"data": [{"id": "m"}]}' if request.path == "/v1/models" else b""
        response.send(200, [], body)

    async def main(url: str, client: Client) -> None:
        for words, text in (([], "give --context"), (["--context", "100"], "has no vllm:num_requests_running")):
            args = command_line([url, "--max-num-seqs", "4", "--out", str(tmp_path / "p.yaml"), *words])
            with pytest.raises(ValueError if words else ProbeError, match=text):
                await command._run(args)

    against(bare, main)
