"""Letters to peers: signed, to an address that was checked and pinned, with a signed answer; nothing else is believed."""

import time
from collections.abc import Callable

import orjson

from live_bridge.http.message import ConnectFailed, HttpClient, HttpError, Reply
from live_bridge.peers.addresses import AddressError, Guard
from live_bridge.peers.envelope import Door

ANSWER_BYTES = 8 << 20
CONNECT_S = 5.0
"""Seconds on the wall to connect, however long the answer may take: a peer that is offered work has answered a moment ago."""


class UnansweredError(OSError):
    """A peer did not answer, or not as itself; the text names it and the reason."""


class Correspondence:
    """Messages to peers and their replies."""

    def __init__(self, door: Door, guard: Guard, client: HttpClient, where: Callable[[str], str | None]) -> None:
        """Take what signs, what checks addresses, and what knows them.

        where   URL of a peer by its id
        """
        self._door = door
        self._guard = guard
        self._client = client
        self._where = where

    async def ask(self, peer: str, path: str, letter: object, patience_s: float) -> tuple[int, object]:
        """Send a letter and read the answer: status and parsed JSON.

        letter       anything that JSON can hold
        patience_s   s on the wall
        errors       UnansweredError
        """
        status, answer = await self.ask_raw(peer, path, orjson.dumps(letter), patience_s)
        try:
            return status, orjson.loads(answer)
        except orjson.JSONDecodeError:
            raise UnansweredError(f"peer {peer[:8]}: {path}: the answer is not JSON") from None

    async def ask_raw(self, peer: str, path: str, body: bytes, patience_s: float) -> tuple[int, bytes]:
        """`ask`, with bytes both ways."""
        sent = self._door.seal(peer, "POST", path, body, time.time())
        try:
            with await self._send(peer, path, sent, body, patience_s) as reply:
                answer = await reply.body(ANSWER_BYTES)
        except HttpError as error:
            raise UnansweredError(f"peer {peer[:8]}: {error}") from None
        if not self._door.believes(sent, peer, reply.status, reply.headers, answer):
            raise UnansweredError(f"peer {peer[:8]}: {path}: the answer ({reply.status}) is not signed by it")
        return reply.status, answer

    async def stream(self, peer: str, path: str, body: bytes, patience_s: float) -> Reply:
        """Send a letter whose answer comes in pieces, which bear their own proof.

        errors   UnansweredError
        """
        sent = self._door.seal(peer, "POST", path, body, time.time())
        try:
            return await self._send(peer, path, sent, body, patience_s)
        except HttpError as error:
            raise UnansweredError(f"peer {peer[:8]}: {error}") from None

    async def _send(self, peer: str, path: str, sent: list[tuple[bytes, bytes]], body: bytes, patience_s: float) -> Reply:
        url = self._where(peer)
        if url is None:
            raise UnansweredError(f"peer {peer[:8]}: has no known address")
        try:
            pinned = await self._guard.pin(url)
        except AddressError as error:
            raise UnansweredError(f"peer {peer[:8]}: {error}") from None
        try:
            return await self._client.request(
                "POST",
                pinned.url + path,
                [*sent, (b"content-type", b"application/json")],
                body,
                address=pinned.ip,
                connect_s=min(patience_s, CONNECT_S),
                first_byte_s=patience_s,
            )
        except ConnectFailed:
            self._guard.unpin(url)  # its name may stand for another address by now, which is checked anew
            raise
