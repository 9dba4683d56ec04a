"""A node's life: engines, ledgers and nodes that are killed and come back, and a node that leaves; no request is lost meanwhile."""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from live_bridge.fleet import free_ports
from live_bridge.http.message import HttpError
from live_bridge.ledger.audit import audit_store
from live_bridge.ledger.journal import from_json
from live_bridge.ledger.sqlite import SqliteStore
from tests.live_bridge.towns import Engine, Town, calm, stream, town

ALWAYS, NEVER = "fixed:3-4-2", "fixed:3-0-2"
ANSWER_S = 20.0
"""Every request has an answer within this time, whatever is killed: most of it is a busy machine's."""
RECOVERY_S, REVIVAL_S = 5.0, 3.0
BUSY = 3.0
"""A machine that runs all tests at once is so much slower."""


class Ended(NamedTuple):
    """One request of a user's."""

    at: int  # node
    began_s: float
    ended_s: float
    outcome: int | str  # HTTP status; "broken" when the connection was cut or refused, "silent" when nothing came
    executor: str


class Users:
    """Users who ask all the time, at every node."""

    def __init__(self, place: Town, *, at: list[int], each: int = 2, pause_s: float = 0.02) -> None:
        self.place, self.pause_s = place, pause_s
        self.ended: list[Ended] = []
        self._tasks = [asyncio.create_task(self._ask_forever(k)) for k in at for _ in range(each)]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask_forever(self, at: int) -> None:
        while True:
            began_s = time.monotonic()
            outcome, executor = await self._ask(at)
            self.ended.append(Ended(at, began_s, time.monotonic(), outcome, executor))
            await asyncio.sleep(self.pause_s)

    async def _ask(self, at: int) -> tuple[int | str, str]:
        try:
            async with asyncio.timeout(ANSWER_S):
                code, said, headers = await self.place.ask(at)
        except TimeoutError:
            return "silent", ""
        except HttpError:
            return "broken", ""
        if code != 200:
            assert said["error"]["message"] and said["error"]["code"], said
        return code, dict(headers).get(b"market-executor", b"").decode()

    async def until(self, since_s: float, at: int, executor: str | None = None, patience_s: float = ANSWER_S) -> float:
        """Wait for an answer at a node to a request that began after `since_s`; returns how long after it came."""
        async with asyncio.timeout(patience_s):
            while True:
                for one in self.ended:
                    good = one.at == at and one.outcome == 200 and one.began_s >= since_s
                    if good and executor in {None, one.executor}:
                        return one.ended_s - since_s
                await asyncio.sleep(0.02)

    def outcomes(self, at: int | None = None) -> Counter[int | str]:
        return Counter(one.outcome for one in self.ended if at in {None, one.at})


class Mortal:
    """An engine in a process of its own, which can be killed; it stands where a scripted one would."""

    def __init__(self) -> None:
        [self.port] = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: asyncio.subprocess.Process | None = None

    async def begin(self) -> None:
        words = (
            sys.executable,
            "-m",
            "live_bridge",
            "emulate",
            "--profile",
            "cpu_tiny",
            "--speed",
            "100",
            "--port",
            str(self.port),
        )
        self._process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        assert self._process.stdout is not None
        async with asyncio.timeout(ANSWER_S):
            assert self.url in (await self._process.stdout.readline()).decode()

    async def end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


async def ids(place: Town) -> list[str]:
    return [(await place.get("/market/v1/state", k))["id"] for k in range(len(place.urls))]


async def entries(place: Town) -> list[tuple[Any, dict[str, Any]]]:
    """The ledger's journal: entries, and the order of each."""
    found: list[Any] = []
    while page := (await place.get(f"/market/v1/ledger/journal?from={len(found)}"))["entries"]:
        found += [from_json(each) for each in page]
    return [(entry, json.loads(entry.body)) for entry in found]


async def nothing_is_paid_twice(place: Town) -> int:
    """Each request has at most one payment, and each hold one end; returns how many were paid."""
    found = await entries(place)
    request = {order["terms"]["hold_id"]: order["terms"]["request"] for _, order in found if order.get("kind") == "hold"}
    settled = [order["terms"] for entry, order in found if order.get("kind") == "settle" and entry.accepted]
    ends = Counter(terms["hold_id"] for terms in settled)
    paid = Counter(request[terms["hold_id"]] for terms in settled if terms["amount_micro"] > 0)
    assert max(ends.values(), default=0) <= 1 and max(paid.values(), default=0) <= 1
    return len(paid)


async def proved(home: Path) -> None:
    store = SqliteStore(home / "ledger.sqlite", make=False)
    try:
        await audit_store(store)
    finally:
        await store.close()


def life_of(home: Path) -> int:
    return int((home / "lives").read_text())


async def killed_and_revived(place: Town, users: Users, at: int, everyone: list[str]) -> tuple[float, float]:
    """Kill a node and start it again; returns when others, and when its own users, were answered again."""
    life = life_of(place.homes[at])
    killed_s = time.monotonic()
    await place.tell(at, signal.SIGKILL)
    others = [k for k in range(len(place.urls)) if k != at]
    recovered_s = max([await users.until(killed_s, k) for k in others])
    begun_s = time.monotonic()
    await place.revive(at)
    revived_s = await users.until(begun_s, at)
    state = await place.get("/market/v1/state", at)
    assert state["id"] == everyone[at]
    assert life_of(place.homes[at]) == life + 1
    assert sum(state["balances"].values()) > 0
    return recovered_s, revived_s


def report(what: str, times: list[tuple[float, float]], users: Users) -> None:
    recovered, revived = zip(*times, strict=True)
    sys.stdout.write(
        f"\n{what}: {len(times)} rounds, others answered again after at most {max(recovered):.2f} s,"
        f" its own users {max(revived):.2f} s after its start; {dict(users.outcomes())}\n"
    )


async def engine_killed_and_revived(users: Users, at: int, engine: Mortal, me: str) -> tuple[float, float]:
    """Kill an engine and start it again; returns when its node's users were answered again by others, and by the engine."""
    killed_s = time.monotonic()
    await engine.end()
    recovered_s = await users.until(killed_s, at)
    await engine.begin()
    return recovered_s, await users.until(time.monotonic(), at, me)


async def all_are_alive(place: Town) -> bool:
    states = [await place.get("/market/v1/state", k) for k in range(len(place.urls))]
    return all(len(state["alive"]) == len(states) - 1 for state in states)


async def nothing_is_held(place: Town, owner: str) -> bool:
    *_, escrow = (await place.get("/market/v1/ledger/accounts"))["accounts"][owner]
    return bool(escrow == 0)


async def rounds(tmp_path: Path, schedule: list[str]) -> None:
    """Kill what the schedule says, one after the other, while users ask at all nodes."""
    mortal = Mortal()
    await mortal.begin()
    terms = {"suspect_rounds": 4, "gone_rounds": 4, "initial_credit": 100_000}  # nobody is too poor to be helped
    settings = {"backend": {"stale_s": 10.0}, "ledger": {"hold_ttl_s": 30}}
    async with Engine() as first, Engine() as last:
        try:
            async with town(tmp_path, [first, mortal, last], terms, policy=[NEVER, NEVER, ALWAYS], **settings) as place:  # type: ignore[list-item]
                everyone = await ids(place)
                users = Users(place, at=[0, 1, 2])
                times: dict[str, list[tuple[float, float]]] = {what: [] for what in schedule}
                for what in schedule:
                    if what == "engine":
                        times[what].append(await engine_killed_and_revived(users, 1, mortal, everyone[1]))
                    else:
                        times[what].append(await killed_and_revived(place, users, {"ledger": 0, "node": 2}[what], everyone))
                    await place.until(lambda: all_are_alive(place), 30.0)
                await users.stop()
                for what, found in times.items():
                    report(what, found, users)
                    assert max(recovered for recovered, _ in found) <= RECOVERY_S * BUSY
                    assert max(revived for _, revived in found) <= REVIVAL_S * BUSY
                assert users.outcomes()["silent"] == 0
                assert {one.at for one in users.ended if one.outcome == "broken"} <= {0, 2}  # the users of what was killed
                await place.until(lambda: nothing_is_held(place, everyone[1]))  # what the killed had set aside lapses later
                assert await nothing_is_paid_twice(place) > 10
        finally:
            await mortal.end()
    await proved(tmp_path / "n0" / "home")


def test_every_request_has_an_answer_while_engines_ledgers_and_nodes_are_killed(tmp_path: Path) -> None:
    asyncio.run(rounds(tmp_path, ["engine", "ledger", "node", "ledger", "engine"]))


@pytest.mark.slow
def test_every_request_has_an_answer_in_fifty_rounds_of_killing(tmp_path: Path) -> None:
    luck = random.Random(0)
    asyncio.run(rounds(tmp_path, [luck.choice(["engine", "ledger", "node"]) for _ in range(50)]))


async def begun(place: Town, at: int, count: int) -> list[asyncio.Task[Any]]:
    """Users at a node who wait for streams."""
    return [asyncio.create_task(place.ask(at, stream=True, prompt=f"at {at}, {k}")) for k in range(count)]


def test_a_node_that_is_told_to_leave_ends_fifty_streams_and_takes_no_more(tmp_path: Path) -> None:
    async def scene() -> None:
        go_on = asyncio.Event()
        async with (
            Engine() as mine,
            Engine(stream(6, hold=go_on, after=2)) as leaving,
            town(tmp_path, [mine, leaving], policy=[ALWAYS, NEVER], **calm()) as place,
        ):
            me, other = await ids(place)
            own, guests = await begun(place, 1, 25), await begun(place, 0, 25)
            await leaving.until(lambda: leaving.running == 50)
            told_s = time.monotonic()
            os.kill(place.fleet.pids()["n1"], signal.SIGTERM)

            async def draining() -> bool:
                with await place.client.request("GET", f"{place.urls[1]}/ready") as reply:
                    return bool(reply.status == 503)

            await place.until(draining)
            code, said, headers = await place.ask(1)
            assert (code, said["error"]["code"]) == (503, "draining") and int(dict(headers)[b"retry-after"]) > 0

            async def heard() -> bool:
                return other not in (await place.get("/market/v1/state"))["alive"]

            await place.until(heard)
            assert not any(task.done() for task in (*own, *guests))
            code, _, headers = await place.ask(0)  # a new request of a peer's users is not offered to it any more
            assert (code, dict(headers)[b"market-executor"].decode()) == (200, me)
            go_on.set()
            answers = await asyncio.gather(*own, *guests)
            assert {code for code, _, _ in answers} == {200}
            assert len({raw for _, raw, _ in answers}) == 1 and answers[0][1].endswith(b"data: [DONE]\n\n")
            assert {dict(headers)[b"market-executor"].decode() for _, _, headers in answers[25:]} == {other}
            assert await place.fleet.gone("n1") == 0
            took_s = time.monotonic() - told_s
            sys.stdout.write(f"\nleft after {took_s:.2f} s\n")
            assert took_s <= 30.0
            events = (await place.get("/metrics")).splitlines()
            assert 'wwwserve_requests_total{outcome="cut"} 0.0' in events
            assert await nothing_is_paid_twice(place) == 25

    asyncio.run(scene())


def test_a_stream_without_an_end_keeps_no_node_from_leaving(tmp_path: Path) -> None:
    async def scene() -> None:
        async with (
            Engine(stream(2, hold=asyncio.Event(), after=1)) as engine,
            town(tmp_path, [engine], limits={"drain_s": 1.0}) as place,
        ):
            users = await begun(place, 0, 3)
            await engine.until(lambda: engine.running == 3)
            told_s = time.monotonic()
            assert await place.tell(0, signal.SIGTERM) == 0
            assert time.monotonic() - told_s <= (1.0 + 3.0) * BUSY
            for outcome in await asyncio.gather(*users, return_exceptions=True):
                assert isinstance(outcome, HttpError), "a stream that was cut must not look whole"
            await engine.until(lambda: engine.left == 3)

    asyncio.run(scene())


def test_a_node_whose_peers_are_silent_leaves_in_time_all_the_same(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Engine() as a, Engine() as b, Engine() as c, town(tmp_path, [a, b, c], suspect_rounds_terms()) as place:
            frozen = [place.fleet.pids()[f"n{k}"] for k in (0, 2)]
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            try:
                told_s = time.monotonic()
                assert await place.tell(1, signal.SIGTERM) == 0
                took_s = time.monotonic() - told_s
                sys.stdout.write(f"\nleft silent peers after {took_s:.2f} s\n")
                assert took_s <= 10.0
            finally:
                for pid in frozen:
                    os.kill(pid, signal.SIGCONT)

    asyncio.run(scene())


def suspect_rounds_terms() -> dict[str, Any]:
    """Peers are believed alive for long, so that a node that leaves tells all of them."""
    return {"suspect_rounds": 100, "offer_timeout_s": 0.5}


def test_a_node_that_is_told_to_stop_before_it_is_ready_stops_at_once(tmp_path: Path) -> None:
    async def hang(request: Any, response: Any) -> None:
        await asyncio.Event().wait()

    async def scene() -> None:
        async with Engine() as engine:
            engine._handle = hang  # type: ignore[method-assign]
            await engine_of(engine)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "live_bridge", "serve", "--backend", engine.url, "--listen", "127.0.0.1:0"),
                *("--home", str(tmp_path / "home")),
                stderr=asyncio.subprocess.PIPE,
            )
            async with asyncio.timeout(ANSWER_S):
                while not (tmp_path / "home" / "journal.jsonl").exists():
                    await asyncio.sleep(0.02)
                told_s = time.monotonic()
                process.terminate()
                _, said = await process.communicate()
            assert (process.returncode, b"Traceback" in said) == (0, False), said.decode()
            assert time.monotonic() - told_s <= 1.0 * BUSY

    asyncio.run(scene())


async def engine_of(engine: Engine) -> None:
    """Let an engine listen anew, after its ways have been changed."""
    engine.end()
    await engine.begin()


async def forgotten(place: Town, peer: str) -> bool:
    """Whether nobody calls on a peer any more: a rumour of it has run out."""
    shown = [await place.metric('wwwserve_peers{status="gone"}', k) for k in (1, 2)]
    return shown == [1.0, 1.0]


@pytest.mark.slow  # peers that are buried so fast are buried by a busy host, too: it is run alone
def test_a_node_of_an_earlier_life_is_found_again_by_its_peers_though_it_has_founded_the_network(tmp_path: Path) -> None:
    async def scene() -> None:
        terms = {"suspect_rounds": 1, "gone_rounds": 1, "gossip_s": 0.1}
        async with Engine() as a, Engine() as b, Engine() as c, town(tmp_path, [a, b, c], terms) as place:
            me, *others = await ids(place)
            home = place.homes[0]

            async def written_down() -> bool:
                return (home / "peers").exists() and len((home / "peers").read_text().split()) == 2

            await place.until(written_down)
            await place.tell(0, signal.SIGKILL)

            async def buried() -> bool:
                return not any([me in (await place.get("/market/v1/state", k))["alive"] for k in (1, 2)])

            await place.until(buried)
            await place.until(lambda: forgotten(place, me))
            await place.revive(0)
            await place.until(lambda: all_are_alive(place))
            assert await ids(place) == [me, *others]

    asyncio.run(scene())
