"""One request under way at a node: its content, where it is to run, how far it has come."""

import asyncio
from typing import Any

from live_bridge.facts import Facts
from live_bridge.http.message import Headers, Request
from live_bridge.peers.users import PRIVATE

LOCAL = "local"
PEER = "peer"
FAIL = "fail"

_OF_ONE_HOP = frozenset(b"connection keep-alive transfer-encoding content-length upgrade trailer".split())
_NOT_PASSED_IN = PRIVATE | _OF_ONE_HOP | frozenset(b"accept-encoding expect host proxy-connection te".split())
_OF_AN_ANSWER = frozenset(
    b"content-type cache-control x-accel-buffering x-request-id retry-after openai-model openai-processing-ms".split()
)
"""What a stranger may say to a user: no cookie, no redirect, no policy for a browser, nothing of the connection's."""


def passed_in(headers: Headers) -> Headers:
    """Headers of a user's request that an engine gets: none of the connection's, none with a key, none that say who the user is.

    None that ask for compression either: tokens are counted in what is passed on, and judges read it.
    """
    return [pair for pair in headers if pair[0] not in _NOT_PASSED_IN and not pair[0].startswith(b"market-")]


def passed_out(headers: Headers) -> Headers:
    """Headers of an engine's answer that the user gets."""
    return [pair for pair in headers if pair[0] not in _OF_ONE_HOP and not pair[0].startswith(b"market-")]


def from_peer(headers: Headers) -> Headers:
    """Headers of a peer's answer that the user gets: what describes the answer, each once, and nothing that acts on the client."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _OF_AN_ANSWER:
            found.setdefault(name, value)
    return list(found.items())


class Job:
    """A request and what has become of it so far."""

    __slots__ = (
        "_pending",
        "_tail",
        "_waiter",
        "arrived_s",
        "began",
        "body",
        "executions",
        "executor",
        "facts",
        "failure",
        "first_s",
        "headers",
        "id",
        "keep",
        "path",
        "tokens",
    )

    def __init__(self, job_id: str, path: str, headers: Headers, body: bytes, facts: Facts, arrived_s: float) -> None:
        self.id = job_id
        self.path = path
        self.headers = headers
        self.body = body
        self.facts = facts
        self.arrived_s = arrived_s
        self.first_s = 0.0  # market s of the first byte of the answer; 0 = not yet
        self.began = False  # whether the user has got anything
        self.tokens = 0  # of the answer so far
        self.executions = 0
        self.executor = ""
        self.failure = ""
        self.keep: bytearray | None = None  # the answer, where a judge will read it
        self._tail = b"\n"
        self._pending: tuple[Any, ...] | None = None
        self._waiter: asyncio.Future[tuple[Any, ...]] | None = None

    @classmethod
    def of(cls, job_id: str, request: Request, facts: Facts, arrived_s: float) -> "Job":
        """Make a job of a user's request."""
        return cls(job_id, request.path, passed_in(request.headers), request.body, facts, arrived_s)

    def decree(self, *fate: Any) -> None:
        """Say where it runs next: LOCAL, PEER with what that needs, or FAIL with a reason."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(fate)
        else:
            self._pending = fate

    async def fate(self) -> tuple[Any, ...]:
        """Wait for the next decree."""
        if self._pending is not None:
            fate, self._pending = self._pending, None
            return fate
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def note(self, chunk: bytes) -> None:
        """Count the tokens of a chunk of a streamed answer: one for each event but the last, [DONE], however it is cut."""
        text = self._tail + (chunk.replace(b"\r", b"\n") if b"\r" in chunk else chunk)
        for word, worth in EVENT_WORDS:
            self.tokens += worth * text.count(word, max(len(text) - len(chunk) - len(word) + 1, 0))
        self._tail = text[-LONGEST_WORD:]
        if self.keep is not None and len(self.keep) < KEEP_BYTES:
            self.keep += chunk


EVENT_WORDS = ((b"\ndata:", 1), (b"\ndata: [DONE]", -1), (b"\ndata:[DONE]", -1))
"""How lines begin that count as tokens; what an answer quotes stands within a line."""
LONGEST_WORD = max(len(word) for word, _ in EVENT_WORDS) - 1
KEEP_BYTES = 4 << 20
"""What is kept of an answer for a judge."""
