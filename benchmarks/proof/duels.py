"""An honest provider and a lemon answer the same questions, and a third judges: real nodes, signed votes, stakes that move.

The users' node hands on every request and has each of them duelled; the honest node and the lemon take all that they are offered;
the judge takes nothing and judges. Who wins is what the judge's engine makes of two real answers.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.measure import ROOT
from benchmarks.proof.questions import question
from live_bridge.check import targets_of
from live_bridge.fleet import Fleet, FleetError, Member, free_ports, node
from live_bridge.http.client import Client
from live_bridge.http.message import HttpClient, HttpError
from live_bridge.load import Target
from live_bridge.states import State, states_of, wealth_of

ROLES = {"users": "fixed:0-4-2", "honest": "fixed:4-0-2", "lemon": "fixed:4-0-2", "judge": "fixed:0-0-2"}
"""Nodes, in the order of their start, and who decides there: levels of accept, forward, commit (docs/environment.md)."""
USERS, HONEST, LEMON, JUDGE = range(4)
TERMS = {"duel_rate": 1.0, "initial_credit": 2000, "offer_timeout_s": 10, "suspect_rounds": 20, "gone_rounds": 20}
"""What differs from conf/market/paper.yaml: all is duelled, and busy cores are not taken for dead peers."""
SLO_S = 120.0
READY_S, STOP_S, KNOWN_S, SETTLED_S, TOLD_S = 90.0, 20.0, 60.0, 120.0, 15.0
LOOK_S = 0.2
SETTLED = "settled"
RESULTS = (SETTLED, "undecided", "called_off")


class Contest(NamedTuple):
    """One series of duels."""

    name: str
    by: str  # likelihood | letters, as duels.by of a node
    seconds: float  # on the wall, of asking
    at_once: int  # requests
    max_tokens: int
    temperature: float
    speed: float  # other than 1 only with emulated engines


def members(contest: Contest, backends: Sequence[Mapping[str, Any]], profiles: Sequence[str], folder: Path) -> list[Member]:
    """Write the config files of the four nodes.

    backends  settings `backend` of each
    profiles  settings `profile` of each
    """
    folder.mkdir(parents=True, exist_ok=True)
    terms = yaml.safe_load((ROOT / "conf" / "market" / "paper.yaml").read_text(encoding="utf-8")) | TERMS
    (folder / "terms.yaml").write_text(yaml.safe_dump(terms), encoding="utf-8")
    ports = free_ports(len(ROLES))
    out = []
    for number, (role, policy) in enumerate(ROLES.items()):
        settings = {
            "join": [] if number == USERS else [f"http://127.0.0.1:{ports[USERS]}"],
            "network": f"duels-{ports[USERS]}",
            "market": str(folder / "terms.yaml"),
            "policy": policy,
            "profile": profiles[number],
            "slo_s": SLO_S,
            "control_s": 1,
            "speed": contest.speed,
            "backend": dict(backends[number]),
            "duels": {"by": contest.by, "judge": number == JUDGE},
            "limits": {"drain_s": 2},
        }
        out.append(node(role, folder / role, ports[number], settings))
    return out


async def contest(
    held: Contest, backends: Sequence[Mapping[str, Any]], profiles: Sequence[str], folder: Path, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Hold a series of duels; returns its record.

    errors   FleetError when a node does not start, or they do not find each other
    """
    nodes, client = members(held, backends, profiles, folder), Client()
    urls = [member.url for member in nodes]
    try:
        async with Fleet(client, ready_s=READY_S, stop_s=STOP_S) as fleet:
            await fleet.start(nodes[:1])
            await fleet.start(nodes[1:])
            await _until(lambda: _acquainted(client, urls), KNOWN_S, "the nodes have not found each other")
            before = await states_of(client, urls), await wealth_of(client, urls[USERS])
            users = (await targets_of(client, urls))[USERS]
            answered, failed = await _ask_all(client, users, held, tell)
            await _until(lambda: _settled(client, urls), SETTLED_S, "duels are left without an end")
            with suppress(FleetError):  # a verdict that was lost on its way is in nobody's counters
                await _until(lambda: _told(client, urls), TOLD_S, "executors have not heard how their duels ended")
            after = await states_of(client, urls), await wealth_of(client, urls[USERS])
            results = {name: await _metric(client, urls[USERS], f'wwwserve_duels_total{{result="{name}"}}') for name in RESULTS}
        return record_of(held, before, after, results) | {"answered": answered, "failed": failed}
    finally:
        await client.close()


async def _ask_all(client: HttpClient, users: Target, held: Contest, tell: Callable[[str], None]) -> tuple[int, int]:
    """Ask, some at once, until the time is over; returns how many were answered, and how many were not."""
    numbers, counts, end_s = itertools.count(), [0, 0], time.monotonic() + held.seconds

    async def user() -> None:
        while time.monotonic() < end_s:
            counts[not await _asked(client, users, held, next(numbers))] += 1
            if sum(counts) % 25 == 0:
                tell(f"{held.name}: {sum(counts)} questions asked, {max(end_s - time.monotonic(), 0.0) / 60:.1f} min left")

    async with asyncio.TaskGroup() as group:
        for _ in range(held.at_once):
            group.create_task(user())
    return counts[0], counts[1]


async def _asked(client: HttpClient, users: Target, held: Contest, number: int) -> bool:
    """Ask one question; whether it was answered."""
    body = ({} if users.model is None else {"model": users.model}) | {
        "messages": [{"role": "user", "content": question(number)}],
        "max_tokens": held.max_tokens,
        "temperature": held.temperature,
        "seed": number,
    }
    headers = [(b"content-type", b"application/json")]
    try:
        with await client.request(
            "POST", f"{users.url}/v1/chat/completions", headers, json.dumps(body).encode(), first_byte_s=SLO_S
        ) as reply:
            await reply.body(1 << 20)
            return reply.status == 200
    except HttpError:
        return False


def record_of(
    held: Contest,
    before: tuple[Sequence[State], Mapping[str, float]],
    after: tuple[Sequence[State], Mapping[str, float]],
    results: Mapping[str, float],
) -> dict[str, Any]:
    """Write a series down as plain values: who won, and what each node owned before and after, in credits."""
    roles = {}
    for role, then, now in zip(ROLES, before[0], after[0], strict=True):
        counts = {key: now.counters[key] - then.counters[key] for key in ("duels_won", "duels_lost")}
        roles[role] = counts | {
            "wealth_before": round(before[1][then.id], 6),
            "wealth_after": round(after[1][now.id], 6),
            "stake_after": round(now.balances["stake"], 6),
        }
    owned = [round(sum(wealth.values()), 6) for _, wealth in (before, after)]
    return {
        "contest": held._asdict(),
        "duels": {name: int(count) for name, count in results.items()},
        "roles": roles,
        "money_difference": round(owned[1] - owned[0], 6),
    }


async def _acquainted(client: HttpClient, urls: Sequence[str]) -> bool:
    """Whether every node believes all others alive and knows their stakes."""
    for url in urls:
        said = json.loads(await _page(client, f"{url}/market/v1/state"))
        if sum(said["stakes"].get(peer, 0) > 0 for peer in said["alive"]) < len(urls) - 1:
            return False
    return True


async def _settled(client: HttpClient, urls: Sequence[str]) -> bool:
    """Whether no duel is under way, and no credit is set aside."""
    states = [json.loads(await _page(client, f"{url}/market/v1/state")) for url in urls]
    return not any(state["duels"] or state["works"] or state["balances"]["escrow"] for state in states)


async def _told(client: HttpClient, urls: Sequence[str]) -> bool:
    """Whether the duellists know of as many winners as the users' node has settled duels."""
    won = sum(state.counters["duels_won"] for state in await states_of(client, urls))
    return won == await _metric(client, urls[USERS], f'wwwserve_duels_total{{result="{SETTLED}"}}')


async def _metric(client: HttpClient, url: str, name: str) -> float:
    """Read a counter.

    errors   FleetError when the node has none of this family; a labelled one appears with its first count, and is 0 before
    """
    page = await _page(client, f"{url}/metrics")
    family = name.partition("{")[0]
    if f"# TYPE {family} counter\n" not in page:
        raise FleetError(f"{url}/metrics: has no counter {family}; its name is in live_bridge/metrics.py")
    found = [line for line in page.splitlines() if line.rpartition(" ")[0] == name]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


async def _page(client: HttpClient, url: str) -> str:
    with await client.request("GET", url, first_byte_s=10.0) as reply:
        return (await reply.body(1 << 22)).decode()


async def _until(true: Callable[[], Any], patience_s: float, rule: str) -> None:
    """Look again and again until something is true; nodes have no way to say so.

    errors   FleetError
    """
    end_s = time.monotonic() + patience_s
    while not await true():
        if time.monotonic() > end_s:
            raise FleetError(f"{rule} after {patience_s:g} s")
        await asyncio.sleep(LOOK_S)
