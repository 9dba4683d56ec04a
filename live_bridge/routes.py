"""Which path leads where: users, peers, the ledger, whoever watches."""

import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import orjson

from live_bridge.desk import JUDGE, VERDICT
from live_bridge.facts import PATHS
from live_bridge.http.message import Headers, Request, Response
from live_bridge.ledger.remote import PREFIX
from live_bridge.metrics import CONTENT_TYPE
from live_bridge.peers.envelope import Message
from live_bridge.peers.users import Denied
from live_bridge.purse import duel_won
from live_bridge.relay import refuse
from live_bridge.society import GOSSIP, HELLO
from live_bridge.trade import OFFER, WITHDRAW, WORK
from live_bridge.view.feed import EVENTS_PATH, PAGE_PATH
from live_bridge.wire import json_of

if TYPE_CHECKING:
    from live_bridge.node import Node

JSON: Headers = [(b"content-type", b"application/json")]
MOST_DUELS = 10_000
"""Duels about own work whose end is remembered."""
Answer = Callable[[Request, Response], Awaitable[None]]


class Router:
    """Answers every request that reaches a node."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._duels: dict[str, None] = {}
        self._users: dict[tuple[str, str], Answer] = {("POST", path): node.gateway.answer for path in PATHS}
        self._users["GET", "/v1/models"] = node.gateway.models
        self._open: dict[tuple[str, str], Answer] = {
            ("GET", "/health"): self._health,
            ("GET", "/ready"): self._ready,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/market/v1/state"): self._state,
            ("GET", HELLO): self._hello,
            ("GET", PAGE_PATH): node.feed.handle,
            ("HEAD", PAGE_PATH): node.feed.handle,
            ("GET", EVENTS_PATH): node.feed.handle,
        }
        self._peers: dict[str, Callable[[Message, Response], Awaitable[None]]] = {
            OFFER: node.host.offer,
            WORK: node.host.work,
            WITHDRAW: node.host.withdraw,
            GOSSIP: self._gossip,
            JUDGE: node.bench.judge,
            VERDICT: self._verdict,
        }

    async def handle(self, request: Request, response: Response) -> None:
        """Answer one request."""
        key = request.method, request.path
        answer = self._users.get(key)
        if answer is not None:
            if self._admitted(request, response):
                await answer(request, response)
            return
        peer = self._peers.get(request.path)
        if peer is not None and request.method == "POST":
            message = self._node.host.opened(request, response, time.time())
            if message is not None:
                await peer(message, response)
            return
        found = self._open.get(key)
        if found is not None:
            await found(request, response)
        elif request.path.startswith(PREFIX):
            await self._ledger(request, response)
        else:
            self._unknown(request, response)

    def _admitted(self, request: Request, response: Response) -> bool:
        """Whether the user may ask; else it is told why not."""
        users = self._node.users
        if users is None:
            return True
        found = users.admit(request.headers, time.monotonic(), time.time())
        if isinstance(found, Denied):
            self._node.metrics.http_error(found.reason)
            response.send(found.status, found.headers, found.body)
            return False
        return True

    def _unknown(self, request: Request, response: Response) -> None:
        known = {path for _, path in (*self._users, *self._open)} | set(self._peers)
        if request.path in known:
            refuse(response, 405, f"{request.path} does not answer {request.method}", "method_not_allowed")
        else:
            refuse(response, 404, f"there is no {request.path[:100]}; users ask {', '.join(PATHS)} and /v1/models", "not_found")

    async def _ledger(self, request: Request, response: Response) -> None:
        part = getattr(self._node, "part", None)
        if part is None:
            refuse(response, 503, "the node is starting", "starting", [(b"retry-after", b"1")])
        elif part.routes is None:
            refuse(response, 404, f"the ledger of this network is at {part.url}", "not_the_ledger")
        else:
            await part.routes.handle(request, response)

    async def _health(self, request: Request, response: Response) -> None:
        response.send(200, [], b"")

    async def _ready(self, request: Request, response: Response) -> None:
        """200 once the node takes requests and its engine answers."""
        node = self._node
        if node.gateway.draining:
            refuse(response, 503, "this node is leaving", "draining")
        elif not node.ready:
            refuse(response, 503, "the node is starting", "starting")
        elif not node.watcher.alive:
            refuse(response, 503, f"the engine does not answer: {node.watcher.error}", "engine_down")
        else:
            response.send(200, JSON, orjson.dumps({"ready": True, "id": node.identity.id, "address": node.address}))

    async def _metrics(self, request: Request, response: Response) -> None:
        response.send(200, [(b"content-type", CONTENT_TYPE)], self._node.metrics.render(self._node.portrait.levels()))

    async def _state(self, request: Request, response: Response) -> None:
        state = self._node.portrait.state()
        assert math.isfinite(state["now_s"])
        response.send(200, JSON, orjson.dumps(state))

    async def _hello(self, request: Request, response: Response) -> None:
        """Who this is, for whoever wants to join."""
        node = self._node
        part = getattr(node, "part", None)
        if part is None:
            refuse(response, 503, "the node is starting", "starting", [(b"retry-after", b"1")])
            return
        said = {
            "id": node.identity.id,
            "public": node.identity.public.hex(),
            "network": node.settings.network,
            "address": node.address,
            "ledger": part.url or node.address,
        }
        response.send(200, JSON, orjson.dumps(said))

    async def _gossip(self, message: Message, response: Response) -> None:
        self._node.society.hear(message, response)

    async def _verdict(self, message: Message, response: Response) -> None:
        """A duel about work that was done here has ended; the ledger's receipt proves it."""
        node = self._node
        found = duel_won(json_of(message.body), node.founding, node.identity.id)
        if found is None:
            node.host.reply(message, response, 400, {"error": "this proves no duel of this node"})
            return
        duel, won = found
        if duel not in self._duels:  # whoever tells a defeat twice makes it no second one
            self._duels[duel] = None
            if len(self._duels) > MOST_DUELS:
                del self._duels[next(iter(self._duels))]
            node.core.emit("dueled", int(won))
        node.host.reply(message, response, 200, {"noted": True})
