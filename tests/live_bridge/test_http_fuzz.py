"""Fuzzing: what a strict parser of our own would not read alike is refused; nothing hidden in a body becomes a request."""

import asyncio
import json
import random
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from live_bridge.http.client import Client, Line
from live_bridge.http.incoming import SLICE_BYTES, Incoming
from live_bridge.http.message import FRAMING, HttpError, Limits, Refusal, Request, Response
from live_bridge.http.reply import Answered
from tests.live_bridge.http_wire import HOST, LIMITS, SOON_S, Wire, chunked, front, post, until

HIDDEN = b"GET /hidden HTTP/1.1\r\nhost: a\r\n\r\n"
"""What a smuggler wants to be taken for a request."""
SMALL = LIMITS._replace(header_bytes=2000, body_bytes=5000)


class Seen(NamedTuple):
    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Reading(NamedTuple):
    requests: list[Seen]
    status: int  # of the refusal; 0: none


def read(pieces: list[bytes], limits: Limits = LIMITS) -> Reading:
    """Read with ours."""
    found: list[Seen] = []

    def whole(request: Request, keep: bool, old: bool) -> None:
        target = f"{request.path}?{request.query}" if request.query else request.path
        found.append(Seen(request.method, target, tuple(request.headers), request.body))
        if not keep:
            raise Refusal(0, "", "the connection ends here")

    incoming = Incoming(limits, HOST, whole)
    try:
        for piece in pieces:
            for place in range(0, len(piece), SLICE_BYTES):
                if not incoming.feed(piece[place : place + SLICE_BYTES]):
                    return Reading(found, 0)
    except Refusal as refusal:
        return Reading(found, refusal.status)
    return Reading(found, 0)


LINE = re.compile(rb"([A-Z-]+) +([\x21-\x7e]+) +HTTP/1\.([01])")
FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\x80-\xff\t\x0c]*)")
CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})(;[\x20-\x7e\x80-\xff\t]*)?\r\n")


class FoulError(Exception):
    """Not plain HTTP."""


def strictly(text: bytes) -> Iterator[Seen]:
    """Read by the letter of RFC 9112, with nothing of ours: yields whole requests up to the first foul or unfinished one."""
    place = 0
    while True:
        while text[place : place + 1] in {
            b"\r",
            b"\n",
        }:  # empty lines of any kind before a request: harmless, and the parser's habit
            place += 1
        end = text.find(b"\r\n\r\n", place)
        if end < 0:
            return
        first, *lines = text[place:end].split(b"\r\n")
        start, fields = LINE.fullmatch(first), [FIELD.fullmatch(line) for line in lines]
        if start is None or not all(fields):
            return
        headers = tuple((field[1].lower(), field[2].rstrip(b" \t")) for field in fields if field is not None)
        try:
            body, place = body_of(text, end + 4, headers)
        except FoulError:
            return
        target = start[2].decode()
        if re.match("https?://", target, re.IGNORECASE):
            target = re.sub("^[^:]*://[^/?]*/?", "/", target)
        target = target.removesuffix("?") if target.count("?") == 1 else target
        yield Seen(start[1].decode(), target, headers, body)


def body_of(text: bytes, place: int, headers: tuple[tuple[bytes, bytes], ...]) -> tuple[bytes, int]:
    """Cut out a body; where two ways of telling its end meet, or one is odd, there is none."""
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if len(lengths) + len(codings) > 1 or (codings and codings != [b"chunked"]):
        raise FoulError
    if lengths:
        if not re.fullmatch(rb"[0-9]{1,18}", lengths[0]) or place + int(lengths[0]) > len(text):
            raise FoulError
        return text[place : place + int(lengths[0])], place + int(lengths[0])
    body = b""
    while codings:
        start = CHUNK.match(text, place)
        if start is None:
            raise FoulError
        size, place = int(start[1], 16), start.end()
        if size == 0:
            while not text.startswith(b"\r\n", place):
                end = text.find(b"\r\n", place)
                if end < 0 or FIELD.fullmatch(text[place:end]) is None:
                    raise FoulError
                place = end + 2
            return body, place + 2
        if text[place + size : place + size + 2] != b"\r\n":
            raise FoulError
        body += text[place : place + size]
        place += size + 2
    return body, place


def cut(chance: random.Random, text: bytes) -> list[bytes]:
    """Cut anywhere."""
    places = sorted(chance.randrange(len(text) + 1) for _ in range(chance.choice([0, 1, 2, 5, 30])))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True) if start < end]


# -- requests by the rules

NAMES = st.text("aB0!#$%&'*+.^_|~-", min_size=1, max_size=6).map("x-".__add__)
VALUES = st.text('aZ09 ,;:="()\t\\/{}é', max_size=12).map(str.strip)


def some_request(chance: random.Random, place: int) -> bytes:
    """A plain request, with a hidden one in its body."""
    body = b"".join(chance.choice([HIDDEN, b"\r\n", b"0\r\n\r\n", b"{}", chance.randbytes(20)]) for _ in range(chance.randrange(4)))
    extra = b"".join(chance.choice([b"x-a: b\r\n", b"accept: */*\r\n", b"X-Empty:\r\n"]) for _ in range(chance.randrange(3)))
    head = b"POST /%d?q=%d HTTP/1.1\r\nHost: a\r\n%b" % (place, place, extra)
    if chance.random() < 0.5:
        return head + b"content-length: %d\r\n\r\n" % len(body) + body
    size = chance.randrange(1, 50)
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(*[body[at : at + size] for at in range(0, len(body), size)])


TRICKS = [
    b"Content-Length: %d\r\nContent-Length: %d\r\n",
    b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n",
    b"Content-Length: %d\r\nTransfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding: identity, chunked\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n",
    b"Transfer-Encoding: \x00chunked\r\n",
    b"Transfer-Encoding: chunked\x00\r\n",
    b'Transfer-Encoding: "chunked"\r\n',
    b"Transfer-Encoding : chunked\r\nContent-Length: %d\r\n",
    b" Transfer-Encoding: chunked\r\nContent-Length: %d\r\n",
    b"X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: %d\r\n",
    b"X: y\nTransfer-Encoding: chunked\r\nContent-Length: %d\r\n",
    b"X: y\rTransfer-Encoding: chunked\r\nContent-Length: %d\r\n",
    b"Transfer\xc4\xb0-Encoding: chunked\r\nContent-Length: 0%d\r\nContent-Length : 1\r\n",
    b"Content-Length: %d, %d\r\n",
    b"Content-Length: +%d\r\n",
    b"Content-Length: 0x%x\r\n",
    b"Content-Length: %d \r\nContent-Length:\r\n",
    b"Content-Length: 1_%d\r\n",
    b"Content-Length: 1844674407370955161%d\r\n",
    b"Content_Length: %d\r\nTransfer-Encoding: gzip\r\n",
]


def some_trick(chance: random.Random) -> bytes:
    """A request whose end can be told in two ways: with one of them, a hidden request follows it."""
    body = chance.choice([b"0\r\n\r\n", b"", b"1\r\nx\r\n0\r\n\r\n"]) + HIDDEN
    trick = chance.choice(TRICKS)
    sizes = trick.count(b"%")
    short, long = body.index(HIDDEN), len(body)
    framing = trick % tuple(chance.choice([short, long, 0]) for _ in range(sizes))
    return b"POST /trick HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n" + body


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]),
            st.text("/ab.%?=&~:@[|", max_size=20).map("/".__add__),
            st.lists(st.tuples(NAMES, VALUES), max_size=4),
            st.binary(max_size=300),
            st.integers(0, 3),
        ),
        max_size=5,
    ),
    st.randoms(use_true_random=False),
)
def test_what_is_written_by_the_rules_is_read_as_written(
    requests: list[tuple[str, str, list[tuple[str, str]], bytes, int]], chance: random.Random
) -> None:
    text, meant = b"", []
    for method, target, fields, body, kind in requests:
        lines = [("Host", "a"), *fields]
        size = chance.randrange(1, 100)
        pieces = [body[place : place + size] for place in range(0, len(body), size)]
        lines.append(("Transfer-Encoding", "chunked") if kind == 0 else ("content-length", str(len(body))))
        head = "".join(f"{name}:{chance.choice(['', ' ', '  ', chr(9)])}{value}\r\n" for name, value in lines)
        text += f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + (chunked(*pieces) if kind == 0 else body)
        path, mark, query = target.partition("?")
        headers = tuple((name.lower().encode(), value.encode()) for name, value in lines)
        meant.append(Seen(method, path + (f"?{query}" if mark and query else ""), headers, body))
    assert read(cut(chance, text)) == Reading(meant, 0)


def check_plain(seed: int) -> None:
    """Some plain requests, cut anywhere, are read; the strict parser agrees."""
    chance = random.Random(seed)
    text = b"".join(some_request(chance, place) for place in range(chance.randrange(1, 5)))
    found = read(cut(chance, text))
    assert found == Reading(list(strictly(text)), 0), seed
    assert all(request.target != "/hidden" for request in found.requests)


def check_trick(seed: int) -> None:
    """A trick is refused, and nothing behind it is read."""
    chance = random.Random(seed)
    before = b"".join(some_request(chance, place) for place in range(chance.randrange(3)))
    text = before + some_trick(chance) + b"".join(some_request(chance, place) for place in range(2))
    found = read(cut(chance, text))
    assert found.requests == list(strictly(before)), (seed, text)
    assert found.status in {400, 413, 431}, (seed, text)


def check_foul(seed: int) -> None:
    """Requests with bytes changed, lost or added: ours never reads what the strict parser does not read alike."""
    chance = random.Random(seed)
    text = bytearray(b"".join(some_request(chance, place) for place in range(chance.randrange(1, 4))))
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        place = chance.randrange(len(text))
        kind = chance.randrange(4)
        if kind == 0:
            text[place] = chance.choice(b"\r\n\0 \t:,;0129afAF/xX\x0b\x7f\xff-")
        elif kind == 1:
            del text[place : place + chance.choice([1, 1, 3])]
        elif kind == 2:
            text[place:place] = chance.choice(
                [b"\r\n", b"\n", b"\r", b" ", b"\0", b"0\r\n\r\n", b"chunked", HIDDEN, b"Content-Length: 3\r\n"]
            )
        else:
            text[place:place] = text[chance.randrange(len(text)) :][: chance.randrange(40)]
        if not text:
            return
    whole = bytes(text)
    found, meant = read(cut(chance, whole)), list(strictly(whole))
    assert found.requests == meant[: len(found.requests)], (seed, whole)
    assert found == read([whole]) or found.status, (seed, "where it is cut must not matter")
    assert found.requests == read([whole]).requests, seed


CHECKS = [check_plain, check_trick, check_foul]


@pytest.mark.parametrize("check", CHECKS)
def test_three_thousand_requests_hide_nothing(check: object) -> None:
    for seed in range(3000):
        check(seed)  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_a_hundred_thousand_requests_hide_nothing(check: object) -> None:
    for seed in range(100_000, 200_000):
        check(seed)  # type: ignore[operator]


def test_the_strict_parser_finds_what_is_hidden_from_the_lenient() -> None:
    """The check can fail: one who takes the length where both are given would see the hidden request."""
    text = b"POST /trick HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN
    assert list(strictly(text)) == []
    assert [seen.target for seen in strictly(text.replace(b"Transfer-Encoding: chunked\r\n", b""))] == ["/trick", "/hidden"]


def test_limits_hold_wherever_a_request_is_cut() -> None:
    for seed in range(500):
        chance = random.Random(seed)
        size = chance.choice([100, 1900, 2100, 4999, 5001, 20_000])
        kind = chance.randrange(4)
        if kind == 0:
            text, most, status = b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * size + b"\r\n\r\n", SMALL.header_bytes, 431
        elif kind == 1:
            text, most, status = b"GET /" + b"y" * size + b" HTTP/1.1\r\nhost: a\r\n\r\n", SMALL.header_bytes, 431
        elif kind == 2:
            text, most, status = post(b"y" * size), SMALL.body_bytes, 413
        else:
            text, most, status = (
                b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"y" * size),
                SMALL.body_bytes,
                413,
            )
        found = read(cut(chance, text), SMALL)
        if size > most:
            assert found == Reading([], status), seed
        else:
            assert len(found.requests) == 1 and found.status == 0, seed


# -- over sockets


async def volley(port: int, seeds: list[int]) -> int:
    """Send requests of all kinds on one connection after the other; returns how many answers came, all of them HTTP."""
    answers = 0
    for seed in seeds:
        chance = random.Random(seed)
        text = b"".join(some_request(chance, place) for place in range(chance.randrange(1, 4)))
        if seed % 3 == 1:
            text += some_trick(chance)
        elif seed % 3 == 2:
            place = chance.randrange(len(text))
            text = text[:place] + chance.randbytes(chance.randrange(1, 9)) + text[place:]
            text = text.replace(b"/hidden", b"/viewed")  # with other bytes, it may come into view by the rules
        wire = Wire(*await asyncio.open_connection(HOST, port))
        for piece in cut(chance, text):
            wire.say(piece)
            if chance.random() < 0.3:
                await asyncio.sleep(0)
        wire.say(b"GET /last HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        try:
            while True:
                answer = await wire.answer()
                answers += 1
                if answer.status != 200:
                    assert answer.headers["connection"] == "close" and b"Traceback" not in answer.body
                    assert json.loads(answer.body)["error"]["code"]
        except (asyncio.IncompleteReadError, ConnectionResetError):
            pass
        except TimeoutError:
            assert seed % 3, "a request was not answered"  # a foul one may have no end
        finally:
            wire.leave()
    return answers


async def echo(request: Request, response: Response) -> None:
    assert request.path != "/hidden"
    if len(request.body) % 2:
        response.start(200, [])
        await response.write(request.body)
        response.end()
    else:
        response.send(200, [], request.body)


def shoot(seeds: range, caplog: pytest.LogCaptureFixture) -> None:
    tracebacks: list[dict[str, object]] = []

    async def scenario() -> int:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: tracebacks.append(context))
        async with front(echo, LIMITS._replace(header_s=0.3, body_s=0.3, keepalive_s=0.5)) as one:
            parts = [list(seeds[start::20]) for start in range(20)]
            answers = sum(await asyncio.gather(*(volley(one.port, part) for part in parts)))
            assert "handler_failed" not in one.counts
            await until(lambda: not one.server._tasks)  # type: ignore[attr-defined]
            return answers

    answers = (asyncio if len(seeds) < 100 else uvloop).run(scenario())
    assert answers > len(seeds)
    assert tracebacks == [] and not caplog.records


@pytest.mark.parametrize("count", [90, 2000])
def test_volleys_over_sockets_leave_no_traceback(count: int, caplog: pytest.LogCaptureFixture) -> None:
    shoot(range(count), caplog)


@pytest.mark.slow
def test_a_hundred_thousand_requests_over_sockets_leave_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    shoot(range(10_000, 60_000), caplog)


# -- answers


class Still:
    """A transport that goes nowhere."""

    closed = False

    def write(self, data: bytes) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True


async def hear(pieces: list[bytes]) -> tuple[int, list[tuple[bytes, bytes]], bytes] | str:
    """Read an answer with ours; its error, where it is broken."""
    line = Line(Client(), "http://a:80")
    transport = Still()
    line.connection_made(transport)  # type: ignore[arg-type]
    reply = Answered(line, "POST", "http://a/")
    line.ask(reply, float("inf"))
    for piece in pieces:
        if not transport.closed:
            line.data_received(piece)
    if not transport.closed:
        line.eof_received()
    line.connection_lost(None)
    try:
        if not reply.head and reply.error is not None:
            raise reply.error
        return reply.status, [pair for pair in reply.headers if pair[0] not in FRAMING], await reply.body(10**6)
    except HttpError as error:
        return str(error)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(200, 599).filter(lambda status: status not in {204, 304}),
    st.lists(st.tuples(NAMES, VALUES), max_size=4),
    st.binary(max_size=2000),
    st.sampled_from(["length", "chunks", "end"]),
    st.randoms(use_true_random=False),
)
def test_an_answer_by_the_rules_is_read_as_written(
    status: int, fields: list[tuple[str, str]], body: bytes, framing: str, chance: random.Random
) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    size = chance.randrange(1, 300)
    if framing == "length":
        text = f"HTTP/1.1 {status} x\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body
    elif framing == "chunks":
        pieces = [body[place : place + size] for place in range(0, len(body), size)]
        text = f"HTTP/1.1 {status} x\r\n{head}transfer-encoding: chunked\r\n\r\n".encode() + chunked(*pieces)
    else:
        text = f"HTTP/1.1 {status} x\r\n{head}\r\n".encode() + body

    async def scenario() -> None:
        meant = [(name.lower().encode(), value.encode()) for name, value in fields]
        assert await hear(cut(chance, text)) == (status, meant, body)
        if framing != "end":
            for place in {chance.randrange(len(text)), len(text) - 1}:
                assert isinstance(await hear(cut(chance, text[:place])), str), "one that is cut short is never taken for whole"

    asyncio.run(scenario())


def test_three_thousand_foul_answers_are_read_or_broken_and_never_more() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + SOON_S * 4
        for seed in range(3000):
            chance = random.Random(seed)
            body = chance.randbytes(chance.randrange(50))
            text = bytearray(b"HTTP/1.1 200 OK\r\nx: y\r\n")
            text += chance.choice(
                [b"transfer-encoding: chunked\r\n\r\n" + chunked(body or b"x"), b"content-length: %d\r\n\r\n" % len(body) + body]
            )
            for _ in range(chance.choice([1, 2, 5])):
                place = chance.randrange(len(text))
                text[place : place + chance.randrange(3)] = chance.choice(
                    [b"", b"\r\n", b"\0", b"\n", b"9", b"chunked", chance.randbytes(3)]
                )
            found = await hear(cut(chance, bytes(text)))
            assert isinstance(found, (str, tuple))
            if isinstance(found, tuple):
                assert found == await hear([bytes(text)]), seed
            assert loop.time() < end_s

    asyncio.run(scenario())
