"""HTTP on both sides of a node: our own protocol code over httptools, and the same interface over aiohttp as its reference."""

from ssl import SSLContext
from typing import Literal

from live_bridge.http.client import Client
from live_bridge.http.message import Count, Handler, HttpClient, HttpServer, Limits
from live_bridge.http.server import Server

Kind = Literal["own", "aiohttp"]


def server_of(kind: Kind, handler: Handler, limits: Limits, count: Count) -> HttpServer:
    """Make a front by the setting `http`."""
    if kind == "own":
        return Server(handler, limits, count)
    from live_bridge.http.reference import AiohttpServer  # a node that does without it is 15 MB smaller

    return AiohttpServer(handler, limits, count)


def client_of(kind: Kind, trust: SSLContext | None = None) -> HttpClient:
    """Make a client by the setting `http`; `trust` in certificates, None: the system's."""
    if kind == "own":
        return Client(trust=trust)
    from live_bridge.http.reference import AiohttpClient

    return AiohttpClient(trust=trust)
