"""An OpenAI-compatible server that answers as a test tells it to: real sockets, real streams, no model."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Self

from live_bridge.http.message import Limits, Request, Response
from live_bridge.http.server import Server

Script = Callable[[dict[str, Any], Response], Awaitable[None]]
SSE = [(b"content-type", b"text/event-stream"), (b"market-executor", b"ab12")]


def event(**values: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"text": " a", "index": 0}]} | values).encode() + b"\n\n"


def usage(tokens: int) -> bytes:
    return event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": tokens})


async def whole(body: dict[str, Any], response: Response) -> None:
    """All tokens at once."""
    response.start(200, SSE)
    for _ in range(body["max_tokens"]):
        await response.write(event())
    await response.write(usage(body["max_tokens"]) + b"data: [DONE]\n\n")
    response.end()


class StubEngine:
    """Listens while it is entered; `asked` holds the bodies and forecasts that came, `left` counts clients that went."""

    def __init__(self, script: Script = whole) -> None:
        self.script = script
        self.asked: list[tuple[float, dict[str, Any], bytes | None]] = []
        self.left = 0
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = Server(self._answer, Limits(), lambda _: None)
        self.url = f"http://127.0.0.1:{await self._server.listen('127.0.0.1', 0)}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()

    async def _answer(self, request: Request, response: Response) -> None:
        if request.method == "GET":
            response.send(200, [], b"{}")
            return
        body = json.loads(request.body)
        self.asked.append((asyncio.get_running_loop().time(), body, request.header(b"market-forecast-tokens")))
        try:
            await self.script(body, response)
        except asyncio.CancelledError:
            self.left += 1
            raise
