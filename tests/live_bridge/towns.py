"""Real nodes for tests: each a process of its own, before an engine that a test scripts, all on real sockets."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import yaml

from live_bridge.fleet import Fleet, Member, free_ports, node
from live_bridge.http.client import Client
from live_bridge.http.message import Headers, HttpError, Limits, Request, Response
from live_bridge.http.server import Server

PATIENCE_S = 20.0
EVENTS: Headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
JSON: Headers = [(b"content-type", b"application/json")]
ALWAYS, NEVER = "fixed:3-4-2", "fixed:3-0-2"
"""Policies: forward everything; keep everything. Both take all that is offered."""
Script = Callable[[Request, Response], Awaitable[None]]


def whole(tokens: int = 3, text: str = " a") -> Script:
    """Answer in one piece."""

    async def script(request: Request, response: Response) -> None:
        choice = {"index": 0, "text": text * tokens, "finish_reason": "length"}
        body = {"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": {"completion_tokens": tokens}}
        response.send(200, JSON, json.dumps(body).encode())

    return script


def stream(tokens: int = 3, *, hold: asyncio.Event | None = None, after: int = 0) -> Script:
    """Answer token by token; with `hold`, wait for it after so many tokens."""

    async def script(request: Request, response: Response) -> None:
        response.start(200, EVENTS)
        for k in range(tokens):
            if hold is not None and k == after:
                await hold.wait()
            await response.write(b'data: {"choices":[{"index":0,"text":" t%d"}]}\n\n' % k)
        await response.write(b"data: [DONE]\n\n")
        response.end()

    return script


def status(code: int, body: bytes = b'{"error":{"message":"as told"}}') -> Script:
    """Answer with a status."""

    async def script(request: Request, response: Response) -> None:
        response.send(code, JSON, body)

    return script


async def hang_up(request: Request, response: Response) -> None:
    """Close the connection without a byte."""
    response.abort()


async def silent(request: Request, response: Response) -> None:
    """Never answer."""
    await asyncio.Event().wait()


def broken_off(tokens: int, within: bytes = b"") -> Script:
    """Stream so many tokens, and perhaps a piece of one more, then fail when all of it is on its way."""

    async def script(request: Request, response: Response) -> None:
        response.start(200, EVENTS)
        for k in range(tokens):
            await response.write(b'data: {"choices":[{"index":0,"text":" t%d"}]}\n\n' % k)
        if within:
            await response.write(within)
        await asyncio.sleep(0.05)
        response.abort()

    return script


class Engine:
    """An OpenAI-compatible server with vLLM's metrics, which does as `script` says.

    asked   requests for answers, in order of arrival
    left    how many of them were abandoned by their client
    """

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or whole()
        self.asked: list[Request] = []
        self.left = 0
        self.running = 0
        self.url = ""
        self.port = 0
        self.metrics = lambda: (
            f"vllm:num_requests_running {self.running}\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.0\n"
        )
        self.metrics_status = 200  # 0: no answer
        self._news = asyncio.Condition()

    async def __aenter__(self) -> Self:
        await self.begin()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.end()

    async def begin(self) -> None:
        """Listen (again)."""
        self._server = Server(self._handle, Limits(), lambda _: None)
        self.port = await self._server.listen("127.0.0.1", self.port)
        self.url = f"http://127.0.0.1:{self.port}"

    def end(self) -> None:
        """Be gone at once, with all that was under way."""
        self._server.close()

    async def _handle(self, request: Request, response: Response) -> None:
        if request.path == "/metrics":
            if not self.metrics_status:
                await silent(request, response)
            response.send(self.metrics_status, [], self.metrics().encode())
        elif request.path == "/v1/models":
            response.send(200, JSON, b'{"object":"list","data":[{"id":"stub","object":"model"}]}')
        elif request.path == "/health":
            response.send(200, [], b"")
        else:
            await self._answer(request, response)

    async def _answer(self, request: Request, response: Response) -> None:
        self.asked.append(request)
        self.running += 1
        await self._tell()
        try:
            await self.script(request, response)
        except asyncio.CancelledError:
            self.left += 1
            raise
        finally:
            self.running -= 1
            asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until something is true of this engine."""
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(true)


class Town:
    """Running nodes: their URLs, their folders, and the fleet that holds their processes."""

    def __init__(self, members: list[Member], homes: list[Path], fleet: Fleet, client: Client) -> None:
        self.members, self.homes, self.fleet, self.client = members, homes, fleet, client
        self.urls = [member.url for member in members]

    async def ask(
        self, at: int = 0, *, headers: Headers | None = None, path: str = "/v1/completions", **body: Any
    ) -> tuple[int, Any, Headers]:
        """Ask node `at` and read all of its answer: status, parsed JSON or raw bytes, headers."""
        said = {"prompt": "hello there", "max_tokens": 8} | body
        reply = await self.client.request("POST", self.urls[at] + path, headers, json.dumps(said).encode(), first_byte_s=PATIENCE_S)
        with reply:
            raw = await reply.body(1 << 24)
        kind = reply.header(b"content-type") or b""
        return reply.status, json.loads(raw) if kind.startswith(b"application/json") else raw, reply.headers

    async def get(self, path: str, at: int = 0) -> Any:
        """Read a page of node `at`: parsed JSON, or text."""
        with await self.client.request("GET", self.urls[at] + path, first_byte_s=PATIENCE_S) as reply:
            raw = await reply.body(1 << 24)
            kind = reply.header(b"content-type") or b""
        return json.loads(raw) if kind.startswith(b"application/json") else raw.decode()

    async def metric(self, name: str, at: int = 0) -> float:
        """Read one metric by its name and labels, as it is written: name{a="b"}."""
        for line in (await self.get("/metrics", at)).splitlines():
            if line.rpartition(" ")[0] == name:
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no metric {name}")

    async def until(self, true: Callable[[], Awaitable[bool]], patience_s: float = PATIENCE_S) -> None:
        """Ask again and again until something is true of the nodes: they have no way to tell a test."""
        async with asyncio.timeout(patience_s):
            while not await self._is(true):
                await asyncio.sleep(0.02)

    async def _is(self, true: Callable[[], Awaitable[bool]]) -> bool:
        try:
            return await true()
        except HttpError:
            return False

    async def tell(self, at: int, word: int) -> int:
        """Send node `at` a signal that ends it, and wait; returns its exit status."""
        name = self.members[at].name
        os.kill(self.fleet.pids()[name], word)
        return await self.fleet.gone(name)

    async def revive(self, at: int) -> None:
        """Start node `at` again, at the same address and with the same home, and wait until it is ready."""
        await self.fleet.start([self.members[at]])

    async def know_each_other(self) -> None:
        """Wait until every node believes all others alive and rich enough to be drawn."""

        async def all_known() -> bool:
            states = [await self.get("/market/v1/state", k) for k in range(len(self.urls))]
            drawn = [[peer for peer in state["alive"] if state["stakes"][peer] > 0] for state in states]
            return all(len(peers) == len(self.urls) - 1 and state["actions"] for peers, state in zip(drawn, states, strict=True))

        await self.until(all_known)


def calm(**terms: Any) -> dict[str, Any]:
    """Settings that keep a busy machine from being taken for a dead peer or engine: work goes where the policies say.

    terms   changes of the market's terms, besides
    """
    return {"terms": {"offer_timeout_s": 15} | terms, "backend": {"stale_s": 30.0}}


def steady(**terms: Any) -> dict[str, Any]:
    """As `calm`, and silence suspects nobody: only a peer that has failed is passed over, until it is heard of again."""
    return calm(suspect_rounds=100, **{"gossip_s": 0.15} | terms)


def market_file(folder: Path, **changes: Any) -> Path:
    """Write terms that differ from conf/market/paper.yaml in some values."""
    values = yaml.safe_load((Path(__file__).parents[2] / "conf" / "market" / "paper.yaml").read_text(encoding="utf-8"))
    assert set(changes) <= set(values)
    path = folder / "market.yaml"
    path.write_text(yaml.safe_dump(values | changes), encoding="utf-8")
    return path


@asynccontextmanager
async def town(
    folder: Path, engines: Sequence[Engine], terms: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Town]:
    """Start one node before each engine; the first founds the network and the others join it.

    terms      changes of the market's terms; duels are off unless they say otherwise
    settings   of all nodes, as in conf/live/node.yaml; `policy` may be a list, one for each;
               with `rogue` the last node cheats when a request asks it to (tests/live_bridge/rogue.py)
    """
    rogue = settings.pop("rogue", False)
    policies = settings.pop("policy", "fixed:3-0-2")
    policies = policies if isinstance(policies, list) else [policies] * len(engines)
    market = market_file(folder, **({"duel_rate": 0, "gossip_s": 0.3} | (terms or {})))
    ports = free_ports(len(engines))
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    client = Client()
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(Fleet(client, ready_s=PATIENCE_S, stop_s=10.0))
        stack.push_async_callback(client.close)
        members = []
        homes = [folder / f"n{k}" / "home" for k in range(len(engines))]
        for k, engine in enumerate(engines):
            backend = {"kind": "vllm", "url": engine.url, "metrics_s": 0.2, "stale_s": 2.0} | settings.get("backend", {})
            values = settings | {"market": str(market), "policy": policies[k], "backend": backend, "tick_s": 0.2, "control_s": 0.5}
            values |= {"join": urls[:1]} if k else {}
            member = node(f"n{k}", folder / f"n{k}", ports[k], values)
            if rogue and k == len(engines) - 1:
                member = member._replace(words=(sys.executable, "-m", "tests.live_bridge.rogue", *member.words[3:]))
            members.append(member)
        await fleet.start(members[:1])
        await fleet.start(members[1:])
        found = Town(members, homes, fleet, client)
        if len(engines) > 1:
            await found.know_each_other()
        yield found
