"""Our server: order, framing, limits, slow and leaving clients, handlers that fail, and the end."""

import asyncio
import json
import logging
import os
import random
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from benchmarks.measure import resident_bytes
from live_bridge.http.connection import HELD_BYTES
from live_bridge.http.incoming import split_target
from live_bridge.http.message import Limits, Refusal, Request, Response
from live_bridge.http.server import Server
from tests.live_bridge.http_wire import GET, HOST, LIMITS, Wire, chunked, front, post, run, until

SHORT = LIMITS._replace(header_s=0.2, body_s=0.2, keepalive_s=0.4, body_floor_bytes_s=1000)


async def forever(request: Request, response: Response) -> None:
    await asyncio.Event().wait()


# -- what arrives


def test_a_handler_sees_what_was_sent() -> None:
    async def scenario() -> None:
        async with front() as one:
            raw = (
                b"POST /v1/a%20b?q=1?2&x HTTP/1.1\r\nHost: me\r\nX-Two:  b \t\r\nx-one:\r\nX-TWO: c\r\nContent-Length: 3\r\n\r\nabc"
            )
            answer = await one.ask(raw)
            request = one.asked[0]
            assert answer.status == 200 and answer.body == b"abc"
            assert (request.method, request.path, request.query, request.peer) == ("POST", "/v1/a%20b", "q=1?2&x", HOST)
            assert request.headers == [
                (b"host", b"me"), (b"x-two", b"b"), (b"x-one", b""), (b"x-two", b"c"), (b"content-length", b"3"),
            ]  # fmt: skip
            assert request.header(b"x-two") == b"b" and request.header(b"x-none") is None

    run(scenario())


def test_a_request_may_come_byte_by_byte() -> None:
    async def scenario() -> None:
        async with front() as one:
            wire = await one.wire()
            for byte in post(b"abc") + b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"de", b"f"):
                wire.say(bytes([byte]))
                await asyncio.sleep(0)
            assert [(await wire.answer()).body for _ in range(2)] == [b"abc", b"def"]

    run(scenario())


def test_chunks_are_joined_and_trailers_dropped() -> None:
    async def scenario() -> None:
        async with front() as one:
            pieces = [random.Random(place).randbytes(place * 37 % 4000 + 1) for place in range(200)]
            body = chunked(*pieces)[:-2] + b"x-trailer: 1\r\n\r\n"
            answer = await one.ask(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n", body)
            assert answer.body == b"".join(pieces)
            assert one.asked[0].header(b"x-trailer") is None

    run(scenario())


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 300_000, 8 * 2**20])
def test_a_body_arrives_whole_up_to_the_limit(size: int) -> None:
    async def scenario() -> None:
        async with front() as one:
            body = random.Random(size).randbytes(size)
            assert (await one.ask(post(body))).body == body

    run(scenario())


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"http://a.b/c?d", "/c", "d"),
        (b"HTTPS://a.b", "/", ""),
        (b"http://a.b?x=/y", "/", "x=/y"),
        (b"/http://a", "/http://a", ""),
        (b"//a/../b", "//a/../b", ""),
    ],
)
def test_a_target_is_taken_apart_as_sent(target: bytes, path: str, query: str) -> None:
    assert split_target(target, "GET") == (path, query)


@pytest.mark.parametrize(
    ("target", "method"), [(b"*", "GET"), (b"ftp://a/", "GET"), (b"a", "GET"), (b"/a#b", "GET"), (b"http:/a", "GET")]
)
def test_a_target_that_is_no_path_is_refused(target: bytes, method: str) -> None:
    with pytest.raises(Refusal) as caught:
        split_target(target, method)
    assert caught.value.status == 400
    assert split_target(b"*", "OPTIONS") == ("*", "")


# -- answers


def test_a_connection_is_kept_until_the_client_wants_it_closed() -> None:
    async def scenario() -> None:
        async with front() as one:
            wire = await one.wire()
            for _ in range(3):
                wire.say(GET)
                answer = await wire.answer()
                assert answer.status == 200 and "connection" not in answer.headers and "date" in answer.headers
            wire.say(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            assert (await wire.answer()).headers["connection"] == "close"
            assert await wire.ended() == b""
            assert one.counts == []

    run(scenario())


def test_http_1_0_is_closed_unless_it_asks_otherwise() -> None:
    async def scenario() -> None:
        async with front() as one:
            wire = await one.wire()
            wire.say(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
            assert (await wire.answer()).headers["connection"] == "keep-alive"
            wire.say(b"GET / HTTP/1.0\r\n\r\n")
            assert (await wire.answer()).headers["connection"] == "close"
            assert await wire.ended() == b""

    run(scenario())


def test_http_1_0_gets_a_stream_without_chunks() -> None:
    async def stream(request: Request, response: Response) -> None:
        response.start(200, [])
        await response.write(b"one ")
        await response.write(b"two")
        response.end()

    async def scenario() -> None:
        async with front(stream) as one:
            answer = await one.ask(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
            assert answer.body == b"one two" and answer.headers["connection"] == "close"

    run(scenario())


def test_each_piece_of_a_stream_is_sent_at_once_and_alone() -> None:
    gate = asyncio.Event()

    async def stream(request: Request, response: Response) -> None:
        assert not response.started
        response.start(200, [(b"content-type", b"text/event-stream")])
        assert response.started and not response.ended
        await response.write(b"data: 1\n\n")
        await gate.wait()
        await response.write(b"")
        await response.write(b"data: 2\n\n")
        response.end()
        assert response.ended
        response.end()

    async def scenario() -> None:
        async with front(stream) as one:
            wire = await one.wire()
            wire.say(GET)
            status, headers = await wire.head()
            assert status == 200 and headers["transfer-encoding"] == "chunked" and "content-length" not in headers
            assert await wire.chunk() == b"data: 1\n\n"
            gate.set()
            assert [await wire.chunk(), await wire.chunk()] == [b"data: 2\n\n", b""]
            wire.say(GET)
            assert (await wire.answer()).status == 200, "the connection is kept"

    run(scenario())


def test_an_answer_to_head_has_no_body() -> None:
    async def either(request: Request, response: Response) -> None:
        if request.path == "/stream":
            response.start(200, [])
            await response.write(b"abc")
            response.end()
        else:
            response.send(200, [], b"abcd")

    async def scenario() -> None:
        async with front(either) as one:
            wire = await one.wire()
            wire.say(b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\nHEAD /stream HTTP/1.1\r\nhost: a\r\n\r\n", GET)
            assert (await wire.answer(to_head=True)).headers["content-length"] == "4"
            assert "content-length" not in (await wire.answer(to_head=True)).headers
            assert (await wire.answer()).body == b"abcd"

    run(scenario())


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_has_neither_length_nor_body(status: int) -> None:
    async def bare(request: Request, response: Response) -> None:
        if len(request.path) > 1:
            response.start(status, [])
            await response.write(b"lost")
            response.end()
        else:
            response.send(status, [], b"lost")

    async def scenario() -> None:
        async with front(bare) as one:
            wire = await one.wire()
            wire.say(GET, GET.replace(b"/ ", b"/stream "), GET)
            for _ in range(3):
                answer = await wire.answer()
                assert answer.status == status
                assert not {"content-length", "transfer-encoding"} & set(answer.headers)

    run(scenario())


def test_headers_of_the_framing_are_ours_alone() -> None:
    async def odd(request: Request, response: Response) -> None:
        lies = [
            (b"content-length", b"1"),
            (b"transfer-encoding", b"chunked"),
            (b"connection", b"close"),
            (b"x", b"y"),
            (b"date", b"-"),
        ]
        response.send(299, lies, b"abc")

    async def scenario() -> None:
        async with front(odd) as one:
            wire = await one.wire()
            wire.say(GET)
            answer = await wire.answer()
            assert (answer.status, answer.body, answer.headers["x"]) == (299, b"abc", "y")
            assert "connection" not in answer.headers and answer.headers["date"].endswith(" GMT")

    run(scenario())


def test_a_header_cannot_begin_a_line_of_its_own() -> None:
    async def inject(request: Request, response: Response) -> None:
        response.send(200, [(b"x", request.body)], b"")

    async def scenario() -> None:
        async with front(inject) as one:
            for evil in (b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"a\0b"):
                answer = await one.ask(post(evil))
                assert answer.status == 500 and "set-cookie" not in answer.headers
            assert (await one.ask(post(b"fine"))).headers["x"] == "fine"

    run(scenario())


# -- order


def test_pipelined_requests_are_answered_in_order_one_at_a_time() -> None:
    running: list[str] = []
    most = 0

    async def uneven(request: Request, response: Response) -> None:
        nonlocal most
        running.append(request.path)
        most = max(most, len(running))
        for _ in range(20 - int(request.path[1:])):
            await asyncio.sleep(0)
        running.remove(request.path)
        response.send(200, [], request.path.encode())

    async def scenario() -> None:
        async with front(uneven) as one:
            wire = await one.wire()
            wire.say(b"".join(GET.replace(b"/ ", b"/%d " % place) for place in range(20)))
            assert [(await wire.answer()).body for _ in range(20)] == [b"/%d" % place for place in range(20)]
            assert most == 1

    run(scenario())


def test_a_refusal_waits_for_the_answers_before_it() -> None:
    gate = asyncio.Event()

    async def gated(request: Request, response: Response) -> None:
        await gate.wait()
        response.send(200, [], b"first")

    async def scenario() -> None:
        async with front(gated) as one:
            wire = await one.wire()
            wire.say(GET, b"BAD / HTTP/1.1\r\n\r\n", GET)
            await until(lambda: len(one.asked) == 1)
            gate.set()
            assert (await wire.answer()).body == b"first"
            assert (await wire.answer()).status == 400
            assert await wire.ended() == b""
            assert len(one.asked) == 1, "nothing behind a refusal is read"

    run(scenario())


def test_a_thousand_pipelined_requests_are_all_answered() -> None:
    async def scenario() -> None:
        async with front() as one:
            wire = await one.wire()
            wire.say(b"".join(post(b"%d" % place) for place in range(1000)))
            assert [int((await wire.answer()).body) for _ in range(1000)] == list(range(1000))

    run(scenario())


def test_what_is_pipelined_behind_a_long_answer_stays_with_the_client() -> None:
    async def scenario() -> None:
        async with front(forever) as one:
            wire = await one.wire()
            wire.say(GET)
            await until(lambda: len(one.asked) == 1)
            wire.say(b"x" * 50 * 2**20)
            sizes = []
            for _ in range(50):
                await asyncio.sleep(0.002)
                sizes.append(wire.writer.transport.get_write_buffer_size())
            assert sizes[-1] > 30 * 2**20, f"the server took {50 * 2**20 - sizes[-1]} bytes, it may hold about {HELD_BYTES}"
            assert sizes[-1] == sizes[-10], "and takes no more"

    run(scenario())


def test_a_client_that_asks_and_never_reads_is_not_worked_for() -> None:
    body = b"x" * 2**20

    async def big(request: Request, response: Response) -> None:
        response.send(200, [], body)

    async def scenario() -> None:
        async with front(big) as one:
            wire = await one.wire()
            wire.reader._transport.pause_reading()  # type: ignore[attr-defined]
            wire.say(GET * 200)
            await until(lambda: len(one.asked) > 0)
            before = -1
            while before != len(one.asked):
                before = len(one.asked)
                await asyncio.sleep(0.05)
            assert before < 20, "answers wait in the kernel and in one buffer, not in 200"
            wire.reader._transport.resume_reading()  # type: ignore[attr-defined]
            for _ in range(200):
                assert len((await wire.answer()).body) == len(body)

    run(scenario())


# -- expectations and other protocols


def test_a_client_that_waits_to_send_its_body_is_told_to() -> None:
    async def scenario() -> None:
        async with front() as one:
            wire = await one.wire()
            wire.say(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nexpect: 100-Continue\r\n\r\n")
            assert (await wire.answer()).status == 100
            wire.say(b"abc")
            assert (await wire.answer()).body == b"abc"
            wire.say(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\ndef")
            assert (await wire.answer()).body == b"def", "one that does not wait is not told"

    run(scenario())


def test_the_word_to_go_on_waits_for_the_answer_before_it() -> None:
    gate = asyncio.Event()

    async def gated(request: Request, response: Response) -> None:
        await gate.wait()
        response.send(200, [], request.body)

    async def scenario() -> None:
        async with front(gated) as one:
            wire = await one.wire()
            wire.say(GET, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n")
            await until(lambda: len(one.asked) == 1)
            gate.set()
            assert [(await wire.answer()).status for _ in range(2)] == [200, 100]
            wire.say(b"abc")
            assert (await wire.answer()).body == b"abc"

    run(scenario())


def test_a_body_that_is_too_long_is_refused_before_it_is_sent() -> None:
    async def scenario() -> None:
        async with front() as one:
            answer = await one.ask(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999\r\nexpect: 100-continue\r\n\r\n")
            assert answer.status == 413 and one.asked == []

    run(scenario())


def test_a_wish_for_another_protocol_is_not_heard() -> None:
    async def scenario() -> None:
        async with front() as one:
            wire = await one.wire()
            wire.say(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", GET)
            assert (await wire.answer()).status == 200
            assert await wire.ended() == b"" and len(one.asked) == 1

    run(scenario())


# -- refusals

HEAD = b"POST / HTTP/1.1\r\nhost: a\r\n"
BAD = {
    "both lengths": (HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "both lengths, the other way": (HEAD + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (HEAD + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 400),
    "one length twice": (HEAD + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc", 400),
    "a list of lengths": (HEAD + b"content-length: 3, 3\r\n\r\nabc", 400),
    "a signed length": (HEAD + b"content-length: +3\r\n\r\nabc", 400),
    "a negative length": (HEAD + b"content-length: -1\r\n\r\n", 400),
    "an empty length": (HEAD + b"content-length:\r\n\r\n", 400),
    "a hexadecimal length": (HEAD + b"content-length: 0x3\r\n\r\nabc", 400),
    "a length beyond 64 bits": (HEAD + b"content-length: 99999999999999999999\r\n\r\n", 400),
    "chunked twice": (HEAD + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked in two lines": (HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked, then nothing": (HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n", 400),
    "another coding": (HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    "no coding": (HEAD + b"transfer-encoding: identity\r\n\r\nabc", 400),
    "a coding in disguise": (HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "a coding behind a tab": (HEAD + b"transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "chunks in HTTP/1.0": (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "a chunk size in disguise": (HEAD + b"transfer-encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n", 400),
    "a chunk size behind a space": (HEAD + b"transfer-encoding: chunked\r\n\r\n 1\r\na\r\n0\r\n\r\n", 400),
    "a chunk size beyond 64 bits": (HEAD + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400),
    "a chunk longer than it says": (HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", 400),
    "chunks with bare line feeds": (HEAD + b"transfer-encoding: chunked\r\n\r\n1\na\n0\n\n", 400),
    "a head with bare line feeds": (b"GET / HTTP/1.1\nhost: a\n\n", 400),
    "a name behind a space": (b"GET / HTTP/1.1\r\n host: a\r\n\r\n", 400),
    "a space before the colon": (HEAD + b"content-length : 3\r\n\r\nabc", 400),
    "a folded header": (HEAD + b"x: a\r\n b\r\n\r\n", 400),
    "NUL in a value": (HEAD + b"x: a\0b\r\n\r\n", 400),
    "NUL in a name": (HEAD + b"x\0: a\r\n\r\n", 400),
    "NUL in the target": (b"GET /\0 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "a carriage return in a value": (HEAD + b"x: a\rb\r\n\r\n", 400),
    "a control character in a value": (HEAD + b"x: a\x01b\r\n\r\n", 400),
    "a byte beyond ASCII in the target": (b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "a byte beyond ASCII in a name": (HEAD + b"\xff: a\r\n\r\n", 400),
    "no name": (HEAD + b": a\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
    "a fragment": (b"GET /#a HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "a target that is no path": (b"GET a HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "a method that there is not": (b"FETCH / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "a method in small letters": (b"get / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nhost: a\r\n\r\n", 400),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\nhost: a\r\n\r\n", 505),
    "HTTP/0.9": (b"GET /\r\n\r\n", 505),
    "a proxy's task": (b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n", 501),
    "another expectation": (HEAD + b"expect: coffee\r\n\r\n", 417),
    "a body beyond the limit": (HEAD + b"content-length: 8388609\r\n\r\n", 413),
    "a header beyond the limit": (HEAD + b"x: " + b"y" * 40_000 + b"\r\n\r\n", 431),
    "headers beyond the limit": (HEAD + b"x: y\r\n" * 8000 + b"\r\n", 431),
    "a target beyond the limit": (b"GET /" + b"y" * 40_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 431),
    "a head without end": (HEAD + b"x: " + b"y" * 100_000, 431),
    "a target without end": (b"GET /" + b"y" * 100_000, 431),
    "empty lines without end": (b"\r\n" * 50_000, 431),
    "trailers beyond the limit": (HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x: y\r\n" * 8000 + b"\r\n", 431),
    "a trailer without end": (HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\nx: " + b"y" * 100_000, 400),
    "an endless word about a chunk": (HEAD + b"transfer-encoding: chunked\r\n\r\n1;" + b"y" * 100_000, 400),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_plain_http_is_refused_at_once(case: str, caplog: pytest.LogCaptureFixture) -> None:
    sent, status = BAD[case]

    async def scenario() -> None:
        async with front() as one:
            loop = asyncio.get_running_loop()
            wire = await one.wire()
            start_s = loop.time()
            wire.say(sent)
            answer = await wire.answer()
            assert loop.time() - start_s < 0.5
            assert answer.status == status, case
            assert answer.headers["connection"] == "close"
            error = json.loads(answer.body)["error"]
            assert (
                error["type"] in {"invalid_request_error", "server_error"} and error["message"] and error["code"] == one.counts[0]
            )
            wire.say(GET)
            assert await wire.ended() == b"", "nothing is answered behind a refusal"
            assert one.asked == [] and len(one.counts) == 1

    run(scenario())
    assert not caplog.records


def test_refusals_take_no_longer_than_50_ms() -> None:
    async def scenario() -> None:
        async with front() as one:
            loop = asyncio.get_running_loop()
            taken = []
            for sent, _ in BAD.values():
                wire = await one.wire()
                start_s = loop.time()
                wire.say(sent)
                await wire.answer()
                taken.append(loop.time() - start_s)
            assert sorted(taken)[len(taken) * 9 // 10] < 0.05

    run(scenario())


def test_a_chunked_body_is_refused_where_it_passes_the_limit() -> None:
    async def scenario() -> None:
        async with front(limits=LIMITS._replace(body_bytes=100_000)) as one:
            wire = await one.wire()
            wire.say(HEAD + b"transfer-encoding: chunked\r\n\r\n", *[b"2710\r\n" + b"x" * 10_000 + b"\r\n"] * 11)
            assert (await wire.answer()).status == 413
            assert one.counts == ["body_too_large"]

    run(scenario())


def test_tiny_chunks_cost_no_more_memory_than_the_body() -> None:
    async def scenario() -> None:
        async with front(limits=LIMITS._replace(body_bytes=2_000_000)) as one:
            before = resident_bytes("VmHWM")
            piece = b"2\r\nxy\r\n" * 50_000
            wire = await one.wire()
            wire.say(HEAD + b"transfer-encoding: chunked\r\n\r\n", *[piece] * 19, b"0\r\n\r\n")
            assert len((await wire.answer()).body) == 1_900_000
            assert resident_bytes("VmHWM") - before < 30e6

    run(scenario())


def test_a_client_that_still_sends_can_read_why_it_is_refused() -> None:
    """Closing at once would make the kernel answer its bytes with a reset, which takes the refusal from it."""

    async def scenario() -> None:
        async with front() as one:
            for _ in range(20):
                wire = await one.wire()
                wire.say(HEAD + b"content-length: 50000000\r\n\r\n", b"x" * 3_000_000)
                await wire.writer.drain()
                assert (await wire.answer()).status == 413
                wire.say(b"x" * 1_000_000)
            wire.leave()

    run(scenario())


def test_one_client_too_many_is_told_so() -> None:
    async def scenario() -> None:
        async with front(limits=LIMITS._replace(connections=2)) as one:
            for _ in range(2):
                assert (await one.ask(GET)).status == 200
            wire = await one.wire()
            assert (await wire.answer()).status == 503
            assert await wire.ended() == b""
            one.wires[0].leave()
            await until(lambda: one.server.connections == 1)
            assert (await one.ask(GET)).status == 200
            assert one.counts == ["connections_full"]

    run(scenario())


# -- slow clients


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"GET / HT", "slow_header"),
        (b"\r\n", "slow_header"),
        (HEAD + b"content-length: 9\r\n\r\n", "slow_body"),
        (HEAD + b"content-length: 9\r\n\r\nabc", "slow_body"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n", "slow_body"),
        (GET + b"GET / HT", None),
    ],
)
def test_a_client_that_stops_in_the_middle_is_cut_off(sent: bytes, code: str | None) -> None:
    async def scenario() -> None:
        async with front(limits=SHORT) as one:
            wire = await one.wire()
            wire.say(sent)
            if code is None:
                assert (await wire.answer()).status == 200
            else:
                answer = await wire.answer()
                assert answer.status == 408 and json.loads(answer.body)["error"]["code"] == code
            assert await wire.ended() == b""
            assert one.counts == ([] if code is None else [code])

    run(scenario())


def test_dripping_does_not_move_the_deadline() -> None:
    async def drip(wire: Wire) -> None:
        while not wire.writer.is_closing():
            wire.say(b"x")
            await asyncio.sleep(0.02)

    async def scenario() -> None:
        async with front(limits=SHORT) as one:
            loop = asyncio.get_running_loop()
            for start in (b"GET /", HEAD + b"content-length: 9999\r\n\r\n"):
                wire = await one.wire()
                start_s = loop.time()
                wire.say(start)
                dripping = asyncio.create_task(drip(wire))
                assert (await wire.answer()).status == 408
                assert 0.15 < loop.time() - start_s < 1.0
                dripping.cancel()
                await asyncio.gather(dripping, return_exceptions=True)

    run(scenario())


def test_a_body_that_comes_slowly_but_surely_is_waited_for() -> None:
    async def scenario() -> None:
        async with front(limits=SHORT) as one:
            wire = await one.wire()
            wire.say(HEAD + b"content-length: 4000\r\n\r\n")
            for _ in range(8):
                wire.say(b"x" * 500)
                await asyncio.sleep(0.1)  # 5 kB/s, where 1 is asked for; 0.8 s, where a window has 0.2
            assert len((await wire.answer()).body) == 4000

    run(scenario())


def test_a_silent_client_is_closed_without_a_word() -> None:
    async def scenario() -> None:
        async with front(limits=SHORT) as one:
            fresh, kept = await one.wire(), await one.wire()
            kept.say(GET)
            await kept.answer()
            loop = asyncio.get_running_loop()
            start_s = loop.time()
            assert await fresh.ended() == b"" and 0.15 < loop.time() - start_s < 0.35, "as long as a head"
            assert await kept.ended() == b"" and loop.time() - start_s > 0.35, "as long as keepalive_s"
            assert one.counts == []

    run(scenario())


def test_a_handler_may_take_longer_than_any_limit() -> None:
    async def slow(request: Request, response: Response) -> None:
        await asyncio.sleep(0.7)
        response.send(200, [], b"late")

    async def scenario() -> None:
        async with front(slow, SHORT) as one:
            assert (await one.ask(GET)).body == b"late"

    run(scenario())


def test_a_client_that_stops_reading_is_cut_off() -> None:
    left: list[str] = []

    async def flood(request: Request, response: Response) -> None:
        response.start(200, [])
        try:
            while True:
                await response.write(b"x" * 100_000)
        except asyncio.CancelledError:
            left.append("cancelled")
            raise

    async def scenario() -> None:
        async with front(flood, SHORT) as one:
            wire = await one.wire()
            wire.reader._transport.pause_reading()  # type: ignore[attr-defined]
            wire.say(GET)
            await until(lambda: left == ["cancelled"])
            assert one.counts[0] == "slow_reader"
            await until(lambda: one.server.connections == 0)

    run(scenario())


def test_a_writer_waits_for_a_slow_reader() -> None:
    written = 0

    async def flood(request: Request, response: Response) -> None:
        nonlocal written
        response.start(200, [])
        for _ in range(300):
            await response.write(b"x" * 100_000)
            written += 100_000
        response.end()

    async def scenario() -> None:
        async with front(flood) as one:
            wire = await one.wire()
            wire.reader._transport.pause_reading()  # type: ignore[attr-defined]
            wire.say(GET)
            await until(lambda: written > 0)
            before = -1
            while before != written:
                before = written
                await asyncio.sleep(0.05)
            assert before < 15_000_000, "kernel buffers hold a few MB, we hold 64 kB"
            wire.reader._transport.resume_reading()  # type: ignore[attr-defined]
            assert len((await wire.answer()).body) == 30_000_000

    run(scenario())


def test_senders_of_halves_take_nothing_from_the_others() -> None:
    """500 partial heads and 500 partial bodies (S1): all are cut off in time, and whoever asks properly is answered as before."""

    async def scenario() -> None:
        async with front(limits=LIMITS._replace(header_s=1.0, body_s=1.0)) as one:
            halves = [await one.wire() for _ in range(1000)]
            for place, wire in enumerate(halves):
                wire.say(b"GET / HTTP/1.1\r\nx-" if place % 2 else HEAD + b"content-length: 99\r\n\r\nabc")
            good = await one.wire()
            loop = asyncio.get_running_loop()
            end_s, taken = loop.time() + 0.5, []
            while loop.time() < end_s:
                start_s = loop.time()
                good.say(GET)
                assert (await good.answer()).status == 200
                taken.append(loop.time() - start_s)
            assert sorted(taken)[len(taken) * 99 // 100] < 0.05
            assert [(await wire.answer()).status for wire in halves] == [408] * 1000
            assert one.counts.count("slow_header") == one.counts.count("slow_body") == 500

    run(scenario())


def test_five_hundred_idle_connections_hold_at_most_20_mb() -> None:
    async def scenario() -> None:
        async with front() as one:
            (await one.wire()).say(GET)
            await one.wires[0].answer()
            before = resident_bytes("VmRSS")
            sockets = []
            for _ in range(500):
                sockets.append(socket.create_connection((HOST, one.port)))
                sockets[-1].sendall(GET)
            await until(lambda: len(one.asked) == 501)
            assert resident_bytes("VmRSS") - before <= 20e6
            for each in sockets:
                each.close()

    run(scenario())


# -- clients that leave


@pytest.mark.parametrize("how", ["reset", "close", "half"])
@pytest.mark.parametrize("when", ["before the answer", "in a stream"])
def test_a_handler_is_cancelled_when_its_client_leaves(how: str, when: str) -> None:
    cancelled: list[bool] = []

    async def wait(request: Request, response: Response) -> None:
        if when == "in a stream":
            response.start(200, [])
            await response.write(b"x")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(response.ended)
            response.end() if response.started else response.send(200, [], b"to nobody")
            raise

    async def scenario() -> None:
        async with front(wait) as one:
            wire = await one.wire()
            wire.say(GET)
            await until(lambda: len(one.asked) == 1)
            if how == "reset":
                wire.leave()
            elif how == "close":
                wire.writer.close()
            else:
                wire.writer.write_eof()
            assert await until(lambda: cancelled == [True]) < 0.1
            assert one.counts == ["client_left"]
            await until(lambda: one.server.connections == 0)

    run(scenario())


def test_a_client_that_pipelines_and_leaves_takes_all_of_it_back() -> None:
    async def scenario() -> None:
        async with front(forever) as one:
            wire = await one.wire()
            wire.say(GET * 3)
            await until(lambda: len(one.asked) == 1)
            wire.leave()
            await until(lambda: one.server.connections == 0)
            assert len(one.asked) == 1 and one.counts == ["client_left"]

    run(scenario())


def test_work_behind_the_answer_is_not_cancelled() -> None:
    gate, done = asyncio.Event(), []

    async def settle(request: Request, response: Response) -> None:
        response.send(200, [], b"")
        await gate.wait()
        done.append(request.path)

    async def scenario() -> None:
        async with front(settle) as one:
            wire = await one.wire()
            wire.say(GET)
            await wire.answer()
            wire.say(GET)
            await wire.answer()
            wire.leave()
            await until(lambda: one.server.connections == 0)
            gate.set()
            await until(lambda: done == ["/", "/"])
            assert one.counts == []

    run(scenario())


def test_a_thousand_clients_that_leave_leave_nothing_behind() -> None:
    running = 0

    async def count(request: Request, response: Response) -> None:
        nonlocal running
        running += 1
        try:
            if request.path == "/stream":
                response.start(200, [])
                await response.write(b"x" * 1000)
            await asyncio.Event().wait()
        finally:
            running -= 1

    async def scenario() -> None:
        async with front(count) as one:
            tasks = len(asyncio.all_tasks())
            for _ in range(10):
                wires = [await one.wire() for _ in range(100)]
                for place, wire in enumerate(wires):
                    wire.say(GET if place % 2 else GET.replace(b"/ ", b"/stream "))
                await until(lambda: running == 100)
                for wire in wires:
                    wire.leave()
                await until(lambda: running == one.server.connections == 0)
            assert one.counts == ["client_left"] * 1000
            assert len(asyncio.all_tasks()) == tasks

    run(scenario())


def test_an_answer_goes_out_to_a_client_that_has_ended_its_half_behind_it() -> None:
    async def scenario() -> None:
        async with front(lambda request, response: big(response)) as one:
            wire = await one.wire()
            wire.say(GET)
            await until(lambda: len(one.asked) == 1)
            await asyncio.sleep(0.01)
            wire.writer.write_eof()
            assert len((await wire.answer()).body) == 5_000_000

    async def big(response: Response) -> None:
        response.send(200, [], b"x" * 5_000_000)

    run(scenario())


# -- handlers that fail


def test_a_handler_that_raises_is_a_500_that_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: Request, response: Response) -> None:
        raise KeyError("a prompt that nobody may read")

    async def scenario() -> None:
        async with front(fail) as one:
            wire = await one.wire()
            for _ in range(2):
                wire.say(GET)
                answer = await wire.answer()
                assert answer.status == 500
                assert json.loads(answer.body)["error"]["code"] == "handler_failed"
                assert b"prompt" not in answer.body and b"Traceback" not in answer.body
            assert one.counts == ["handler_failed"] * 2

    with caplog.at_level(logging.ERROR):
        run(scenario())
    assert "KeyError at" in caplog.text and "test_http_server.py" in caplog.text
    assert "prompt" not in caplog.text


def test_a_handler_that_answers_nothing_is_a_500() -> None:
    async def silent(request: Request, response: Response) -> None:
        pass

    async def scenario() -> None:
        async with front(silent) as one:
            assert (await one.ask(GET)).status == 500
            assert one.counts == ["handler_failed"]

    run(scenario())


@pytest.mark.parametrize("how", ["raises", "stops", "aborts"])
def test_a_stream_that_is_broken_off_does_not_look_whole(how: str) -> None:
    async def half(request: Request, response: Response) -> None:
        response.start(200, [])
        await response.write(b"half")
        if how == "raises":
            raise OSError("gone")
        if how == "aborts":
            response.abort()

    async def scenario() -> None:
        async with front(half) as one:
            answer = await one.ask(GET)
            assert answer.body in {b"half", b""} and not answer.whole
            await until(lambda: one.server.connections == 0)
            assert one.counts == ([] if how == "aborts" else ["handler_failed"])

    run(scenario())


def test_an_answer_is_begun_once() -> None:
    caught: list[str] = []

    async def twice(request: Request, response: Response) -> None:
        for early in (response.end, lambda: response.write(b"x").send(None)):
            with pytest.raises(RuntimeError, match="not been started"):
                early()
        response.send(200, [], b"once")
        for late in (lambda: response.send(200, [], b"twice"), lambda: response.start(200, [])):
            with pytest.raises(RuntimeError, match="started already"):
                late()
        caught.append("all")

    async def scenario() -> None:
        async with front(twice) as one:
            assert (await one.ask(GET)).body == b"once"
            assert caught == ["all"] and one.counts == []

    run(scenario())


# -- the end


def test_a_drain_ends_what_is_under_way_and_takes_nothing_new() -> None:
    gate = asyncio.Event()

    async def gated(request: Request, response: Response) -> None:
        response.start(200, [])
        await response.write(b"half ")
        await gate.wait()
        await response.write(b"whole")
        response.end()

    async def scenario() -> None:
        async with front(gated) as one:
            working, idle, late = await one.wire(), await one.wire(), await one.wire()
            working.say(GET)
            await until(lambda: len(one.asked) == 1)
            draining = asyncio.create_task(one.server.drain(5.0))
            await asyncio.sleep(0)
            with pytest.raises(ConnectionRefusedError):
                await one.wire()
            late.say(GET)
            await until(lambda: len(one.asked) == 2)
            gate.set()
            answers = [await working.answer(), await late.answer()]
            assert [answer.body for answer in answers] == [b"half whole"] * 2
            assert answers[1].headers["connection"] == "close", "asked in the drain"
            assert await idle.ended() == await working.ended() == b""
            await draining
            assert one.server.connections == 0 and one.counts == []

    run(scenario())


def test_a_drain_that_takes_too_long_cuts_the_rest() -> None:
    async def scenario() -> None:
        async with front(forever) as one:
            wire = await one.wire()
            wire.say(GET)
            await until(lambda: len(one.asked) == 1)
            await one.server.drain(0.05)
            assert await wire.ended() == b""
            assert one.counts == ["drain_cut", "cut"]

    run(scenario())


def test_a_drain_of_nothing_is_over_at_once() -> None:
    async def scenario() -> None:
        async with front() as one:
            await one.server.drain(60.0)
            await one.server.drain(60.0)

    run(scenario())


def test_a_server_listens_in_more_than_one_place_and_says_where() -> None:
    async def scenario() -> None:
        async with front() as one:
            second = await one.server.listen(HOST, 0)
            assert second != one.port
            wire = Wire(*await asyncio.open_connection(HOST, second))
            wire.say(GET)
            assert (await wire.answer()).status == 200
            wire.leave()
            with pytest.raises(OSError, match="in use"):
                await one.server.listen(HOST, second)

    run(scenario())


def test_plain_asyncio_will_do() -> None:
    async def scenario() -> None:
        async with front() as one:
            wire = await one.wire()
            wire.say(post(b"abc"), b"x" * 70_000 + b"\r\n\r\n")
            assert (await wire.answer()).body == b"abc"
            assert (await wire.answer()).status in {400, 431}
            await one.server.drain(1.0)

    asyncio.run(scenario())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost -addext".split()
    subprocess.run(
        [*words, "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    return certificate, key


def test_a_server_speaks_tls(certificate: tuple[Path, Path]) -> None:
    async def scenario() -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*map(os.fspath, certificate))
        trust = ssl.create_default_context(cafile=os.fspath(certificate[0]))
        async with front() as one:
            port = await one.server.listen(HOST, 0, tls)
            wire = Wire(*await asyncio.open_connection(HOST, port, ssl=trust, server_hostname="localhost"))
            body = b"x" * 1_000_000
            wire.say(post(body), b"BAD\r\n\r\n")
            assert (await wire.answer()).body == body
            assert (await wire.answer()).status == 400
            assert await wire.ended() == b""
            wire.leave()

    run(scenario())


def test_limits_are_those_of_the_settings_file() -> None:
    from live_bridge.config import node_settings

    limits = node_settings(None, {}).limits
    assert Limits() == Limits(
        limits.header_kb * 1024,
        limits.body_mb * 2**20,
        limits.header_s,
        limits.body_s,
        1000,
        limits.keepalive_s,
        limits.connections,
    )


def test_the_sweep_looks_at_all_connections_at_once() -> None:
    """One timer for the server, however many connections there are."""

    async def scenario() -> None:
        server = Server(forever, LIMITS, lambda name: None)
        port = await server.listen(HOST, 0)
        loop = asyncio.get_running_loop()
        called = []
        original = loop.call_later
        server._loop = type("Loop", (), {"__getattr__": lambda self, name: getattr(loop, name)})()  # type: ignore[assignment]
        server._loop.call_later = lambda *words: called.append(words) or original(*words)  # type: ignore[method-assign, assignment]
        wires = [Wire(*await asyncio.open_connection(HOST, port)) for _ in range(50)]
        for wire in wires:
            wire.say(GET)
        await until(lambda: len(server._tasks) == 50)
        assert called == []
        server.close()
        await until(lambda: server.connections == 0)
        for wire in wires:
            wire.leave()

    run(scenario())
