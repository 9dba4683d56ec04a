"""What a node says of itself at GET /market/v1/state, for reports: what it owns, its counters, its decisions, its requests."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from live_bridge.http.message import HttpClient
from live_bridge.slip import Slipped
from market.action import ACTION_NVEC, LEVELS
from market.terms import MICRO

T = TypeVar("T")
PATH, ACCOUNTS = "/market/v1/state", "/market/v1/ledger/accounts"
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
    return await _ask(client, f"{url}{PATH}", _state)


def _state(said: dict[str, Any]) -> State:
    balances = {name: float(said["balances"][name]) for name in BALANCES}
    rest = {name: dict(said[name]) for name in ("counters", "totals", "actions")}
    return State(id=said["id"], name=said["name"], balances=balances, **rest)


async def _ask(client: HttpClient, where: str, read: Callable[[dict[str, Any]], T]) -> T:
    with await client.request("GET", where, first_byte_s=10.0) as reply:
        body = await reply.body(STATE_BYTES)
        if reply.status != 200:
            raise Slipped(f"{where}: status must be 200, got {reply.status}; is this a node of live_bridge?")
    try:
        return read(orjson.loads(body))
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise Slipped(f"{where}: has no {error}; is this a node of this version?") from None


async def wealth_of(client: HttpClient, url: str) -> dict[str, float]:
    """Ask a network's ledger what each account owns, in credits: all at one moment, as no round of questions to nodes could.

    url      of the node that keeps the ledger
    errors   HttpError when it does not answer; Slipped when it answers something else
    """
    found = await _ask(
        client, f"{url}{ACCOUNTS}", lambda said: {name: sum(map(int, row)) for name, row in said["accounts"].items()}
    )
    return {name: micro / MICRO for name, micro in found.items()}


async def states_of(client: HttpClient, urls: Sequence[str]) -> list[State]:
    """Ask several nodes at once; as `state_of` for errors."""
    return list(await asyncio.gather(*(state_of(client, url) for url in urls)))
