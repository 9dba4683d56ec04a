"""The same requests to our server and to aiohttp's, the same answers to our client and to aiohttp's: both see the same."""

import asyncio
import json
import os
import random
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from live_bridge.http import client_of, server_of
from live_bridge.http.client import Client
from live_bridge.http.message import (
    FRAMING,
    Broken,
    ConnectFailed,
    HttpClient,
    HttpError,
    Request,
    Response,
    TimedOut,
    TooLarge,
)
from live_bridge.http.reference import AiohttpClient, AiohttpServer
from live_bridge.http.server import Server
from tests.live_bridge.http_wire import GET, HOST, LIMITS, Answer, Wire, backend, chunked, front, post, request_head, run, until
from tests.live_bridge.test_http_client import OK, answering, stream_of, url_of, whole
from tests.live_bridge.test_http_server import BAD, HEAD, certificate, forever  # noqa: F401 - the certificate is a fixture

SERVERS = [Server, AiohttpServer]
CLIENTS = [Client, AiohttpClient]
BOTH_SERVERS = pytest.mark.parametrize("make", SERVERS)
BOTH_CLIENTS = pytest.mark.parametrize("ask", CLIENTS)
ADDED = {"server", "date", "content-type"}
"""Headers that aiohttp adds where a handler gives none."""
LENIENT = {
    "chunks in HTTP/1.0",
    "TLS",
    "HTTP/2.0",
    "HTTP/0.9",
    "another coding",
    "no coding",
    "a coding in disguise",
    "another expectation",
    "a method that there is not",
    "a method in small letters",
    "trailers beyond the limit",
    "a trailer without end",
    "an endless word about a chunk",
    "empty lines without end",
    "a head without end",
    "a target without end",
    "a proxy's task",
    "HTTP/1.2",
}
"""What aiohttp takes, waits for or closes without a word; none of them is a way to hide a request."""


def test_the_setting_chooses() -> None:
    async def scenario() -> None:
        for kind, server, client in (("own", Server, Client), ("aiohttp", AiohttpServer, AiohttpClient)):
            assert type(server_of(kind, forever, LIMITS, print)) is server  # type: ignore[arg-type]
            made = client_of(kind)  # type: ignore[arg-type]
            assert type(made) is client
            await made.close()

    run(scenario())


async def speak(request: Request, response: Response) -> None:
    """Answer by the path: whole or in pieces, with or without headers, or not at all."""
    kind = request.path.strip("/")
    headers = [(b"x-seen", request.query.encode() or b"-"), (b"x-two", b"1"), (b"x-three", b"a, b")]
    if kind == "stream":
        response.start(200, [*headers, (b"content-type", b"text/event-stream")])
        for piece in stream_of(len(request.body)):
            await response.write(piece)
        response.end()
    elif kind == "empty-stream":
        response.start(201, headers)
        response.end()
    elif kind in {"204", "304", "404", "500", "503"}:
        response.send(int(kind), headers, b"" if kind in {"204", "304"} else kind.encode())
    elif kind == "raise":
        raise KeyError(kind)
    elif kind == "silent":
        pass
    else:
        response.send(200, [*headers, (b"content-type", b"x/y")], request.body)


GOOD = {
    "get": GET,
    "a query": b"GET /a%20b?c=d&e=%3f? HTTP/1.1\r\nhost: a\r\n\r\n",
    "an absolute target": b"GET http://other/a?b HTTP/1.1\r\nhost: a\r\n\r\n",
    "headers in their order": b"GET / HTTP/1.1\r\nHost: a\r\nX-B: 1\r\nx-a:   2  \r\nX-b: 3\r\n\r\n",
    "bytes beyond ASCII in a value": b"GET / HTTP/1.1\r\nhost: a\r\nx: \xc3\xa9\xff\r\n\r\n",
    "post": post(b"abc"),
    "post of nothing": post(b""),
    "a large body": post(random.Random(0).randbytes(300_000)),
    "compressed, as it came": post(b"\x1f\x8b\x08\0", b"content-encoding: gzip"),
    "chunks": HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunked(b"a", b"bc" * 5000, b"d"),
    "chunks and a trailer": HEAD + b"transfer-encoding: chunked\r\n\r\n1;x=y\r\na\r\n0\r\nx: y\r\n\r\n",
    "a small letter's chunk size": HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunked(b"x" * 0xAB),
    "put": post(b"abc").replace(b"POST", b"PUT"),
    "delete": GET.replace(b"GET", b"DELETE"),
    "options": GET.replace(b"GET / ", b"OPTIONS * "),
    "HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "HTTP/1.0, kept": b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
    "the last one": b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "a stream": post(b"x" * 123, path=b"/stream"),
    "a stream of nothing": GET.replace(b"/ ", b"/empty-stream "),
    "no content": GET.replace(b"/ ", b"/204 "),
    "not modified": GET.replace(b"/ ", b"/304 "),
    "not found": GET.replace(b"/ ", b"/404 "),
    "a handler's 503": GET.replace(b"/ ", b"/503 "),
    "a handler that raises": GET.replace(b"/ ", b"/raise "),
    "a handler that is silent": GET.replace(b"/ ", b"/silent "),
}


def bare(answer: Answer) -> tuple[object, ...]:
    """What must be alike."""
    headers = {name: value for name, value in answer.headers.items() if name not in ADDED and name.encode() not in FRAMING}
    return answer.status, headers, answer.body, answer.whole, answer.headers.get("connection", "").lower() == "close"


async def outcome(make: Callable[..., Any], sent: bytes, *, to_head: bool = False) -> tuple[object, ...]:
    async with front(speak, make=make) as one:
        wire = await one.wire()
        wire.say(sent)
        answer = await wire.answer(to_head=to_head)
        await until(lambda: one.over == len(one.asked))
        await asyncio.sleep(0)  # for those who look at how the handler ended
        seen = [(asked.method, asked.path, asked.query, asked.headers, asked.body, asked.peer) for asked in one.asked]
        return (*bare(answer), seen, one.counts)


@pytest.mark.parametrize("case", GOOD)
def test_both_servers_read_and_answer_alike(case: str) -> None:
    async def scenario() -> None:
        ours, theirs = [await outcome(make, GOOD[case]) for make in SERVERS]
        assert ours == theirs

    run(scenario())


@pytest.mark.parametrize("path", [b"/", b"/stream", b"/404", b"/204"])
def test_both_servers_answer_head_alike(path: bytes) -> None:
    async def scenario() -> None:
        sent = b"HEAD %b HTTP/1.1\r\nhost: a\r\n\r\n" % path
        ours, theirs = [await outcome(make, sent, to_head=True) for make in SERVERS]
        assert ours == theirs

    run(scenario())


@pytest.mark.parametrize("case", sorted(set(BAD) - LENIENT))
def test_both_servers_refuse_alike(case: str) -> None:
    async def scenario() -> None:
        for make in SERVERS:
            async with front(make=make) as one:
                answer = await one.ask(BAD[case][0])
                assert answer.status in {400, 413, 431}, make
                assert one.asked == [], make

    run(scenario())


@pytest.mark.parametrize("case", sorted(LENIENT))
def test_where_aiohttp_is_lenient_nothing_is_hidden(case: str) -> None:
    hidden = b"GET /hidden HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"

    async def scenario() -> None:
        async with front(make=AiohttpServer, limits=LIMITS._replace(body_s=0.2)) as one:
            wire = await one.wire()
            wire.say(BAD[case][0])
            if case in {"no coding", "a coding in disguise", "another coding"}:
                wire.say(hidden)
            wire.writer.write_eof()
            await wire.ended()
            assert "/hidden" not in [request.path for request in one.asked]

    run(scenario())


def test_random_plain_requests_are_read_alike() -> None:
    async def scenario() -> None:
        async with front(speak, make=Server) as ours, front(speak, make=AiohttpServer) as theirs:
            chance = random.Random(0)
            wires = [await one.wire() for one in (ours, theirs)]
            for _ in range(300):
                body = chance.randbytes(chance.choice([0, 1, 50, 5000]))
                kind = chance.choice([b"/", b"/stream", b"/404", b"/x/y?z=%d" % chance.randrange(9)])
                sent = post(body, b"x-%d: %d" % (chance.randrange(5), chance.randrange(99)), path=kind)
                for wire in wires:
                    wire.say(sent)
                first, second = [bare(await wire.answer()) for wire in wires]
                assert first == second
            assert [vars_of(one) for one in ours.asked] == [vars_of(one) for one in theirs.asked]

    run(scenario())


def vars_of(request: Request) -> list[object]:
    return [getattr(request, name) for name in Request.__slots__]


# -- behaviour


@BOTH_SERVERS
@pytest.mark.parametrize("path", [b"/", b"/stream"])
def test_a_handler_is_cancelled_when_its_client_leaves(make: Callable[..., Any], path: bytes) -> None:
    cancelled: list[str] = []

    async def wait(request: Request, response: Response) -> None:
        if request.path == "/stream":
            response.start(200, [])
            await response.write(b"x")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(request.path)
            raise

    async def scenario() -> None:
        async with front(wait, make=make) as one:
            for turn in range(20):
                wire = await one.wire()
                wire.say(GET.replace(b"/ ", path + b" "))
                await until(lambda turn=turn: len(one.asked) == turn + 1)
                wire.leave()
                assert await until(lambda turn=turn: len(cancelled) == turn + 1) < 0.1
            assert one.counts == ["client_left"] * 20
            await until(lambda: one.server.connections == 0)

    run(scenario())


@BOTH_SERVERS
def test_work_behind_the_answer_is_not_cancelled(make: Callable[..., Any]) -> None:
    gate, done = asyncio.Event(), []

    async def settle(request: Request, response: Response) -> None:
        response.send(200, [], b"")
        await gate.wait()
        done.append(request.path)

    async def scenario() -> None:
        async with front(settle, make=make) as one:
            wire = await one.wire()
            wire.say(GET)
            await wire.answer()
            wire.leave()
            await until(lambda: one.server.connections == 0)
            gate.set()
            await until(lambda: done == ["/"])

    run(scenario())


@BOTH_SERVERS
def test_a_stream_that_fails_does_not_look_whole(make: Callable[..., Any]) -> None:
    async def half(request: Request, response: Response) -> None:
        response.start(200, [])
        await response.write(b"half")
        await asyncio.sleep(0.01)
        if request.path == "/abort":
            response.abort()
        else:
            raise OSError("gone")

    async def scenario() -> None:
        async with front(half, make=make) as one:
            for path in (b"/abort", b"/raise"):
                answer = await one.ask(GET.replace(b"/ ", path + b" "))
                assert not answer.whole
            assert one.counts == ["handler_failed"]

    run(scenario())


@BOTH_SERVERS
def test_a_writer_waits_for_a_slow_reader(make: Callable[..., Any]) -> None:
    written: list[int] = []

    async def flood(request: Request, response: Response) -> None:
        response.start(200, [])
        for _ in range(300):
            await response.write(b"x" * 100_000)
            written.append(100_000)
        response.end()

    async def scenario() -> None:
        async with front(flood, make=make) as one:
            wire = await one.wire()
            wire.reader._transport.pause_reading()  # type: ignore[attr-defined]
            wire.say(GET)
            await until(lambda: len(written) > 0)
            before = -1
            while before != len(written):
                before = len(written)
                await asyncio.sleep(0.05)
            assert sum(written) < 20_000_000
            wire.reader._transport.resume_reading()  # type: ignore[attr-defined]
            assert len((await wire.answer()).body) == 30_000_000

    run(scenario())


@BOTH_SERVERS
def test_a_body_has_its_limits(make: Callable[..., Any]) -> None:
    async def scenario() -> None:
        async with front(make=make, limits=LIMITS._replace(body_bytes=1000, body_s=0.2)) as one:
            assert (await one.ask(post(b"x" * 1000))).status == 200
            for sent in (post(b"x" * 1001), HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunked(b"x" * 600, b"x" * 600)):
                answer = await one.ask(sent)
                assert answer.status == 413 and json.loads(answer.body)["error"]["code"] == "body_too_large"
            answer = await one.ask(HEAD + b"content-length: 9\r\n\r\nabc")
            assert answer.status == 408 and json.loads(answer.body)["error"]["code"] == "slow_body"
            assert one.counts == ["body_too_large", "body_too_large", "slow_body"]

    run(scenario())


@BOTH_SERVERS
def test_a_client_that_waits_to_send_its_body_is_told_to(make: Callable[..., Any]) -> None:
    async def scenario() -> None:
        async with front(make=make) as one:
            wire = await one.wire()
            wire.say(HEAD + b"content-length: 3\r\nexpect: 100-continue\r\n\r\n")
            assert (await wire.answer()).status == 100
            wire.say(b"abc")
            assert (await wire.answer()).body == b"abc"

    run(scenario())


@BOTH_SERVERS
def test_a_drain_ends_what_is_under_way(make: Callable[..., Any]) -> None:
    gate = asyncio.Event()

    async def gated(request: Request, response: Response) -> None:
        await gate.wait()
        response.send(200, [], b"whole")

    async def scenario() -> None:
        async with front(gated, make=make) as one:
            working, idle = await one.wire(), await one.wire()
            working.say(GET)
            await until(lambda: len(one.asked) == 1)
            draining = asyncio.create_task(one.server.drain(5.0))
            await asyncio.sleep(0.01)
            with pytest.raises(ConnectionRefusedError):
                await one.wire()
            gate.set()
            assert (await working.answer()).body == b"whole"
            assert await idle.ended() == b""
            await asyncio.wait_for(draining, 2.0)

    run(scenario())


@BOTH_SERVERS
def test_a_drain_that_takes_too_long_cuts_the_rest(make: Callable[..., Any]) -> None:
    async def scenario() -> None:
        async with front(forever, make=make) as one:
            wire = await one.wire()
            wire.say(GET)
            await until(lambda: len(one.asked) == 1)
            await asyncio.wait_for(one.server.drain(0.05), 2.0)
            assert await wire.ended() == b""
            await until(lambda: one.server.connections == 0)

    run(scenario())


@BOTH_SERVERS
def test_an_answer_is_begun_once(make: Callable[..., Any]) -> None:
    async def twice(request: Request, response: Response) -> None:
        for early in (response.end, lambda: response.write(b"x").send(None)):  # type: ignore[attr-defined]
            with pytest.raises(RuntimeError, match="not been started"):
                early()
        with pytest.raises(ValueError, match="line break"):
            response.send(200, [(b"x", b"a\r\nb: c")], b"")
        response.send(200, [], b"once")
        with pytest.raises(RuntimeError, match="started already"):
            response.start(200, [])

    async def scenario() -> None:
        async with front(twice, make=make) as one:
            assert (await one.ask(GET)).body == b"once"
            assert one.counts == []

    run(scenario())


# -- clients


async def heard(ask: Callable[[], HttpClient], sent: bytes, method: str) -> object:
    async def talk(wire: Wire) -> None:
        head = await request_head(wire)
        requests.append(sorted(line.lower() for line in head.split(b"\r\n")))
        wire.say(sent)
        wire.writer.write_eof()
        await wire.reader.read()

    requests: list[list[bytes]] = []
    client = ask()
    async with backend(talk) as (port, _):
        try:
            fields = [(b"x-b", b"2"), (b"x-a", b"1"), (b"host", b"me"), (b"content-length", b"99")]
            reply = await client.request(method, url_of(port, "/a%20b?c"), fields, b"abc" if method == "POST" else b"")
            said = [pair for pair in reply.headers if pair[0] != b"connection"]
            return reply.status, said, await whole(reply), requests
        except HttpError as error:
            return type(error)
        finally:
            await client.close()


ANSWERS = {
    "a length": OK,
    "nothing": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"a", b"b" * 5000),
    "an end": b"HTTP/1.1 200 OK\r\n\r\nto the end",
    "an interim answer": b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    "headers": b"HTTP/1.1 200 OK\r\nX-One:  a \r\nx-two:\r\nX-ONE: b\r\nContent-Length: 0\r\n\r\n",
    "a redirect": b"HTTP/1.1 302 Found\r\nlocation: /there\r\ncontent-length: 0\r\n\r\n",
    "an error": b"HTTP/1.1 503 No\r\nretry-after: 1\r\ncontent-length: 2\r\n\r\nno",
    "compressed, as it came": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b\x08\0",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "cut short": OK[:-1],
    "a chunk cut short": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
    "no last chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n",
    "both lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    "not HTTP": b"SSH-2.0\r\n\r\n",
    "silence": b"",
}


@pytest.mark.parametrize("case", ANSWERS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_both_clients_ask_and_hear_alike(case: str, method: str) -> None:
    async def scenario() -> None:
        ours, theirs = [await heard(ask, ANSWERS[case], method) for ask in CLIENTS]
        assert ours == theirs
        assert isinstance(ours, tuple) or ours is Broken

    run(scenario())


@BOTH_CLIENTS
def test_errors_are_told_in_the_same_words(ask: Callable[[], HttpClient]) -> None:
    async def stuck(wire: Wire) -> None:
        await request_head(wire)
        await wire.reader.read()

    async def scenario() -> None:
        client = ask()
        async with backend(stuck) as (port, _):
            with pytest.raises(TimedOut, match=url_of(port)):
                await client.request("POST", url_of(port), connect_s=0.1, first_byte_s=0.1)
        with pytest.raises(ConnectFailed, match=url_of(port)):
            await client.request("GET", url_of(port))
        async with backend(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n" + b"x" * 9)) as (port, _):
            with pytest.raises(TooLarge, match="longer than 8 bytes"):
                await (await client.request("GET", url_of(port))).body(8)
            with pytest.raises(ValueError, match="line break"):
                await client.request("GET", url_of(port), [(b"x", b"\n")])
        await client.close()

    run(scenario())


@BOTH_CLIENTS
def test_a_pinned_address_is_connected_to(ask: Callable[[], HttpClient]) -> None:
    hosts: list[bytes | None] = []

    async def note(request: Request, response: Response) -> None:
        hosts.append(request.header(b"host"))
        response.send(200, [], b"")

    async def scenario() -> None:
        client = ask()
        async with front(note) as one:
            reply = await client.request("GET", f"http://far.example:{one.port}/", address=HOST)
            assert await whole(reply) == b""
            assert hosts == [b"far.example:%d" % one.port]
        await client.close()

    run(scenario())


@BOTH_CLIENTS
def test_leaving_is_seen_at_once(ask: Callable[[], HttpClient]) -> None:
    async def scenario() -> None:
        client = ask()
        async with front(endless) as one:
            with await client.request("POST", one.url()) as reply:
                assert await anext(reply) == b"x"
            assert await until(lambda: one.counts == ["client_left"]) < 0.1
            asking = asyncio.create_task(client.request("POST", one.url("/never")))
            await until(lambda: len(one.asked) == 2)
            asking.cancel()
            assert await until(lambda: one.counts == ["client_left"] * 2) < 0.1
            await asyncio.gather(asking, return_exceptions=True)
            await client.close()

    async def endless(request: Request, response: Response) -> None:
        if request.path == "/":
            response.start(200, [])
            await response.write(b"x")
        await asyncio.Event().wait()

    run(scenario())


@BOTH_CLIENTS
@BOTH_SERVERS
def test_any_client_with_any_server_carries_a_stream(ask: Callable[[], HttpClient], make: Callable[..., Any]) -> None:
    async def scenario() -> None:
        client = ask()
        async with front(speak, make=make) as one:
            for size in range(0, 60, 5):
                reply = await client.request("POST", one.url("/stream"), body=b"x" * size)
                assert await whole(reply) == b"".join(stream_of(size))
            reply = await client.request("HEAD", one.url("/stream"))
            assert reply.status == 200 and await whole(reply) == b""
            await client.close()

    run(scenario())


@BOTH_CLIENTS
@BOTH_SERVERS
def test_any_client_with_any_server_speaks_tls(
    ask: Callable[[], HttpClient],
    make: Callable[..., Any],
    certificate: tuple[Path, Path],  # noqa: F811
) -> None:
    async def scenario() -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*map(os.fspath, certificate))
        trust = ssl.create_default_context(cafile=os.fspath(certificate[0]))
        client = ask()
        async with front(make=make) as one:
            port = await one.server.listen(HOST, 0, tls)
            reply = await client.request("POST", f"https://localhost:{port}/", body=b"abc", address=HOST, tls=trust)
            assert await whole(reply) == b"abc"
            with pytest.raises(ConnectFailed):
                await client.request("GET", f"https://other.name:{port}/", address=HOST, tls=trust)
            await client.close()

    run(scenario())
