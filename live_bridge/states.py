"""What a node says of itself at GET /market/v1/state, for reports: what it owns, its counters, its decisions, its requests."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from live_bridge.http.message import HttpClient
from live_bridge.slip import Slipped
from market.action import ACTION_NVEC, LEVELS

PATH = "/market/v1/state"
STATE_BYTES = 1 << 20
BALANCES = ("credit", "stake", "escrow", "unbonding")
RULES = "paper"
"""Stands for a decision by rules, which choose no levels."""


class State(NamedTuple):
    """One node at one moment."""

    id: str
    name: str
    balances: dict[str, float]  # credits: BALANCES
    counters: dict[str, int]
    totals: dict[str, int]  # requests since the node began
    actions: dict[str, int]  # decisions by their levels, such as 3-2-2, or RULES

    @property
    def wealth(self) -> float:
        """All that the node owns, in credits."""
        return sum(self.balances[name] for name in BALANCES)

    def levels(self, before: Mapping[str, int]) -> NDArray[np.int64]:
        """Decisions by head and level, (3, 5), less those of `before`; those by rules are in none."""
        found = np.zeros((len(ACTION_NVEC), LEVELS), np.int64)
        for action, count in self.actions.items():
            if action != RULES:
                for head, level in enumerate(action.split("-")):
                    found[head, int(level)] += count - before.get(action, 0)
        return found

    def ruled(self, before: Mapping[str, int]) -> int:
        """Decisions by rules, less those of `before`."""
        return self.actions.get(RULES, 0) - before.get(RULES, 0)


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
        balances = {name: float(found["balances"][name]) for name in BALANCES}
        rest = {name: dict(found[name]) for name in ("counters", "totals", "actions")}
        return State(id=found["id"], name=found["name"], balances=balances, **rest)
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise Slipped(f"{where}: has no {error}; is this a node of this version?") from None


async def states_of(client: HttpClient, urls: Sequence[str]) -> list[State]:
    """Ask several nodes at once; as `state_of` for errors."""
    return list(await asyncio.gather(*(state_of(client, url) for url in urls)))
