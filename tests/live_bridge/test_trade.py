"""The origin's side of delegated work: what a peer is told, how long it is waited for, what of its answer reaches a user."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, Self

import pytest

from live_bridge import trade
from live_bridge.correspondence import CONNECT_S, Correspondence, UnansweredError
from live_bridge.facts import Facts
from live_bridge.http.message import ConnectFailed, Headers
from live_bridge.identity import Identity
from live_bridge.job import Job, from_peer, passed_out
from live_bridge.ledger.journal import refusal
from live_bridge.peers.addresses import Guard
from live_bridge.peers.frames import Decoder, Encoder
from live_bridge.purse import Held
from live_bridge.relay import BROKE, CUT, DONE
from live_bridge.trade import OFFER, WITHDRAW, Passage, Trade

PEER = Identity(b"p" * 32)
NASTY: Headers = [
    (b"content-type", b"text/event-stream"),
    (b"set-cookie", b"session=stolen"),
    (b"market-executor", b"somebody"),
    (b"market-forecast-tokens", b"1"),
    (b"connection", b"close"),
    (b"transfer-encoding", b"chunked"),
    (b"content-length", b"7"),
    (b"location", b"http://evil.example"),
    (b"refresh", b"0; url=http://evil.example"),
    (b"strict-transport-security", b"max-age=1"),
    (b"access-control-allow-origin", b"*"),
    (b"clear-site-data", b'"*"'),
    (b"www-authenticate", b"Basic"),
    (b"content-encoding", b"gzip"),
    (b"x-request-id", b"r-1"),
    (b"content-type", b"text/html"),
    (b"retry-after", b"1"),
]


def a_job() -> Job:
    return Job("me.1.1", "/v1/completions", [], b"{}", Facts(4, 8, stream=True, model=""), 0.0)


class Kept:
    """A user who keeps what comes."""

    def __init__(self) -> None:
        self.heads: list[tuple[int, Headers]] = []
        self.body = b""
        self.ends: list[Any] = []

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        self.heads.append((status, headers))
        self.body += body

    async def head(self, status: int, headers: Headers) -> None:
        self.heads.append((status, headers))

    async def write(self, chunk: bytes) -> None:
        self.body += chunk

    async def end(self) -> None:
        self.ends.append("end")

    async def cut(self, code: str, tokens: int) -> None:
        self.ends.append((code, tokens))


class Pieces:
    """A peer's reply."""

    status = 200

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = iter(pieces)

    def __aiter__(self) -> "Pieces":
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...


@pytest.mark.parametrize("kind", [b"text/event-stream", b"application/json"])
def test_a_user_gets_no_header_of_a_peer_that_acts_on_the_client(kind: bytes) -> None:
    async def scene() -> None:
        sink, encoder = Kept(), Encoder(PEER, "test", "h1")
        headers = [(b"content-type", kind), *NASTY[1:-2], NASTY[-1]]
        frames = encoder.head(200, headers) + encoder.data(b'data: {"a":1}\n\n') + encoder.end(1)
        passage = Passage(a_job(), sink, lambda: 1.0, Decoder("test", "h1", PEER.public, 1 << 20))
        assert await passage.run(Pieces(frames)) == DONE  # type: ignore[arg-type]
        assert sink.heads == [(200, [(b"content-type", kind), (b"x-request-id", b"r-1"), (b"retry-after", b"1")])]

    asyncio.run(scene())


def test_each_header_of_a_peer_counts_once_the_first_time() -> None:
    assert from_peer(NASTY) == [(b"content-type", b"text/event-stream"), (b"x-request-id", b"r-1"), (b"retry-after", b"1")]
    assert from_peer([]) == []
    assert set(from_peer(NASTY)) < set(passed_out(NASTY))  # the own engine is trusted with more


class Letters:
    """Peers that accept whatever they are offered, and hear what else they are told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, Any]] = []
        self.reply: Callable[[], Awaitable[Any]] | None = None

    async def ask(self, peer: str, path: str, letter: Any, patience_s: float) -> tuple[int, object]:
        self.told.append((peer, path, letter))
        if path == WITHDRAW:
            raise UnansweredError("peer: is silent")  # which is survived
        return 200, {"accept": True}

    async def stream(self, peer: str, path: str, body: bytes, patience_s: float) -> Any:
        assert self.reply is not None
        return await self.reply()


class Place:
    """A trade whose surroundings are scripted."""

    def __init__(self, hold: Callable[[], Awaitable[Any]]) -> None:
        self.letters, self.events, self.job = Letters(), [], a_job()
        self.tasks: list[asyncio.Future[Any]] = []
        self.settled: list[tuple[int, int]] = []
        terms = SimpleNamespace(offer_timeout_s=1.0)
        brain = SimpleNamespace(belief=SimpleNamespace(terms=terms), setup=SimpleNamespace(slo_s=10.0))
        clock = SimpleNamespace(now=lambda: 0.0, wall_s=lambda span_s: span_s)
        self.core: Any = SimpleNamespace(
            brain=brain, clock=clock, network="test", jobs={self.job.id: self.job}, carry_out={}, emit=self._emit
        )

        async def held(*_: Any) -> Any:
            return await hold()

        async def settle(_held: Any, amount_micro: int, tokens: int, _delivery: Any) -> None:
            self.settled.append((amount_micro, tokens))

        purse: Any = SimpleNamespace(hold=held, settle=settle)
        quiet: Any = SimpleNamespace(offer=lambda *_: None, refused=lambda *_: None, sent=lambda *_: None)
        letters: Any = self.letters
        self.trade = Trade(self.core, letters, lambda: purse, lambda _: PEER.public, lambda _: (), quiet, quiet, self._spawn)

    def _emit(self, *event: Any) -> None:
        self.events.append(event)

    def _spawn(self, work: Awaitable[Any]) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    async def offer(self) -> None:
        self.core.carry_out["ask"](self.job.id, PEER.id, 1000)
        while self.tasks:
            await self.tasks.pop(0)

    @property
    def paths(self) -> list[str]:
        return [path for _, path, _ in self.letters.told]


async def granted() -> Any:
    return Held("h1", PEER.id, 1000, "me.1.1", SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]


async def denied() -> Any:
    return refusal("", "me", "insufficient_credit")


def test_a_promise_that_cannot_be_paid_is_withdrawn_and_counts_as_a_no() -> None:
    async def scene() -> None:
        place = Place(denied)
        await place.offer()
        assert place.events == [("answer", place.job.id, PEER.id, "no")]
        assert place.paths == [OFFER, WITHDRAW]
        assert place.letters.told[1] == (PEER.id, WITHDRAW, {"id": place.job.id})

    asyncio.run(scene())


def test_a_promise_whose_user_has_left_meanwhile_is_withdrawn_and_its_price_comes_back() -> None:
    async def scene() -> None:
        place = Place(granted)

        async def slowly(*_: Any) -> Any:
            place.core.jobs.clear()
            return await granted()

        purse: Any = SimpleNamespace(hold=slowly, settle=place.trade._purse().settle)
        place.trade._purse = lambda: purse
        await place.offer()
        assert place.events == [] and place.paths == [OFFER, WITHDRAW]
        assert place.settled == [(0, 0)]

    asyncio.run(scene())


def test_a_promise_that_is_paid_for_is_kept() -> None:
    async def scene() -> None:
        place = Place(granted)
        await place.offer()
        assert place.events == [("answer", place.job.id, PEER.id, "yes")]
        assert place.paths == [OFFER] and place.settled == []

    asyncio.run(scene())


@pytest.mark.parametrize(("begun", "outcome"), [(False, BROKE), (True, CUT)])
def test_what_is_called_back_ends_at_once_for_another_to_do_or_with_an_error(monkeypatch, begun: bool, outcome: str) -> None:
    async def scene() -> None:
        place, sink, reached = Place(granted), Kept(), asyncio.Event()
        await place.offer()
        encoder = Encoder(PEER, "test", "h1")

        class Hung(Pieces):
            async def __anext__(self) -> bytes:
                for piece in self._pieces:
                    return piece
                reached.set()
                await asyncio.Event().wait()
                raise AssertionError

        async def reply() -> Any:
            head = encoder.head(200, [(b"content-type", b"text/event-stream")])
            return Hung(*([head, encoder.data(b"data: a\n\n")] if begun else []))

        place.letters.reply = reply
        place.core.carry_out["recall"]("another's")  # nothing of that name is away
        monkeypatch.setattr(trade, "work_letter", lambda *_: b"")
        running = asyncio.create_task(place.trade.remote(place.job, sink, (PEER.id,)))
        async with asyncio.timeout(5.0):
            await reached.wait()
            place.core.carry_out["recall"](place.job.id)
            assert await running == outcome
        assert sink.ends == ([("executor_gone", 1)] if begun else [])
        assert "gone" in place.job.failure
        while place.tasks:
            await place.tasks.pop(0)
        assert place.settled == ([(125, 1)] if begun else [(0, 0)])
        place.core.carry_out["recall"](place.job.id)  # it is over

    asyncio.run(scene())


@pytest.mark.parametrize(("patience_s", "connect_s"), [(600.0, CONNECT_S), (0.25, 0.25)])
def test_nobody_waits_long_for_a_connection_however_long_the_answer_may_take(patience_s: float, connect_s: float) -> None:
    asked: list[dict[str, Any]] = []

    class Nobody:
        async def request(self, *_: Any, **how: Any) -> Any:
            asked.append(how)
            raise ConnectFailed("nobody is there")

    async def scene() -> None:
        door: Any = SimpleNamespace(seal=lambda *_: [])
        client: Any = Nobody()
        letters = Correspondence(door, Guard(["127.0.0.0/8"], 10, 1.0), client, lambda _: "http://127.0.0.1:1")
        with pytest.raises(UnansweredError, match="nobody is there"):
            await letters.stream(PEER.id, "/market/v1/work", b"", patience_s)
        assert (asked[0]["connect_s"], asked[0]["first_byte_s"]) == (connect_s, patience_s)

    asyncio.run(scene())
