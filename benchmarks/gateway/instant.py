"""An engine that answers at once, or in 64 pieces 10 ms apart: `python -m benchmarks.gateway.instant PORT`."""

import asyncio
import json
import re
import sys
from typing import cast

import uvloop

CHUNKS = 64
GAP_S = 0.01
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
STREAMED = re.compile(rb'"stream": *true')


def event(delta: dict[str, str], reason: str | None = None) -> bytes:
    """Write one piece of a chat as an engine does."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    piece = {"id": "chatcmpl-0123456789", "object": "chat.completion.chunk", "created": 1, "model": "mock", "choices": [choice]}
    return b"data: " + json.dumps(piece).encode() + b"\n\n"


def framed(data: bytes) -> bytes:
    """Write data as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(body: bytes, kind: bytes = b"application/json") -> bytes:
    """Write a whole answer."""
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(body), body)


CHAT = whole(
    json.dumps(
        {
            "id": "chatcmpl-0123456789",
            "object": "chat.completion",
            "created": 1,
            "model": "mock",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "word " * 32, "tool_calls": []},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 16, "completion_tokens": 32, "total_tokens": 48},
        }
    ).encode()
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
PIECE = framed(event({"content": " word"}))
LAST = framed(event({}, "stop")) + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
MODELS = whole(
    json.dumps({"object": "list", "data": [{"id": "mock", "object": "model", "created": 1, "owned_by": "mock"}]}).encode()
)
METRICS = b"""vllm:num_requests_running 0.0
vllm:num_requests_waiting 0.0
vllm:kv_cache_usage_perc 0.0
"""
PAGES = {
    b"/v1/models": MODELS,
    b"/health": whole(b"", b"text/plain"),
    b"/metrics": whole(METRICS, b"text/plain"),
    b"/get_model_info": whole(b"{}"),
    b"/get_server_info": whole(b"{}"),
    b"/server_info": whole(b"{}"),
}
MISSING = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


class Engine(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._got = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self._got += data
        while (end := self._got.find(b"\r\n\r\n")) >= 0:
            length = LENGTH.search(self._got, 0, end)
            size = end + 4 + (int(length[1]) if length else 0)
            if len(self._got) < size:
                return
            request, self._got = self._got[:size], self._got[size:]
            self._answer(request, request[end + 4 :])

    def connection_lost(self, error: Exception | None) -> None:
        """Stop a stream."""
        if self._timer is not None:
            self._timer.cancel()

    def _answer(self, request: bytes, body: bytes) -> None:
        if request.startswith(b"GET"):
            self._transport.write(PAGES.get(request.split(b" ", 2)[1].partition(b"?")[0], MISSING))
        elif STREAMED.search(body):
            self._transport.write(HEAD)
            self._speak(0, self._loop.time())
        else:
            self._transport.write(CHAT)

    def _speak(self, place: int, start_s: float) -> None:
        if place == CHUNKS - 1:
            self._transport.write(LAST)
            self._timer = None
            return
        self._transport.write(PIECE)
        self._timer = self._loop.call_at(start_s + (place + 1) * GAP_S, self._speak, place + 1, start_s)


async def serve(port: int) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
