"""Peers over real sockets: our server and client, a door, a guard; what the parts promise holds when they are put together."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence

import pytest

from live_bridge.http.client import Client
from live_bridge.http.message import Handler, Headers, HttpError, Limits, Request, Response
from live_bridge.http.server import Server
from live_bridge.identity import Identity
from live_bridge.peers.addresses import AddressError, Guard
from live_bridge.peers.envelope import Door, Message
from live_bridge.peers.frames import Decoder, Encoder, Frame, FrameError, Receipt
from live_bridge.peers.replays import Bounds, Replays

NET, TTL_S = "test", 30.0
ALICE, BOB = Identity(bytes([1]) * 32), Identity(bytes([2]) * 32)
PATH = "/market/v1/offer"


def door(identity: Identity, counts: list[str]) -> Door:
    replays = Replays(None, Bounds(2 * TTL_S, 1000, 1000, 4096, 1 << 20), time.time())
    return Door(identity, NET, TTL_S, replays, counts.append)


def with_server(handler: Handler, use: Callable[[Client, int], Awaitable[None]]) -> None:
    """Serve on a free port of this machine while `use` runs."""

    async def run() -> None:
        server, client = Server(handler, Limits(), lambda name: None), Client()
        port = await server.listen("127.0.0.1", 0)
        try:
            await use(client, port)
        finally:
            await client.close()
            server.close()

    asyncio.run(run())


def raw_request(headers: Headers, body: bytes) -> bytes:
    head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    return (
        b"POST %s HTTP/1.1\r\nhost: bob\r\nconnection: close\r\n%bcontent-length: %d\r\n\r\n" % (PATH.encode(), head, len(body))
        + body
    )


async def exchange(port: int, raw: bytes) -> tuple[int, bytes]:
    """Send bytes, half-close, and read status and body until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(raw)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer[9:12]) if answer else 0, answer.partition(b"\r\n\r\n")[2]


def test_a_recorded_message_has_one_effect_however_often_it_is_sent() -> None:
    effects: list[bytes] = []
    counts: list[str] = []
    bob = door(BOB, counts)

    async def handle(request: Request, response: Response) -> None:
        opened = bob.open(request, time.time())
        if not isinstance(opened, Message):
            response.send(opened.status, opened.headers, opened.body)
            return
        effects.append(opened.body)
        body = b'{"effect":%d}' % len(effects)
        response.send(200, bob.reply(opened, 200, body), body)

    async def use(client: Client, port: int) -> None:
        alice = door(ALICE, counts)
        bodies = [b'{"offer":%d}' % k for k in range(10)]
        recorded = [(alice.seal(BOB.id, "POST", PATH, body, time.time()), body) for body in bodies]
        for sent, body in recorded:
            async with asyncio.timeout(5.0):
                reply = await client.request("POST", f"http://bob.invalid:{port}{PATH}", sent, body, address="127.0.0.1")
                answer = await reply.body(4096)
            assert reply.status == 200 and alice.believes(sent, BOB.id, 200, reply.headers, answer)
        again = [k for k in range(10) for _ in range(100)]
        random.Random(1).shuffle(again)
        for k in again:
            assert await exchange(port, raw_request(*recorded[k])) == (200, b'{"effect":%d}' % (k + 1))
        assert effects == bodies and counts == ["duplicate"] * 1000

    with_server(handle, use)


def test_no_changed_byte_of_a_signed_head_or_body_is_taken_on_the_wire() -> None:
    taken: list[Message] = []
    bob = door(BOB, [])

    async def handle(request: Request, response: Response) -> None:
        opened = bob.open(request, time.time())
        if isinstance(opened, Message):
            taken.append(opened)
        response.send(200, [], b"")

    async def use(client: Client, port: int) -> None:
        sent, body = door(ALICE, []).seal(BOB.id, "POST", PATH, b'{"offer":1}', time.time()), b'{"offer":1}'
        raw = raw_request(sent, body)
        signed = [raw.index(value) + k for _, value in sent for k in range(len(value))]
        signed += range(raw.index(PATH.encode()), raw.index(PATH.encode()) + len(PATH))
        signed += range(len(raw) - len(body), len(raw))
        chance = random.Random(2)
        for at in signed:
            flip = chance.randrange(1, 256)
            await exchange(port, raw[:at] + bytes([raw[at] ^ flip]) + raw[at + 1 :])
            assert not taken, f"byte {at} ^ {flip}"
        await exchange(port, raw)
        assert [message.body for message in taken] == [body]

    with_server(handle, use)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_never_followed(status: int) -> None:
    asked: list[str] = []

    async def handle(request: Request, response: Response) -> None:
        asked.append(request.path)
        port = int(request.header(b"host").rpartition(b":")[2])
        response.send(status, [(b"location", b"http://127.0.0.1:%d/latest/meta-data" % port)], b"")

    async def use(client: Client, port: int) -> None:
        for method in ("GET", "POST"):
            reply = await client.request(method, f"http://127.0.0.1:{port}{PATH}")
            body = await reply.body(100)
            assert reply.status == status
            counts: list[str] = []
            sent = door(ALICE, []).seal(BOB.id, method, PATH, b"", time.time())
            assert not door(ALICE, counts).believes(sent, BOB.id, reply.status, reply.headers, body)
            assert counts == ["reply_unsigned"]
        assert asked == [PATH, PATH]

    with_server(handle, use)


def test_a_pinned_name_is_connected_to_where_it_was_checked() -> None:
    """The name of the URL goes into Host alone; whatever it stands for by now, the checked address is used."""
    hosts: list[bytes | None] = []
    answers = [["127.0.0.1"], ["169.254.169.254"]]

    async def rebinding(host: str, port: int) -> Sequence[str]:
        return answers.pop(0)

    async def handle(request: Request, response: Response) -> None:
        hosts.append(request.header(b"host"))
        response.send(200, [], b"here")

    async def use(client: Client, port: int) -> None:
        url = f"http://evil.invalid:{port}"
        guard = Guard(["127.0.0.0/8"], most=10, timeout_s=1.0, resolve=rebinding)
        for _ in range(3):
            pinned = await guard.pin(url)
            reply = await client.request("GET", pinned.url + PATH, address=pinned.ip)
            assert await reply.body(10) == b"here"
        assert hosts == [f"evil.invalid:{port}".encode()] * 3
        guard.unpin(url)
        with pytest.raises(AddressError, match=r"169\.254\.169\.254 is in no allowed network"):
            await guard.pin(url)

    with_server(handle, use)


@pytest.mark.parametrize("cut", [False, True])
def test_an_answer_in_frames_arrives_whole_or_is_known_to_be_cut(cut: bool) -> None:
    pieces = [b"data: %d\n\n" % k for k in range(200)]

    async def handle(request: Request, response: Response) -> None:
        encoder = Encoder(BOB, NET, "hold-1")
        response.start(200, [])
        await response.write(encoder.head(200, []))
        for k, piece in enumerate(pieces):
            if cut and k == 100:
                response.abort()
                return
            await response.write(encoder.data(piece))
        await response.write(encoder.end(200))
        response.end()

    async def use(client: Client, port: int) -> None:
        decoder = Decoder(NET, "hold-1", BOB.public, 1 << 20)
        frames: list[Frame] = []
        reply = await client.request("POST", f"http://127.0.0.1:{port}/market/v1/work")

        async def read() -> None:
            async for chunk in reply:
                frames.extend(decoder.feed(chunk))
            decoder.finish()

        if cut:
            with pytest.raises((HttpError, FrameError)):
                await read()
        else:
            await read()
        came = b"".join(frame for frame in frames if isinstance(frame, bytes))
        assert came == b"".join(pieces) if not cut else b"".join(pieces).startswith(came)
        assert sum(isinstance(frame, Receipt) for frame in frames) == (0 if cut else 1)

    with_server(handle, use)
