"""A process that stands in for a node which serves its users itself: `python stub_market.py --config FILE`.

An emulated engine, GET /ready and GET /market/v1/state; `slow=X` in its name makes it X times slower than its profile says.
"""

import asyncio
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import uvloop
import yaml

from live_bridge.backends.emulated import Emulated
from live_bridge.clock import Clock
from live_bridge.config import node_settings, profile_named, terms_named
from live_bridge.http.message import Headers, Limits, Request, Response
from live_bridge.http.server import Server

COUNTERS = ("offers_made", "offers_accepted", "offers_received", "offers_declined", "duels_won", "duels_lost")


class Named:
    """A response that says who executed."""

    def __init__(self, response: Response, me: bytes) -> None:
        self._response, self._me = response, me

    def start(self, status: int, headers: Headers) -> None:
        self._response.start(status, [*headers, (b"market-executor", self._me)])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)


async def main(file: Path) -> None:
    settings = node_settings(file, {})
    factor = float(yaml.safe_load(file.read_text()).get("name").partition("slow=")[2] or 1.0)
    profile = profile_named(settings.profile)
    slower = {name: getattr(profile, name) * factor for name in ("a_s", "a2_s", "b_s", "c_s", "d_s", "e_s")}
    clock = Clock(settings.speed)
    engine = Emulated(replace(profile, **slower), clock, "stub")
    terms = terms_named(settings.market)
    me = settings.listen.encode()

    def state() -> bytes:
        balances = {"credit": terms.initial_credit, "stake": terms.initial_stake, "escrow": 0, "unbonding": 0}
        totals = dict.fromkeys(
            ("arrived", "attained", "missed", "failed", "delegated", "executed_for_others", "in_flight", "queued"), 0
        )
        actions = {"0-0-0": int(clock.now() / settings.control_s)}
        return orjson.dumps(
            {"id": me.decode(), "name": settings.name, "balances": balances, "actions": actions, "totals": totals}
            | {"counters": dict.fromkeys(COUNTERS, 0)}
        )

    async def answer(request: Request, response: Response) -> None:
        if request.path == "/ready":
            response.send(200, [], b"")
        elif request.path == "/market/v1/ledger/accounts":
            rows = {f"127.0.0.1:{peer}": [100_000_000, 2_000_000, 0, 0] for peer in ports}
            response.send(200, [], orjson.dumps({"accounts": rows}))
        elif request.path == "/market/v1/state":
            response.send(200, [], state())
        else:
            await engine.handle(request, Named(response, me))

    # the other nodes' configs stand in the folders beside this one's
    ports = [yaml.safe_load(other.read_text())["listen"].rpartition(":")[2] for other in file.parents[1].glob("*/config.yaml")]
    host, port = settings.address()
    server = Server(answer, Limits(), lambda _: None)
    await server.listen(host, port)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    await over.wait()
    server.close()


uvloop.run(main(Path(sys.argv[-1])))
