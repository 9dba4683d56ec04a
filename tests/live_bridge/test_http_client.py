"""Our client: the pool, answers as they arrive, broken and late ones; and both sides together as a proxy of streams."""

import asyncio
import contextlib
import os
import random
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from live_bridge.http.client import AHEAD_BYTES, Client
from live_bridge.http.message import (
    Broken,
    ConnectFailed,
    HttpError,
    Reply,
    Request,
    Response,
    TimedOut,
    TooLarge,
    place_of,
)
from tests.live_bridge.http_wire import HOST, Front, Wire, backend, chunked, front, request_head, run, until
from tests.live_bridge.test_http_server import certificate  # noqa: F401 - a fixture

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def answering(*answers: bytes) -> Callable[[Wire], object]:
    """A backend that gives these answers in turn on each connection, the last again and again."""

    async def talk(wire: Wire) -> None:
        place = 0
        while True:
            await request_head(wire)
            wire.say(answers[min(place, len(answers) - 1)])
            place += 1

    return talk


def url_of(port: int, path: str = "/") -> str:
    return f"http://{HOST}:{port}{path}"


async def whole(reply: Reply) -> bytes:
    return await reply.body(2**24)


class Told:
    """A transport that notes when it is written to."""

    def __init__(self, transport: asyncio.Transport, order: list[str]) -> None:
        self._transport, self._order = transport, order

    def write(self, data: bytes) -> None:
        self._order.append("sent")
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


# -- requests


def test_a_request_leaves_behind_all_that_was_to_happen_soon_when_it_was_made() -> None:
    """A journal that is written by call_soon holds the command before an engine hears of it."""
    order: list[str] = []

    async def scenario() -> None:
        client = Client()
        async with backend(answering(OK)) as (port, _):
            await whole(await client.request("GET", url_of(port)))
            (line,) = client._lines
            line.transport = Told(line.transport, order)  # type: ignore[assignment]
            asyncio.get_running_loop().call_soon(order.append, "journalled")
            await whole(await client.request("GET", url_of(port)))
            assert order == ["journalled", "sent"]
            await client.close()

    run(scenario())


def test_a_request_is_not_sent_into_a_connection_that_ends_first() -> None:
    order: list[str] = []

    async def scenario() -> None:
        client = Client()
        async with backend(answering(OK)) as (port, _):
            await whole(await client.request("GET", url_of(port)))
            (line,) = client._lines
            line.transport = Told(line.transport, order)  # type: ignore[assignment]
            asked = asyncio.ensure_future(client.request("GET", url_of(port)))
            asyncio.get_running_loop().call_soon(line.connection_lost, None)
            assert await whole(await asked) == b"ok"  # over another connection
            assert order == []
            await client.close()

    run(scenario())


def test_a_request_is_sent_as_asked() -> None:
    heads: list[bytes] = []

    async def talk(wire: Wire) -> None:
        while True:
            heads.append(await request_head(wire))
            wire.say(OK)

    async def scenario() -> None:
        client = Client()
        async with backend(talk) as (port, _):
            lies = [
                (b"content-length", b"9"),
                (b"transfer-encoding", b"chunked"),
                (b"connection", b"close"),
                (b"x-b", b"2"),
                (b"x-a", b"1"),
            ]
            await whole(await client.request("POST", url_of(port, "/a%20b?c=d?e"), lies, b"abc"))
            await whole(await client.request("GET", url_of(port), [(b"host", b"other")]))
            await whole(await client.request("POST", f"http://localhost:{port}", address=HOST))
            await client.close()
        authority = f"{HOST}:{port}".encode()
        assert heads == [
            b"POST /a%20b?c=d?e HTTP/1.1\r\nhost: " + authority + b"\r\nx-b: 2\r\nx-a: 1\r\ncontent-length: 3\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: other\r\n\r\n",
            b"POST / HTTP/1.1\r\nhost: localhost:%d\r\ncontent-length: 0\r\n\r\n" % port,
        ]

    run(scenario())


def test_a_long_body_is_sent_whole() -> None:
    async def scenario() -> None:
        client = Client()
        async with front() as one:
            for size in (0, 16384, 16385, 8 * 2**20):
                body = random.Random(size).randbytes(size)
                reply = await client.request("POST", one.url(), body=body)
                assert reply.status == 200 and await whole(reply) == body
            assert one.server.connections == 1
            await client.close()

    run(scenario())


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a",
        "ftp://a/",
        "http://",
        "http:///a",
        "http://me@a/",
        "http://a/ b",
        "http://a/\r\nx:y",
        "http://ä/",
        "http://a:99999/",
    ],
)
def test_a_url_that_cannot_be_asked_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        place_of(url)


def test_urls_are_taken_apart() -> None:
    assert place_of("http://a") == ("http", "a", 80, "http://a:80", b"host: a\r\n", b"/")
    assert place_of("https://A.b?c#d") == ("https", "a.b", 443, "https://a.b:443", b"host: A.b\r\n", b"/?c")
    assert place_of("http://[::1]:81/x?") == ("http", "::1", 81, "http://::1:81", b"host: [::1]:81\r\n", b"/x")


def test_a_header_that_begins_a_line_is_not_sent() -> None:
    async def scenario() -> None:
        client = Client()
        async with front() as one:
            with pytest.raises(ValueError, match="line break"):
                await client.request("GET", one.url(), [(b"x", b"a\r\ny: b")])
            assert one.server.connections == 0

    run(scenario())


# -- answers


@pytest.mark.parametrize(
    ("sent", "status", "body"),
    [
        (OK, 200, b"ok"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" + OK, 200, b"ok"),
        (b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", 304, b""),
        (b"HTTP/1.1 200\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"a", b"b" * 5000), 200, b"a" + b"b" * 5000),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;x=y\r\na\r\n0\r\ntrailer: 1\r\n\r\n", 200, b"a"),
        (b"HTTP/1.1 302 Found\r\nlocation: http://a/\r\ncontent-length: 0\r\n\r\n", 302, b""),
        (b"HTTP/1.1 599 Odd\r\ncontent-length: 0\r\n\r\n", 599, b""),
    ],
)
def test_an_answer_is_read_to_its_end_and_the_connection_kept(sent: bytes, status: int, body: bytes) -> None:
    async def scenario() -> None:
        client = Client()
        async with backend(answering(sent)) as (port, seen):
            for _ in range(3):
                reply = await client.request("GET", url_of(port))
                assert reply.status == status and await whole(reply) == body
            assert len(seen) == 1
            await client.close()

    run(scenario())


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\n\r\nto the end",
        b"HTTP/1.0 200 OK\r\n\r\nto the end",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nto the end",
    ],
)
def test_an_answer_without_a_length_ends_with_its_connection(sent: bytes) -> None:
    async def talk(wire: Wire) -> None:
        await request_head(wire)
        wire.say(sent)
        wire.writer.write_eof()
        await wire.reader.read()

    async def scenario() -> None:
        client = Client()
        async with backend(talk) as (port, seen):
            for turn in range(2):
                assert await whole(await client.request("GET", url_of(port))) == b"to the end"
                assert len(seen) == turn + 1
            await client.close()

    run(scenario())


def test_names_are_small_and_values_bare() -> None:
    sent = b"HTTP/1.1 200 OK\r\nX-One:  a \t\r\nx-two: \r\nX-ONE: b\r\nContent-Length: 0\r\n\r\n"

    async def scenario() -> None:
        client = Client()
        async with backend(answering(sent)) as (port, _):
            reply = await client.request("GET", url_of(port))
            assert reply.headers == [(b"x-one", b"a"), (b"x-two", b""), (b"x-one", b"b"), (b"content-length", b"0")]
            assert reply.header(b"x-one") == b"a" and reply.header(b"none") is None
            await client.close()

    run(scenario())


def test_an_answer_to_head_has_no_body() -> None:
    async def scenario() -> None:
        client = Client()
        async with front() as one:
            reply = await client.request("HEAD", one.url())
            assert reply.header(b"content-length") == b"0" and await whole(reply) == b""
            reply = await client.request("HEAD", one.url())
            assert reply.status == 200
            await client.close()

    run(scenario())


def test_pieces_are_given_as_they_arrive() -> None:
    gates = [asyncio.Event() for _ in range(3)]

    async def talk(wire: Wire) -> None:
        await request_head(wire)
        wire.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for gate in gates:
            await gate.wait()
            wire.say(b"2\r\nab\r\n3\r\ncde\r\n")
        wire.say(b"0\r\n\r\n")
        await wire.reader.read()

    async def scenario() -> None:
        client = Client()
        async with backend(talk) as (port, _):
            reply = await client.request("GET", url_of(port))
            assert reply.status == 200, "the head alone"
            for gate in gates:
                gate.set()
                assert await anext(reply) == b"abcde", "what came in one read comes as one piece"
            with pytest.raises(StopAsyncIteration):
                await anext(reply)
            with pytest.raises(StopAsyncIteration):
                await anext(reply)
            await client.close()

    run(scenario())


def test_a_slow_consumer_stops_the_sender() -> None:
    async def flood(wire: Wire) -> None:
        await request_head(wire)
        wire.say(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n", b"x" * 100_000_000)
        await wire.reader.read()

    async def scenario() -> None:
        client = Client()
        async with backend(flood) as (port, seen):
            reply = await client.request("GET", url_of(port))
            left = [-1, 0]
            while left[-1] != left[-2]:
                await asyncio.sleep(0.05)
                left.append(seen[0].writer.transport.get_write_buffer_size())
            assert left[-1] > 85_000_000, f"kernel buffers and {AHEAD_BYTES} bytes of ours"
            size = 0
            async for piece in reply:
                assert 0 < len(piece) < 2_000_000
                size += len(piece)
            assert size == 100_000_000
            await client.close()

    run(scenario())


def test_a_body_beyond_the_callers_limit_is_not_read() -> None:
    async def scenario() -> None:
        client = Client()
        sent = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + b"x" * 1000
        async with backend(answering(sent)) as (port, _):
            assert len(await (await client.request("GET", url_of(port))).body(1000)) == 1000
            with pytest.raises(TooLarge, match=rf"http://{HOST}:{port}/: the answer is longer than 999 bytes"):
                await (await client.request("GET", url_of(port))).body(999)
            await client.close()

    run(scenario())


# -- the pool


def test_connections_are_used_again_the_last_one_first() -> None:
    async def scenario() -> None:
        client = Client()
        async with backend(answering(OK)) as (port, seen):
            replies = await asyncio.gather(*(client.request("GET", url_of(port)) for _ in range(5)))
            assert len(seen) == 5
            for reply in replies:
                await whole(reply)
            for _ in range(10):
                await whole(await client.request("GET", url_of(port)))
            assert len(seen) == 5
            await client.close()

    run(scenario())


def test_a_pool_is_bounded_and_its_connections_grow_old() -> None:
    async def scenario() -> None:
        client = Client(kept_s=0.3, kept=2)
        async with front() as one:
            for reply in await asyncio.gather(*(client.request("GET", one.url()) for _ in range(5))):
                await whole(reply)
            await until(lambda: one.server.connections == 2)
            assert await until(lambda: one.server.connections == 0) > 0.1
            assert (await client.request("GET", one.url())).status == 200
            await client.close()

    run(scenario())


def test_pools_are_apart_by_host_and_address() -> None:
    async def scenario() -> None:
        client = Client()
        async with backend(answering(OK)) as (port, seen):
            for url, address in ((url_of(port), None), (url_of(port), HOST), (f"http://localhost:{port}/", HOST)):
                for _ in range(2):
                    await whole(await client.request("GET", url, address=address))
            assert len(seen) == 3
            await client.close()

    run(scenario())


@pytest.mark.parametrize(
    "sent",
    [
        OK + b"more",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ],
)
def test_a_connection_that_cannot_be_trusted_again_is_not_kept(sent: bytes) -> None:
    async def scenario() -> None:
        client = Client()
        async with backend(answering(sent)) as (port, seen):
            for turn in range(3):
                assert await whole(await client.request("GET", url_of(port))) == b"ok"
                assert len(seen) == turn + 1
            await client.close()

    run(scenario())


def test_bytes_that_nobody_asked_for_close_an_idle_connection() -> None:
    async def scenario() -> None:
        client = Client()
        async with backend(answering(OK)) as (port, seen):
            await whole(await client.request("GET", url_of(port)))
            seen[0].say(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
            await until(seen[0].writer.is_closing)
            assert await whole(await client.request("GET", url_of(port))) == b"ok"
            assert len(seen) == 2
            await client.close()

    run(scenario())


def test_a_connection_that_was_closed_meanwhile_is_not_used() -> None:
    async def scenario() -> None:
        client = Client()
        async with backend(answering(OK)) as (port, seen):
            await whole(await client.request("POST", url_of(port)))
            seen[0].writer.close()
            await seen[0].writer.wait_closed()
            await asyncio.sleep(0.01)
            assert await whole(await client.request("POST", url_of(port))) == b"ok"
            await client.close()

    run(scenario())


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE"])
def test_only_a_harmless_request_is_asked_again(method: str) -> None:
    """The server closes as the second request arrives: a caller of POST is told, since the work may have been done."""
    asked: list[str] = []

    async def once(wire: Wire) -> None:
        while True:
            asked.append((await request_head(wire)).decode().split(" ")[0])
            if len(asked) == 2:
                return
            wire.say(OK if asked[-1] != "HEAD" else OK[:-2])

    async def scenario() -> None:
        client = Client()
        async with backend(once) as (port, _):
            await whole(await client.request("GET" if method == "HEAD" else method, url_of(port)))
            if method in {"GET", "HEAD"}:
                assert (await client.request(method, url_of(port))).status == 200
                assert len(asked) == 3
            else:
                with pytest.raises(Broken) as caught:
                    await client.request(method, url_of(port))
                assert caught.value.sent and len(asked) == 2
            await client.close()

    run(scenario())


def test_a_fresh_connection_that_breaks_is_not_tried_again() -> None:
    async def silent(wire: Wire) -> None:
        await request_head(wire)

    async def scenario() -> None:
        client = Client()
        async with backend(silent) as (port, seen):
            with pytest.raises(Broken, match=rf"http://{HOST}:{port}/: the connection ended"):
                await client.request("GET", url_of(port))
            assert len(seen) == 1
            await client.close()

    run(scenario())


# -- broken and late


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\nb: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000,
        b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 99 Low\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_broken(sent: bytes) -> None:
    async def talk(wire: Wire) -> None:
        await request_head(wire)
        wire.say(sent)
        wire.writer.write_eof()
        await wire.reader.read()

    async def scenario() -> None:
        client = Client()
        async with backend(talk) as (port, _):
            with pytest.raises(Broken) as caught:
                await client.request("POST", url_of(port))
            assert caught.value.sent and str(caught.value).startswith(url_of(port))
            await client.close()

    run(scenario())


@pytest.mark.parametrize("how", ["eof", "reset", "not chunks"])
def test_an_answer_that_breaks_gives_what_came_and_then_says_so(how: str) -> None:
    async def talk(wire: Wire) -> None:
        await request_head(wire)
        wire.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n")
        await wire.writer.drain()
        await gate.wait()
        if how == "not chunks":
            wire.say(b"zz\r\n")
            await wire.reader.read()
        elif how == "eof":
            wire.writer.write_eof()
            await wire.reader.read()

    async def scenario() -> None:
        client = Client()
        async with backend(talk) as (port, _):
            reply = await client.request("POST", url_of(port))
            assert await anext(reply) == b"ab"
            gate.set()
            for _ in range(2):
                with pytest.raises(Broken):
                    await anext(reply)
            await client.close()

    gate = asyncio.Event()
    run(scenario())


def test_nobody_there_is_said_with_the_url() -> None:
    async def scenario() -> None:
        client = Client()
        async with backend(answering(OK)) as (port, _):
            pass
        with pytest.raises(ConnectFailed, match=rf"http://{HOST}:{port}/: no connection"):
            await client.request("GET", url_of(port))
        with pytest.raises(ConnectFailed, match="no connection"):
            await client.request("GET", "http://does-not-exist.invalid/", connect_s=3.0)
        with pytest.raises(ConnectFailed, match="no connection"):
            await client.request("GET", "http://a..b/")
        await client.close()
        with pytest.raises(ConnectFailed, match="closed"):
            await client.request("GET", url_of(port))

    run(scenario())


def test_a_host_that_does_not_answer_is_given_up() -> None:
    async def scenario() -> None:
        client = Client()
        import socket

        with socket.socket() as full:  # a queue of one, which is taken: further handshakes hang
            full.bind((HOST, 0))
            full.listen(0)
            port = full.getsockname()[1]
            holders = [socket.socket() for _ in range(2)]
            for holder in holders:
                holder.setblocking(False)
                holder.connect_ex((HOST, port))
            with pytest.raises(ConnectFailed, match=r"no connection within 0\.1 s"):
                await client.request("GET", url_of(port), connect_s=0.1)
            for holder in holders:
                holder.close()
        await client.close()

    run(scenario())


def test_an_answer_that_does_not_begin_is_given_up() -> None:
    async def talk(wire: Wire) -> None:
        await request_head(wire)
        wire.say(b"HTTP/1.1 200 OK\r\n")
        left.append(await wire.reader.read())

    async def scenario() -> None:
        client = Client()
        loop = asyncio.get_running_loop()
        async with backend(talk) as (port, _):
            start_s = loop.time()
            with pytest.raises(TimedOut, match=rf"http://{HOST}:{port}/: "):
                await client.request("POST", url_of(port), first_byte_s=0.2)
            assert 0.15 < loop.time() - start_s < 0.5
            await until(lambda: len(left) == 1)
            await client.close()

    left: list[bytes] = []
    run(scenario())


def test_an_answer_that_has_begun_may_take_its_time() -> None:
    async def talk(wire: Wire) -> None:
        await request_head(wire)
        wire.say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
        await asyncio.sleep(0.3)
        wire.say(b"ok")
        await wire.reader.read()

    async def scenario() -> None:
        client = Client()
        async with backend(talk) as (port, _):
            assert await whole(await client.request("GET", url_of(port), first_byte_s=0.1)) == b"ok"
            await client.close()

    run(scenario())


# -- leaving


@pytest.mark.parametrize("how", ["cancel", "close", "with", "close the client"])
def test_a_server_sees_at_once_that_we_leave(how: str) -> None:
    async def talk(wire: Wire) -> None:
        await request_head(wire)
        asked.set()
        if how != "cancel":
            wire.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        try:
            left.append(await wire.reader.read())
        except ConnectionResetError:
            left.append(b"")

    async def scenario() -> None:
        client = Client()
        async with backend(talk) as (port, _):
            if how == "cancel":
                asking = asyncio.create_task(client.request("POST", url_of(port)))
                await asked.wait()
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
            else:
                reply = await client.request("POST", url_of(port))
                if how == "close":
                    reply.close()
                    reply.close()
                elif how == "with":
                    with reply:
                        assert await anext(reply) == b"a"
                else:
                    await client.close()
                with pytest.raises(Broken):
                    await whole(reply)
            assert await until(lambda: left == [b""]) < 0.1
            await client.close()

    asked, left = asyncio.Event(), []
    run(scenario())


def test_a_caller_that_leaves_as_the_head_comes_leaves_no_connection() -> None:
    async def speak(request: Request, response: Response) -> None:
        response.start(200, [])
        await response.write(b"x")
        await asyncio.Event().wait()

    async def scenario() -> None:
        client = Client()
        async with front(speak) as one:
            for turns in range(60):  # cancelled before, while and after the head comes
                asking = asyncio.create_task(client.request("GET", one.url()))
                for _ in range(turns // 2):
                    await asyncio.sleep(0)
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    (await asking).close()
            await until(lambda: one.server.connections == 0)
            await until(lambda: not client._lines)
            await client.close()

    run(scenario())


def test_closing_a_read_answer_keeps_its_connection() -> None:
    async def scenario() -> None:
        client = Client()
        async with backend(answering(OK)) as (port, seen):
            for _ in range(3):
                with await client.request("GET", url_of(port)) as reply:
                    assert await whole(reply) == b"ok"
            assert len(seen) == 1
            await client.close()

    run(scenario())


def test_a_server_that_answers_before_it_has_read_all_is_heard_and_left() -> None:
    async def talk(wire: Wire) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        wire.say(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno")
        await wire.writer.drain()
        await asyncio.Event().wait()

    async def scenario() -> None:
        client = Client()
        async with backend(talk) as (port, seen):
            for turn in range(2):
                reply = await client.request("POST", url_of(port), body=b"x" * 50_000_000)
                assert reply.status == 413 and await whole(reply) == b"no"
                assert len(seen) == turn + 1
            await client.close()

    run(scenario())


def test_tls_is_checked_against_the_name_in_the_url(certificate: tuple[Path, Path]) -> None:  # noqa: F811
    async def scenario() -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*map(os.fspath, certificate))
        trust = ssl.create_default_context(cafile=os.fspath(certificate[0]))
        client = Client()
        async with front() as one:
            port = await one.server.listen(HOST, 0, tls)
            reply = await client.request("POST", f"https://localhost:{port}/", body=b"abc", address=HOST, tls=trust)
            assert await whole(reply) == b"abc"
            with pytest.raises(ConnectFailed, match="no connection"):
                await client.request("GET", f"https://other.name:{port}/", address=HOST, tls=trust)
            with pytest.raises(ConnectFailed, match="no connection"):
                await client.request("GET", f"https://localhost:{port}/", address=HOST)
            await client.close()

    run(scenario())


def test_plain_asyncio_will_do() -> None:
    async def scenario() -> None:
        client = Client()
        async with front() as one:
            assert await whole(await client.request("POST", one.url(), body=b"abc")) == b"abc"
            await client.close()

    asyncio.run(scenario())


# -- both sides: a proxy of streams


def proxy_to(client: Client, url: str) -> Callable[[Request, Response], object]:
    async def forward(request: Request, response: Response) -> None:
        with await client.request(request.method, url, body=request.body) as reply:
            response.start(reply.status, [])
            try:
                async for piece in reply:
                    await response.write(piece)
            except HttpError:
                response.abort()
            else:
                response.end()

    return forward


def stream_of(seed: int) -> list[bytes]:
    """A stream of SSE as engines and their proxies may write it: split anywhere, line ends of all kinds, comments, tools."""
    chance = random.Random(seed)
    lines = [
        'data: {"choices":[{"delta":{"content":"żółć 🦀 漢字"}}]}\n\n'.encode(),
        b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\\"a\\": 1}"}}]}}]}\r\n\r\n',
        b": a comment, to keep the line open\n\n",
        b"event: message\ndata: \x00\xff\xfe\r\rid: 1\n\n",
        b"data: [DONE]\n\n",
        b"\r\n0\r\n\r\n",
    ]
    size = chance.choice([1, 2, 7, 100, 65536])
    text = b"".join(chance.choice(lines) for _ in range(chance.randrange(1, 6 if size < 7 else 40)))
    if size == 65536 and seed % 3 == 0:
        text += b"data: " + chance.randbytes(2 * size) + b"\n\n"
    return [text[place : place + size] for place in range(0, len(text), size)]


def test_a_thousand_streams_arrive_byte_for_byte() -> None:
    async def speak(request: Request, response: Response) -> None:
        pieces = stream_of(int(request.body))
        response.start(200, [])
        for place, piece in enumerate(pieces):
            await response.write(piece)
            if place % 5 == 0:
                await asyncio.sleep(0)
        response.end()

    async def scenario() -> None:
        inner, outer = Client(), Client()
        async with front(speak) as behind, front(proxy_to(inner, behind.url())) as before:

            async def one(seed: int) -> None:
                reply = await outer.request("POST", before.url(), body=b"%d" % seed)
                assert await whole(reply) == b"".join(stream_of(seed)), seed

            for start in range(0, 1000, 50):
                await asyncio.gather(*(one(seed) for seed in range(start, start + 50)))
            assert before.counts == behind.counts == []
            await inner.close()
            await outer.close()

    run(scenario())


def test_leaving_travels_over_two_hops_within_100_ms_each() -> None:
    running = 0

    async def engine(request: Request, response: Response) -> None:
        nonlocal running
        running += 1
        try:
            if request.body == b"stream":
                response.start(200, [])
                await response.write(b"token")
            await asyncio.Event().wait()
        finally:
            running -= 1

    async def two_hops(turns: int, together: int, behind: Front, before: Front, outer: Client) -> None:
        for _ in range(turns):
            asking = [
                asyncio.create_task(outer.request("POST", before.url(), body=b"stream" if place % 2 else b"whole"))
                for place in range(together)
            ]
            await until(lambda: running == together)
            for each in asking:
                if each.done():
                    each.result().close()
                else:
                    each.cancel()
            assert await until(lambda: running == 0) < (0.2 if together == 1 else 2.0)
            for found in await asyncio.gather(*asking, return_exceptions=True):
                if not isinstance(found, BaseException):
                    found.close()

    async def scenario() -> None:
        inner, middle, outer = Client(), Client(), Client()
        async with (
            front(engine) as behind,
            front(proxy_to(inner, behind.url())) as second,
            front(proxy_to(middle, second.url())) as first,
        ):
            await two_hops(10, 1, behind, first, outer)
            await two_hops(10, 100, behind, first, outer)
            await until(lambda: first.server.connections == second.server.connections == behind.server.connections == 0)
            assert behind.counts.count("client_left") == 1010
            for each in (inner, middle, outer):
                await each.close()

    run(scenario())


def test_a_stream_that_breaks_behind_a_proxy_breaks_before_it() -> None:
    async def half(request: Request, response: Response) -> None:
        response.start(200, [])
        await response.write(b"half")
        await asyncio.sleep(0.01)
        response.abort()

    async def scenario() -> None:
        inner, outer = Client(), Client()
        async with front(half) as behind, front(proxy_to(inner, behind.url())) as before:
            reply = await outer.request("POST", before.url())
            assert await anext(reply) == b"half"
            with pytest.raises(Broken):
                await anext(reply)
            await inner.close()
            await outer.close()

    run(scenario())


def test_a_proxy_holds_little_of_a_long_answer_to_a_slow_client() -> None:
    async def speak(request: Request, response: Response) -> None:
        response.start(200, [])
        for _ in range(2000):
            await response.write(b"x" * 50_000)
            written.append(50_000)
        response.end()

    async def scenario() -> None:
        inner, outer = Client(), Client()
        async with front(speak) as behind, front(proxy_to(inner, behind.url())) as before:
            reply = await outer.request("POST", before.url())
            sizes = [-1, 0]
            while sizes[-1] != sizes[-2]:
                await asyncio.sleep(0.1)
                sizes.append(len(written))
            assert sum(written) < 40_000_000, "two hops of kernel buffers, and little of ours"
            size = 0
            async for piece in reply:
                size += len(piece)
            assert size == 100_000_000
            await inner.close()
            await outer.close()

    written: list[int] = []
    run(scenario())
