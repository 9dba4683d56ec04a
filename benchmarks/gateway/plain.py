"""Our HTTP server and client as a proxy and nothing else: `python -m benchmarks.gateway.plain PORT URL [own|aiohttp]`."""

import asyncio
import sys
from typing import cast

import uvloop

from live_bridge.http import Kind, client_of, server_of
from live_bridge.http.message import FRAMING, Headers, HttpClient, Limits, Request, Response, header_of

LIMIT_BYTES = 2**24
EVENTS: list[str] = []
DROPPED = FRAMING | {b"host", b"server"}


def passed(headers: Headers) -> Headers:
    """Drop what concerns one connection alone."""
    return [pair for pair in headers if pair[0] not in DROPPED]


async def forward(client: HttpClient, backend: str, request: Request, response: Response) -> None:
    """Pass a request on and its answer back, whole or as it comes."""
    if request.path == "/ready":
        response.send(200, [], b"")
        return
    with await client.request(request.method, backend + request.path, passed(request.headers), request.body) as reply:
        if header_of(reply.headers, b"content-length") is not None:
            response.send(reply.status, passed(reply.headers), await reply.body(LIMIT_BYTES))
            return
        response.start(reply.status, passed(reply.headers))
        async for piece in reply:
            await response.write(piece)
        response.end()


async def serve(port: int, backend: str, kind: Kind) -> None:
    """Serve until killed."""
    client = client_of(kind)

    async def handle(request: Request, response: Response) -> None:
        await forward(client, backend, request, response)

    server = server_of(kind, handle, Limits(), EVENTS.append)
    await server.listen("127.0.0.1", port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2], cast("Kind", sys.argv[3] if len(sys.argv) > 3 else "own")))
