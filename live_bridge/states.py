"""What a node says of itself at GET /market/v1/state, for reports: its account, its counters, its decisions, its load."""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from live_bridge.http.message import HttpClient
from live_bridge.slip import Slipped
from market.terms import MICRO

PATH = "/market/v1/state"
STATE_BYTES = 1 << 20
ACCOUNT = ("credit_micro", "stake_micro", "escrow_micro", "unbonding_micro")
LOAD = ("wait_s", "usage", "running", "waiting", "queued")


class State(NamedTuple):
    """One node at one moment."""

    id: str
    name: str
    account: dict[str, int]  # micro-credits: ACCOUNT
    counters: dict[str, int]
    actions: list[list[int]] | None  # (3, 5) decisions by head and level; None where rules decide
    load: dict[str, float]

    @property
    def wealth(self) -> float:
        """All that the node owns, in credits."""
        return sum(self.account[name] for name in ACCOUNT) / MICRO


async def state_of(client: HttpClient, url: str) -> State:
    """Ask one node.

    errors   HttpError when it does not answer; Slipped when it answers something else
    """
    where = f"{url}{PATH}"
    with await client.request("GET", where, first_byte_s=10.0) as reply:
        body = await reply.body(STATE_BYTES)
        if reply.status != 200:
            raise Slipped(f"{where}: status must be 200, got {reply.status}; is this a node of live_bridge?")
    try:
        found: dict[str, Any] = orjson.loads(body)
        account = {name: int(found["account"][name]) for name in ACCOUNT}
        load = {name: float(found["load"][name]) for name in LOAD}
        return State(found["id"], found["name"], account, dict(found["counters"]), found["actions"], load)
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise Slipped(f"{where}: has no {error}; is this a node of this version?") from None


async def states_of(client: HttpClient, urls: Sequence[str]) -> list[State]:
    """Ask several nodes at once; as `state_of` for errors."""
    return list(await asyncio.gather(*(state_of(client, url) for url in urls)))
