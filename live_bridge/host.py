"""Work that comes in: offers answered by the mind, work done when its payment is proven, answers signed for."""

import asyncio
import heapq
import time
from collections.abc import Callable
from typing import NamedTuple

import orjson

from live_bridge.core import Core
from live_bridge.facts import Facts
from live_bridge.http.message import Headers, Request, Response
from live_bridge.identity import Identity
from live_bridge.job import LOCAL, Job, passed_in
from live_bridge.ledger.journal import Founding, Receipt
from live_bridge.ledger.orders import Hold
from live_bridge.peers.envelope import Door, Message, Refusal
from live_bridge.peers.frames import Encoder
from live_bridge.portrait import Portrait
from live_bridge.purse import proven
from live_bridge.relay import BROKE, DONE, Relay, answer_tokens
from live_bridge.wire import json_of

ANSWER_PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
MOST_TOKENS = 10_000_000
NO_OFFER = "an offer has id, prompt_tokens, forecast_tokens and remaining_s, and a new id"
FRAMES: Headers = [(b"content-type", b"application/x-market-frames")]
PROMISE_WALL_S = 5.0
"""The same on the wall, however fast the clock: an escrow is durable, and takes its time on a busy host."""
PROMISE_S = 10.0
"""Market seconds that accepted work may take to come: an escrow and a hop."""
HOLD_LEFT_S = 10.0
"""Market seconds that what was set aside must still be so when the work comes: nobody works for a hold that is about to lapse."""


class Offer(NamedTuple):
    """What a peer asks this node to do."""

    id: str
    prompt_tokens: int
    forecast_tokens: int
    remaining_s: float


class Promise(NamedTuple):
    """Work that was accepted and has not come yet."""

    origin: str
    offer: Offer
    price_micro: int
    timer: asyncio.TimerHandle


class Spent:
    """Holds that have paid for work here; each is remembered until it lapses by itself."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._ends: list[tuple[int, str]] = []

    def add(self, hold_id: str, lapses_us: int, now_us: int) -> bool:
        """Let a hold pay; False when it has paid before. Times in market microseconds of the ledger."""
        while self._ends and self._ends[0][0] <= now_us:
            self._ids.remove(heapq.heappop(self._ends)[1])
        if hold_id in self._ids:
            return False
        self._ids.add(hold_id)
        heapq.heappush(self._ends, (lapses_us, hold_id))
        return True


class Host:
    """The executor's side of delegated work."""

    def __init__(
        self,
        core: Core,
        door: Door,
        relay: Relay,
        identity: Identity,
        founding: Callable[[], Founding],
        portrait: Portrait,
    ) -> None:
        """Take what does the work; `founding` is that of the ledger both sides use."""
        self._core = core
        self._door = door
        self._relay = relay
        self._identity = identity
        self._founding = founding
        self._portrait = portrait
        self._promises: dict[str, Promise] = {}
        self._answers: dict[str, bool] = {}
        self._spent = Spent()
        self.draining = False
        core.carry_out |= {"yes": self._yes, "no": self._no}

    def _yes(self, work_id: str) -> None:
        self._answers[work_id] = True

    def _no(self, work_id: str) -> None:
        self._answers[work_id] = False

    def opened(self, request: Request, response: Response, unix_s: float) -> Message | None:
        """Open a letter, or answer why not and return None."""
        message = self._door.open(request, unix_s)
        if isinstance(message, Refusal):
            response.send(message.status, message.headers, message.body)
            return None
        return message

    def reply(self, message: Message, response: Response, status: int, answer: object) -> None:
        """Answer a letter, signed."""
        body = orjson.dumps(answer)
        response.send(status, self._door.reply(message, status, body), body)

    async def offer(self, message: Message, response: Response) -> None:
        """A peer offers work."""
        offer = offer_of(message)
        if offer is None or offer.id in self._core.brain.works:
            self.reply(
                message, response, 400, {"error": "an offer has id, prompt_tokens, forecast_tokens and remaining_s, and a new id"}
            )
            return
        accepted = self.promise(message.sender, offer, "guest") if not self.draining else False
        self._portrait.offered(accepted)
        self.reply(message, response, 200, {"accept": accepted})

    def promise(self, origin: str, offer: Offer, kind: str) -> bool:
        """Ask the mind about an offer; accepted work has some seconds to come."""
        core = self._core
        core.emit("offered", offer.id, origin, [offer.prompt_tokens, offer.forecast_tokens], offer.remaining_s, kind)
        if not self._answers.pop(offer.id):
            return False
        work = core.brain.works[offer.id]
        price = core.brain.price(work) if kind == "guest" else core.brain.belief.terms.judge_fee_micro
        timer = asyncio.get_running_loop().call_later(max(core.clock.wall_s(PROMISE_S), PROMISE_WALL_S), self._broken, offer.id)
        self._promises[offer.id] = Promise(origin, offer, price, timer)
        return True

    async def withdraw(self, message: Message, response: Response) -> None:
        """A peer says that work which was accepted here will not come; it can say so of its own alone."""
        said = json_of(message.body)
        work_id = said.get("id") if isinstance(said, dict) else None
        promise = self._promises.get(work_id) if isinstance(work_id, str) else None
        mine = promise is not None and promise.origin == message.sender
        if mine and promise is not None:
            promise.timer.cancel()
            self._broken(promise.offer.id)
        self.reply(message, response, 200, {"withdrawn": mine})

    def _broken(self, work_id: str) -> None:
        """Accepted work has not come."""
        if self._promises.pop(work_id, None) is not None:
            self._core.emit("end", work_id, 0, 0.0)

    def redeem(self, work_id: str, sender: str, proof: object) -> tuple[Promise, Hold] | tuple[int, str]:
        """Match work with the promise it was given, and its payment with the price; else a status and the reason."""
        promise = self._promises.get(work_id)
        if promise is None or promise.origin != sender:
            return 409, "this work was not accepted here, or too long ago"
        hold = proven(proof, self._founding(), sender, self._identity.id)
        if isinstance(hold, str):
            return 402, hold
        if hold.amount_micro < promise.price_micro:
            return 402, f"{hold.amount_micro} micro-credits are set aside, the price is {promise.price_micro}"
        unfit = self._unfit(hold, proof)
        if unfit:
            return 402, unfit
        promise.timer.cancel()
        del self._promises[work_id]
        return promise, hold

    def _unfit(self, hold: Hold, proof: object) -> str:
        """Take a proven hold for one piece of work; else say why it does not pay."""
        assert isinstance(proof, dict)
        lapses_us = Receipt(*proof["receipt"]).at_us + hold.ttl_us
        now_us = self._founding().at_us(time.time())
        if lapses_us < now_us + HOLD_LEFT_S * 1e6:
            return f"the hold lapses in {(lapses_us - now_us) / 1e6:g} s, it must last for {HOLD_LEFT_S:g} s; compare the clocks"
        return "" if self._spent.add(hold.hold_id, lapses_us, now_us) else "the hold has paid for other work already"

    async def work(self, message: Message, response: Response) -> None:
        """Accepted work has come: do it, and send the answer in frames."""
        letter = work_of(message.body)
        if letter is None:
            self.reply(message, response, 400, {"error": "work has a head of id, path, headers and proof, and a body"})
            return
        head, body = letter
        found = self.redeem(str(head["id"]), message.sender, head["proof"])
        if isinstance(found[0], int):
            self.reply(message, response, found[0], {"error": found[1]})
            return
        promise, hold = found
        job = self._job(head, body, promise)
        encoder = Encoder(self._identity, self._core.network, hold.hold_id)
        await self.see_through(job, FrameSink(response, encoder, job), message.sender)

    def _job(self, head: dict[str, object], body: bytes, promise: Promise) -> Job:
        offer = promise.offer
        pairs = head["headers"]
        assert isinstance(pairs, list)
        headers = passed_in([(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs])
        facts = Facts(offer.prompt_tokens, offer.forecast_tokens, b'"stream"' in body, "")
        return Job(offer.id, str(head["path"]), headers, body, facts, self._core.clock.now())

    async def see_through(self, job: Job, sink: "FrameSink", origin: str) -> None:
        """Take a guest from its content's arrival to its end."""
        core = self._core
        core.jobs[job.id] = job
        core.emit("begin", job.id)
        outcome = "cancelled"
        try:
            kind, *rest = await job.fate()
            if kind == LOCAL:
                outcome = await self._relay.run(job, sink, core.clock.now)
            else:
                job.failure = str(rest[0])
                outcome = BROKE
            if outcome == BROKE:
                await sink.cut("executor_failed", 0)
        finally:
            del core.jobs[job.id]
            core.emit("end", job.id, int(outcome == DONE), core.clock.now() - job.arrived_s)
            if outcome == DONE:
                self._portrait.hosted(origin, "guest")


class FrameSink:
    """A peer's connection: see Sink; the receipt is signed at the end."""

    def __init__(self, response: Response, encoder: Encoder, job: Job) -> None:
        self._response = response
        self._encoder = encoder
        self._job = job

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """See Sink."""
        encoder = self._encoder
        self._job.tokens = answer_tokens(body)
        frames = encoder.head(status, headers) + encoder.data(body) + encoder.end(self._job.tokens)
        self._response.send(200, FRAMES, frames)

    async def head(self, status: int, headers: Headers) -> None:
        """See Sink."""
        self._response.start(200, FRAMES)
        await self._response.write(self._encoder.head(status, headers))

    async def write(self, chunk: bytes) -> None:
        """See Sink."""
        await self._response.write(self._encoder.data(chunk))

    async def end(self) -> None:
        """See Sink."""
        await self._response.write(self._encoder.end(self._job.tokens))
        self._response.end()

    async def cut(self, code: str, tokens: int) -> None:
        """See Sink."""
        if not self._response.started:
            self._response.start(200, FRAMES)
        await self._response.write(self._encoder.error(code, tokens))
        self._response.end()


def offer_of(message: Message) -> Offer | None:
    """Read an offer; None when it has not the form of one. Its id begins with its sender's, so that none can take another's."""
    match json_of(message.body):
        case {
            "id": str(work_id),
            "prompt_tokens": int(prompt),
            "forecast_tokens": int(forecast),
            "remaining_s": float() | int() as left,
        }:
            mine = work_id.startswith(f"{message.sender[:12]}.") and len(work_id) <= 64
            if mine and 1 <= prompt <= MOST_TOKENS and 1 <= forecast <= MOST_TOKENS and -1e9 < left < 1e9:
                return Offer(work_id, prompt, forecast, float(left))
    return None


def work_of(body: bytes) -> tuple[dict[str, object], bytes] | None:
    """Take a work letter apart: its head and the user's body; None when it has not that form."""
    size = int.from_bytes(body[:4], "big")
    match json_of(body[4 : 4 + size]):
        case {"id": str(), "path": str(path), "headers": list(pairs), "proof": dict()} as head if path in ANSWER_PATHS:
            if all(
                isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) and x.isprintable() for x in pair)
                for pair in pairs
            ):
                return head, body[4 + size :]
    return None
