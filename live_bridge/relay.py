"""From the engine to whoever waits: bytes as they come, tokens counted, a broken answer told apart from a whole one."""

from collections.abc import Awaitable, Callable
from typing import Protocol

import orjson

from live_bridge.http.message import Headers, HttpClient, HttpError, Reply, Response, error_body, header_of
from live_bridge.job import Job, passed_out

DONE = "done"
"""The answer was given, whole."""
REFUSED = "refused"
"""The engine refused the request (4xx), and the client was told."""
BROKE = "broke"
"""The executor failed and nobody has got a byte: another may try."""
CUT = "cut"
"""The executor failed in mid-answer, and the client was told."""
MOST_BODY = 64 << 20
"""Bytes of an answer that is not streamed."""


class Sink(Protocol):
    """Where an answer goes: a user, a peer, or a judge's desk."""

    def whole(self, status: int, headers: Headers, body: bytes) -> Awaitable[None]:
        """Give an answer in one piece."""

    def head(self, status: int, headers: Headers) -> Awaitable[None]:
        """Begin an answer in pieces."""

    def write(self, chunk: bytes) -> Awaitable[None]:
        """Give a piece; waits while the receiver is slow."""

    def end(self) -> Awaitable[None]:
        """The answer is whole."""

    def cut(self, code: str, tokens: int) -> Awaitable[None]:
        """The answer ends here, unfinished, after `tokens` tokens."""


class UserSink:
    """A user's connection."""

    def __init__(self, response: Response, job: Job, me: str) -> None:
        """Take the connection; `me` is the executor of what no peer has executed."""
        self._response = response
        self._job = job
        self._me = me

    def _headers(self, headers: Headers) -> Headers:
        """Say who has executed it, and name the request unless the engine has done so."""
        more = [(b"market-executor", (self._job.executor or self._me).encode())]
        if header_of(headers, b"x-request-id") is None:
            more.append((b"x-request-id", self._job.id.encode()))
        return headers + more

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """See Sink."""
        self._job.began = True
        self._response.send(status, self._headers(headers), body)

    async def head(self, status: int, headers: Headers) -> None:
        """See Sink."""
        self._job.began = True
        self._response.start(status, self._headers(headers))

    async def write(self, chunk: bytes) -> None:
        """See Sink."""
        await self._response.write(chunk)

    async def end(self) -> None:
        """See Sink."""
        self._response.end()

    async def cut(self, code: str, tokens: int) -> None:
        """Tell a streaming client what happened: an error event, and no [DONE]. Blank lines before it end what is unfinished."""
        event = orjson.dumps(
            {
                "error": {
                    "message": f"the answer broke off after {tokens} tokens",
                    "type": "server_error",
                    "code": code,
                    "tokens_delivered": tokens,
                }
            }
        )
        await self._response.write(b"\n\nevent: error\ndata: " + event + b"\n\n")
        self._response.end()


class Relay:
    """The engine behind this node, as a source of answers."""

    def __init__(
        self, client: HttpClient, url: str, headers: Headers, connect_s: float, first_byte_s: float, failed: Callable[[], None]
    ) -> None:
        """Take the engine's URL, the headers (its own API key) that every request to it carries, and who hears that one failed."""
        self._client = client
        self._url = url.rstrip("/")
        self._headers = headers
        self._connect_s = connect_s
        self._first_byte_s = first_byte_s
        self._failed = failed

    async def get(self, path: str) -> tuple[int, Headers, bytes]:
        """Ask the engine for a small page, whole.

        errors   HttpError
        """
        reply = await self._client.request(
            "GET", self._url + path, self._headers, connect_s=self._connect_s, first_byte_s=self._first_byte_s
        )
        try:
            return reply.status, passed_out(reply.headers), await reply.body(MOST_BODY)
        finally:
            reply.close()

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Ask the engine something of this node's own.

        errors   HttpError
        """
        headers = [(b"content-type", b"application/json"), *self._headers]
        url = self._url + path
        with await self._client.request(
            "POST", url, headers, body, connect_s=self._connect_s, first_byte_s=self._first_byte_s
        ) as reply:
            return reply.status, await reply.body(MOST_BODY)

    async def run(self, job: Job, sink: Sink, now: "Now") -> str:
        """Let the engine answer `job` into `sink`. Returns DONE, REFUSED, BROKE or CUT; `job.failure` says why."""
        job.executions += 1
        job.executor = ""
        headers = job.headers + self._headers
        try:
            reply = await self._client.request(
                "POST", self._url + job.path, headers, job.body, connect_s=self._connect_s, first_byte_s=self._first_byte_s
            )
        except HttpError as error:
            job.failure = f"engine: {error}"
            self._failed()
            return BROKE
        try:
            outcome = await pass_on(reply, job, sink, now)
        finally:
            reply.close()
        if outcome in {BROKE, CUT}:
            self._failed()
        return outcome


class Now(Protocol):
    """A clock's reading."""

    def __call__(self) -> float:
        """Market seconds."""


async def pass_on(reply: Reply, job: Job, sink: Sink, now: Now) -> str:
    """Pass an engine's reply on into `sink`."""
    try:
        if reply.status >= 500:
            job.failure = f"engine: status {reply.status}: {(await reply.body(65_536))[:200]!r}"
            return BROKE
        if is_streamed(reply.headers):
            return await _stream(reply, job, sink, now)
        body = await reply.body(MOST_BODY)
        job.first_s = job.first_s or now()
        if job.keep is not None:
            job.keep += body
        await sink.whole(reply.status, passed_out(reply.headers), body)
    except HttpError as error:
        job.failure = f"engine: {error}"
        return BROKE
    return DONE if reply.status < 400 else REFUSED


async def _stream(reply: Reply, job: Job, sink: Sink, now: Now) -> str:
    """Pass a streamed answer on; the head waits for the first byte, so that an executor that fails before it can be replaced."""
    began = False
    try:
        async for chunk in reply:
            if not began:
                began = True
                job.first_s = job.first_s or now()
                await sink.head(reply.status, passed_out(reply.headers))
            job.note(chunk)
            await sink.write(chunk)
    except HttpError as error:
        job.failure = f"engine: {error}"
        if not began:
            return BROKE
        await sink.cut("executor_failed", job.tokens)
        return CUT
    if not began:
        await sink.head(reply.status, passed_out(reply.headers))
    await sink.end()
    return DONE


def is_streamed(headers: Headers) -> bool:
    """Whether an answer comes in pieces."""
    for name, value in headers:
        if name == b"content-type":
            return value.startswith(b"text/event-stream")
    return False


def answer_tokens(body: bytes) -> int:
    """Tokens of a whole answer, by its `usage`; 0 where there is none."""
    try:
        usage = orjson.loads(body).get("usage")
    except (orjson.JSONDecodeError, AttributeError):
        return 0
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) else 0


def refuse(response: Response, status: int, message: str, code: str, more: Headers | None = None) -> None:
    """Send an error in OpenAI's form."""
    response.send(status, [(b"content-type", b"application/json"), *(more or [])], error_body(status, code, message))
