"""Membership and gossip of one node: what is told and heard, who is joined, and what is known of accounts."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from live_bridge.brain import Brain
from live_bridge.clock import Clock
from live_bridge.core import Core
from live_bridge.correspondence import UnansweredError
from live_bridge.http.client import Client
from live_bridge.http.message import Limits
from live_bridge.http.server import Server
from live_bridge.identity import Identity
from live_bridge.ledger.journal import refusal
from live_bridge.ledger.store import StoreError
from live_bridge.metrics import NodeMetrics
from live_bridge.peers.addresses import Guard
from live_bridge.peers.rows import Bounds, Directory
from live_bridge.slip import Slipped
from live_bridge.society import GOSSIP, HELLO, MOST_MET, Society, greet, kept, shown
from live_bridge.view.recent import Recent
from market import gossip
from tests.live_bridge.minds import CREDIT, STAKE, setup
from tests.live_bridge.towns import JSON

NETWORK = "test"


class NoJournal:
    def write(self, line: list[Any]) -> None:
        """Forget it."""


class Member:
    """One node's society, whose letters are handed over in memory; `silent` ones are not answered."""

    def __init__(self, number: int, world: dict[str, "Member"]) -> None:
        self.identity = Identity(bytes([number]) * 32)
        self.now_s = 0.0
        self.core = Core(Brain(setup(me=self.identity.id)), Clock(1.0, lambda: self.now_s), NoJournal(), NETWORK)
        bounds = Bounds(100, 60.0, 0.0)
        self.directory = Directory(self.identity.id, NETWORK, bounds, lambda _: None, lambda _: True, lambda _: None)
        self.recent = Recent(lambda: self.now_s)
        self.beside: list[Any] = []
        self.world = world
        self.asked: list[str] = []
        self.silent = False
        self.society = Society(
            self.core,
            self.identity,
            self.directory,
            self,
            self,
            NodeMetrics(),
            self.recent,
            self.beside.append,  # type: ignore[arg-type]
        )
        self.society.name, self.society.address = f"n{number}", f"http://127.0.0.1:{9000 + number}"
        world[self.identity.id] = self

    @property
    def id(self) -> str:
        return self.identity.id

    async def ask_raw(self, peer: str, path: str, body: bytes, patience_s: float) -> tuple[int, bytes]:
        """As letters."""
        self.asked.append(peer)
        await asyncio.sleep(0)
        other = self.world.get(peer)
        if other is None or other.silent:
            raise UnansweredError(f"peer {peer[:8]}: is silent")
        assert path == GOSSIP and patience_s >= 0.25
        return 200, other.answer(body)

    def answer(self, body: bytes) -> bytes:
        said: list[bytes] = []
        response = SimpleNamespace(send=lambda status, headers, raw: said.append(raw))
        self.society.hear(SimpleNamespace(body=body), response)  # type: ignore[arg-type]
        [raw] = said
        return raw

    def reply(self, message: Any, status: int, body: bytes) -> list[Any]:
        """As a door."""
        return []

    def events(self) -> list[str]:
        from tests.live_bridge.test_portrait import Scene

        totals = Scene().portrait.totals()
        return [event["text"] for event in self.recent.snapshot({}, [], totals)["events"]]  # type: ignore[typeddict-item]

    def let_be(self) -> None:
        """Let nothing come of what was begun beside."""
        for work in self.beside:
            work.close()

    async def round(self) -> None:
        """A gossip round, and what it leads to."""
        self.now_s += 1.0
        await self.society.round()
        work, self.beside[:] = list(self.beside), []
        await asyncio.gather(*work)


def members(count: int) -> list[Member]:
    world: dict[str, Member] = {}
    return [Member(k + 1, world) for k in range(count)]


def run(work: Any) -> Any:
    return asyncio.run(work)


def test_two_that_talk_know_each_other() -> None:
    a, b = members(2)
    assert run(a.society.exchange(b.id))
    assert a.core.brain.alive() == [] and b.core.brain.alive() == [a.id], "b had nothing to tell yet"
    run(b.society.exchange(a.id))
    assert a.core.brain.alive() == [b.id]
    assert a.events() == [f"n2 ({b.id[:8]}) has joined"]


def test_news_travels_through_others_to_all() -> None:
    async def scene() -> list[Member]:
        all_of = members(8)
        for one in all_of[1:]:
            assert await one.society.exchange(all_of[0].id)
        for _ in range(12):
            for one in all_of:
                await one.round()
        return all_of

    all_of = run(scene())
    for one in all_of:
        assert sorted(one.core.brain.alive()) == sorted(other.id for other in all_of if other is not one)
        row = one.directory.get(all_of[7].id)
        assert row is not None and (row.name, row.address) == ("n8", "http://127.0.0.1:9008")


def test_a_peer_that_is_silent_is_suspected_and_then_gone_and_said_to_be() -> None:
    async def scene() -> tuple[Member, Member]:
        a, b = members(2)
        await b.society.exchange(a.id)
        b.silent = True
        assert not await a.society.exchange(b.id)
        assert a.core.brain.belief.status(a.core.brain.belief.place(b.id)) == gossip.SUSPECT
        for _ in range(40):
            await a.round()
        return a, b

    a, b = run(scene())
    assert a.core.brain.alive() == []
    assert a.events()[-1] == f"{b.id[:8]} does not answer any more"


def test_a_peer_that_answers_again_is_alive_again() -> None:
    async def scene() -> tuple[Member, Member]:
        a, b = members(2)
        await b.society.exchange(a.id)
        b.silent = True
        for _ in range(40):
            await a.round()
        b.silent = False
        b.now_s = a.now_s
        await b.round()
        await b.society.exchange(a.id)
        return a, b

    a, b = run(scene())
    assert a.core.brain.alive() == [b.id]


def test_who_leaves_is_gone_at_once_everywhere_it_was_told_and_said_so_once() -> None:
    async def scene() -> list[Member]:
        a, b, c = members(3)
        for one in (b, c):
            await one.society.exchange(a.id)
        await b.society.exchange(a.id)
        await c.society.exchange(a.id)
        a.now_s = 1.0
        await a.society.farewell()
        a.let_be()
        for _ in range(3):
            b.now_s += 1.0
            await b.society.exchange(c.id)
        return [a, b, c]

    a, b, c = run(scene())
    for one in (b, c):
        assert a.id not in one.core.brain.alive()
        assert one.events().count(f"n1 ({a.id[:8]}) is leaving") == 1
    row = b.directory.get(a.id)
    assert row is not None and (row.leaving, row.accepts) == (True, 0.0)


def test_a_farewell_does_not_wait_for_one_peer_after_the_other() -> None:
    async def scene() -> int:
        a, *others = members(6)
        for one in others:
            await one.society.exchange(a.id)
        talking, most = 0, 0

        async def slow(peer: str) -> bool:
            nonlocal talking, most
            talking += 1
            most = max(most, talking)
            await asyncio.sleep(0.01)
            talking -= 1
            return False

        a.society.exchange = slow  # type: ignore[method-assign]
        await a.society.farewell()
        a.let_be()
        return most

    assert run(scene()) == 5


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("wait_s", float("inf"), 1e9),
        ("wait_s", float("nan"), 1e9),
        ("wait_s", -1.0, 0.0),
        ("wait_s", 3.5, 3.5),
        ("usage", 1.7, 1.0),
        ("usage", float("nan"), 1.0),
        ("usage", 0.25, 0.25),
    ],
)
def test_a_row_is_told_within_its_range_whatever_the_forecast_is(field: str, value: float, told: float) -> None:
    [a] = members(1)
    setattr(a.core.brain.belief.rows[0], field, value)
    a.society._post()
    row = a.directory.get(a.id)
    assert row is not None and getattr(row, field) == told


def test_names_that_are_too_long_to_be_told_are_cut_or_left_out() -> None:
    [a] = members(1)
    a.society.name = "x" * 100
    a.society.models = ("m" * 500, *(f"org/model-{k}" + "y" * 150 for k in range(40)), "é" * 150)
    a.society._post()
    row = a.directory.get(a.id)
    assert row is not None and len(row.name) == 64
    assert 1 <= len(row.models) <= 32 and row.models[0].startswith("org/model-0")


def test_models_that_fit_are_all_told() -> None:
    assert shown(("a", "b")) == ("a", "b")
    assert len(shown(tuple(str(k) for k in range(100)))) == 32
    assert shown(()) == ()


# -- accounts


class Purse:
    """A purse whose ledger can be away."""

    def __init__(self) -> None:
        self.away = False
        self.rows = {"ann": (CREDIT, STAKE, 0, 0)}
        self.moved: list[tuple[str, int]] = []
        self.gate = asyncio.Event()

    async def accounts(self) -> Any:
        if self.away:
            raise StoreError("the ledger is away")
        return self.rows

    async def stake(self, amount: int) -> Any:
        return await self._move("stake", amount)

    async def unstake(self, amount: int) -> Any:
        return await self._move("unstake", amount)

    async def _move(self, kind: str, amount: int) -> Any:
        self.moved.append((kind, amount))
        await self.gate.wait()
        if self.away:
            raise StoreError("the ledger is away")


def banked() -> tuple[Member, Purse]:
    [a] = members(1)
    a.society.purse = Purse()  # type: ignore[assignment]
    return a, a.society.purse  # type: ignore[return-value]


def test_balances_of_all_are_believed_as_the_ledger_has_them() -> None:
    async def scene() -> Member:
        a, _ = banked()
        await a.society.read_ledger()
        return a

    belief = run(scene()).core.brain.belief
    account = belief.accounts[belief.place("ann")]
    assert (account.credit_micro, account.stake_micro) == (CREDIT, STAKE)


def test_a_node_without_a_ledger_yet_reads_none() -> None:
    [a] = members(1)
    run(a.society.read_ledger())
    assert a.core.brain.belief.providers == 1


def test_a_ledger_that_is_away_is_said_once_and_so_is_its_return() -> None:
    async def scene() -> tuple[list[bool], list[str]]:
        a, purse = banked()
        said = []
        for away in (False, True, True, True, False, False, True):
            purse.away = away
            try:
                await a.society.read_ledger()
                said.append(False)
            except StoreError:
                said.append(True)
        return said, a.events()

    said, events = run(scene())
    assert said == [False, True, False, False, False, False, True]
    assert events == ["the ledger answers again"]


def test_gossip_goes_on_while_the_ledger_is_away() -> None:
    async def scene() -> list[str]:
        a, b = members(2)
        a.society.purse = Purse()  # type: ignore[assignment]
        a.society.purse.away = True  # type: ignore[union-attr]
        await b.society.exchange(a.id)
        await a.round()
        return a.asked

    assert len(run(scene())) == 1


def test_a_receipt_tells_at_once_what_the_account_holds() -> None:
    [a] = members(1)
    receipt = refusal("", a.id, "")._replace(accepted=True, credit_micro=5, stake_micro=6, unbonding_micro=7, escrow_micro=8)
    a.society.paid(receipt)
    account = a.core.brain.belief.accounts[0]
    assert [account.credit_micro, account.stake_micro, account.unbonding_micro, account.escrow_micro] == [5, 6, 7, 8]
    a.society.paid(receipt._replace(accepted=False, credit_micro=0))
    assert account.credit_micro == 5


@pytest.mark.parametrize("away", [False, True])
def test_stake_is_moved_by_one_order_at_a_time(away: bool) -> None:
    async def scene() -> list[tuple[str, int]]:
        a, purse = banked()
        for name, amount in (("stake", 3), ("unstake", 2), ("stake", 1)):
            a.core.carry_out[name](amount)
        [first] = [asyncio.ensure_future(work) for work in a.beside]
        await asyncio.sleep(0)
        purse.away = away
        purse.gate.set()
        await asyncio.gather(first, return_exceptions=True)
        a.beside.clear()
        a.core.carry_out["unstake"](4)
        await asyncio.gather(*a.beside, return_exceptions=True)
        return purse.moved

    assert run(scene()) == [("stake", 3), ("unstake", 4)]


# -- from one life to the next


def test_where_peers_are_is_written_down_and_read_in_the_next_life(tmp_path: Path) -> None:
    async def scene() -> Member:
        a, b, c = members(3)
        for one in (b, c):
            await one.society.exchange(a.id)
        return a

    a = run(scene())
    assert kept(tmp_path) == []
    a.society.keep(tmp_path)
    assert kept(tmp_path) == ["http://127.0.0.1:9002", "http://127.0.0.1:9003"]
    (tmp_path / "peers").unlink()
    a.society.keep(tmp_path)
    assert not (tmp_path / "peers").exists(), "nothing has changed since"


def test_a_node_that_has_lost_all_peers_keeps_what_it_knew(tmp_path: Path) -> None:
    (tmp_path / "peers").write_text("http://127.0.0.1:9002\n")
    members(1)[0].society.keep(tmp_path)
    assert kept(tmp_path) == ["http://127.0.0.1:9002"]


def test_a_disk_that_takes_nothing_is_said_and_survived(tmp_path: Path) -> None:
    async def scene() -> Member:
        a, b = members(2)
        await b.society.exchange(a.id)
        return a

    a = run(scene())
    a.society.keep(tmp_path / "nowhere")
    assert "cannot be written: No such file or directory" in a.events()[-1]


def test_what_is_no_list_of_peers_is_none(tmp_path: Path) -> None:
    (tmp_path / "peers").write_bytes(b"\xff\xfe")
    assert kept(tmp_path) == []
    (tmp_path / "peers").unlink()
    (tmp_path / "peers").mkdir()
    assert kept(tmp_path) == []
    (tmp_path / "peers").rmdir()
    (tmp_path / "peers").write_text("\n".join(f"http://127.0.0.1:{k}" for k in range(1000, 2000)))
    assert len(kept(tmp_path)) == MOST_MET


# -- greetings

GOOD = {"id": "ab" * 20, "public": "cd" * 32, "network": NETWORK, "address": "http://127.0.0.1:1", "ledger": "http://127.0.0.1:1"}


async def greeted(answer: bytes, act: Callable[[str, Client, Guard], Any], status: int = 200) -> Any:
    """Serve one answer to every greeting."""

    async def handle(request: Any, response: Any) -> None:
        assert (request.method, request.path) == ("GET", HELLO)
        response.send(status, JSON, answer)

    server, client = Server(handle, Limits(), lambda _: None), Client()
    port = await server.listen("127.0.0.1", 0)
    try:
        return await act(f"http://127.0.0.1:{port}", client, Guard(["127.0.0.0/8"], 10, 1.0))
    finally:
        await client.close()
        server.close()


def test_a_node_says_who_it_is() -> None:
    found = run(greeted(orjson.dumps(GOOD | {"more": 1}), lambda url, client, guard: greet(client, guard, url, NETWORK)))
    assert found == GOOD


@pytest.mark.parametrize(
    "answer",
    [b"", b"<html>", b"[]", b"null", b'"x"', b"{}", *(orjson.dumps(GOOD | {key: 7}) for key in GOOD)],
)
def test_what_answers_otherwise_is_no_node(answer: bytes) -> None:
    with pytest.raises(Slipped, match="answers, but is no node of a market"):
        run(greeted(answer, lambda url, client, guard: greet(client, guard, url, NETWORK)))


def test_a_node_of_another_network_is_named_with_the_way_out() -> None:
    with pytest.raises(Slipped, match="is of network test, this node of paris; set network=test"):
        run(greeted(orjson.dumps(GOOD), lambda url, client, guard: greet(client, guard, url, "paris")))


def test_an_answer_without_an_end_is_not_read_to_it() -> None:
    with pytest.raises(Slipped, match="join: "):
        run(greeted(b'"' + b"x" * 70_000 + b'"', lambda url, client, guard: greet(client, guard, url, NETWORK)))


def test_who_is_not_there_or_not_allowed_is_named() -> None:
    async def scene(url: str) -> None:
        client = Client()
        try:
            await greet(client, Guard(["127.0.0.0/8"], 10, 1.0), url, NETWORK)
        finally:
            await client.close()

    for url, reason in (
        ("http://127.0.0.1:1", "no connection"),
        ("http://10.0.0.1:1", "is in no allowed network"),
        ("nonsense", "must be"),
    ):
        with pytest.raises(Slipped, match=f"join: {url}: .*{reason}"):
            run(scene(url))


def test_peers_of_an_earlier_life_are_greeted_and_talked_to_and_the_lost_are_not_missed() -> None:
    async def act(url: str, client: Client, guard: Guard) -> Member:
        a, b = members(2)
        b.society.exchange = None  # type: ignore[assignment, method-assign]
        urls = ["http://127.0.0.1:1", "nonsense", url]
        await a.society.find_again(urls, client, guard)
        return a

    world_b = Identity(bytes([2]) * 32)
    a = run(greeted(orjson.dumps(GOOD | {"id": world_b.id}), act))
    assert a.society.met == {world_b.id: GOOD["address"]}
    assert a.asked == [world_b.id]


def test_a_node_that_greets_itself_does_not_talk_to_itself() -> None:
    async def act(url: str, client: Client, guard: Guard) -> Member:
        [a] = members(1)
        await a.society.find_again([url], client, guard)
        return a

    me = Identity(bytes([1]) * 32)
    a = run(greeted(orjson.dumps(GOOD | {"id": me.id}), act))
    assert (a.society.met, a.asked) == ({}, [])
