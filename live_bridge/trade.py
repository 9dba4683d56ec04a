"""Work that goes out: offered to peers, its price set aside before it is sent, relayed byte for byte, paid as it was delivered."""

import asyncio
from collections.abc import Awaitable, Callable

import orjson

from live_bridge.brain.work import COPY_MARK
from live_bridge.core import Core
from live_bridge.correspondence import Correspondence, UnansweredError
from live_bridge.http.message import HttpError, Reply
from live_bridge.job import PEER, Job, from_peer
from live_bridge.ledger.orders import Delivery
from live_bridge.metrics import NodeMetrics
from live_bridge.peers.frames import Decoder, Failed, FrameError, Head, Receipt, payable
from live_bridge.portrait import Portrait
from live_bridge.purse import Held, Purse, proof_of
from live_bridge.relay import BROKE, CUT, DONE, REFUSED, Sink, answer_tokens, is_streamed

OFFER, WORK, WITHDRAW = "/market/v1/offer", "/market/v1/work", "/market/v1/withdraw"
MOST_ANSWER = 256 << 20
"""Bytes of an answer that a peer may send."""
TOLERANCE = 8
"""Tokens by which a peer's count may exceed ours in good faith."""
WITHDRAW_S = 2.0
PATIENCE_S = 600.0
"""Seconds on the wall until a peer's answer begins: the engine's own limit is the executor's to keep."""


class Trade:
    """The origin's side of delegated work."""

    def __init__(
        self,
        core: Core,
        letters: Correspondence,
        purse: Callable[[], Purse],
        public_of: Callable[[str], bytes | None],
        models_of: Callable[[str], tuple[str, ...]],
        metrics: NodeMetrics,
        portrait: Portrait,
        spawn: Callable[[Awaitable[object]], None],
    ) -> None:
        """Take what does the work.

        public_of   public key of a peer by its id
        models_of   what a peer's engine serves, as far as it says
        """
        self._core = core
        self._letters = letters
        self._purse = purse
        self._public_of = public_of
        self._models_of = models_of
        self._metrics = metrics
        self._portrait = portrait
        self._spawn = spawn
        self._held: dict[str, Held] = {}
        self._away: dict[str, asyncio.Timeout] = {}
        self.delivered: dict[str, tuple[Held, Delivery]] = {}
        """Paid work by job id, kept while a duel may need it."""
        core.carry_out |= {"ask": self._ask, "send": self._send, "fail": self._fail, "recall": self._recall}

    def _ask(self, job_id: str, peer: str, price_micro: int) -> None:
        self._spawn(self._offer(job_id, peer, price_micro))

    def _send(self, job_id: str, peer: str) -> None:
        job = self._core.jobs.get(job_id)
        if job is not None:
            job.decree(PEER, peer)

    def _fail(self, job_id: str, reason: str) -> None:
        job = self._core.jobs.get(job_id)
        if job is not None:
            job.decree("fail", reason)

    def _recall(self, job_id: str) -> None:
        """Wait no longer for a peer that is believed gone, whatever its connection looks like."""
        limit = self._away.get(job_id)
        if limit is not None:
            limit.reschedule(asyncio.get_running_loop().time())

    async def _offer(self, job_id: str, peer: str, price_micro: int) -> None:
        """Offer work to a peer; where it accepts, set its price aside before the work is sent."""
        job = self._core.jobs.get(job_id)
        if job is None:
            return
        answer = await self._answer(job, peer)
        if answer == "yes":
            held = await self._purse().hold(peer, price_micro, "work", request_of(job_id))
            if isinstance(held, Held):
                self._held[job_id] = held
            else:
                answer = "no"
                self._spawn(self._withdraw(job_id, peer))
        if job_id in self._core.jobs:
            self._metrics.offer("sent", answer)
            self._core.emit("answer", job_id, peer, answer)
            return
        self._release(job_id)
        if answer == "yes":
            self._spawn(self._withdraw(job_id, peer))

    async def _withdraw(self, job_id: str, peer: str) -> None:
        """Tell a peer that the work which it has accepted will not come, so that it keeps no room for it."""
        try:
            await self._letters.ask(peer, WITHDRAW, {"id": job_id}, WITHDRAW_S)
        except UnansweredError:
            return  # it forgets by itself after a while

    async def _answer(self, job: Job, peer: str) -> str:
        core = self._core
        if not self._serves(peer, job.facts.model):
            return "no"
        letter = {
            "id": job.id,
            "prompt_tokens": job.facts.prompt,
            "forecast_tokens": job.facts.forecast,
            "remaining_s": job.arrived_s + core.brain.setup.slo_s - core.clock.now(),
            "model": job.facts.model,
        }
        patience_s = max(core.clock.wall_s(core.brain.belief.terms.offer_timeout_s), 0.25)
        try:
            status, said = await self._letters.ask(peer, OFFER, letter, patience_s)
        except UnansweredError:
            return "silent"
        return "yes" if status == 200 and isinstance(said, dict) and said.get("accept") is True else "no"

    def _serves(self, peer: str, model: str) -> bool:
        """Whether a peer can answer for `model`: a request that names none may be answered by any."""
        models = self._models_of(peer)
        return not model or not models or model in models

    async def remote(self, job: Job, sink: Sink, rest: tuple[object, ...]) -> str:
        """Let the peer that has accepted `job` answer it into `sink`; see Relay.run."""
        peer = str(rest[0])
        held = self._held.pop(job.id)
        public = self._public_of(peer)
        job.executions += 1
        job.executor = peer
        if public is None:
            self._pay(held, 0, 0, None)
            return BROKE
        passage = Passage(job, sink, self._core.clock.now, Decoder(self._core.network, held.hold_id, public, MOST_ANSWER))
        outcome = CUT
        try:
            async with asyncio.timeout(None) as self._away[job.id]:
                reply = await self._letters.stream(peer, WORK, work_letter(job, held), PATIENCE_S)
                with reply:
                    outcome = await passage.run(reply)
        except TimeoutError:
            outcome = await passage.recalled()
        except UnansweredError as error:
            job.failure = str(error)
            outcome = BROKE
        finally:
            del self._away[job.id]
            self._settle(job, held, passage, outcome)
            self._portrait.sent(peer, job.id)
        return outcome

    def _settle(self, job: Job, held: Held, passage: "Passage", outcome: str) -> None:
        """Pay all for a whole answer, pro rata for a part, nothing for none."""
        if outcome in {BROKE, REFUSED}:
            self._pay(held, 0, 0, None)
            return
        counted, claimed = passage.counted(), passage.claimed
        tokens, disputed = (counted, False) if claimed is None else payable(claimed, counted, TOLERANCE)
        if disputed:
            self._metrics.refused("token_dispute")
        public, receipt = self._public_of(held.payee), passage.receipt
        if outcome == DONE and public is not None and receipt is not None:
            delivery = Delivery.of(public, receipt)
            self.delivered[job.id] = (held, delivery)
            # an answer that says nothing of its tokens, or has none, is whole all the same
            self._pay(held, held.amount_micro, max(tokens, 1), delivery)
            return
        # without the executor's word the ledger pays less than all, however much was delivered
        part = held.amount_micro * tokens // max(job.facts.forecast, 1)
        self._pay(held, min(part, held.amount_micro - 1), tokens, None)

    def _release(self, job_id: str) -> None:
        held = self._held.pop(job_id, None)
        if held is not None:
            self._pay(held, 0, 0, None)

    def _pay(self, held: Held, amount_micro: int, tokens: int, delivery: Delivery | None) -> None:
        self._spawn(self._purse().settle(held, amount_micro, tokens, delivery))

    def forget(self, job_id: str) -> None:
        """A job is over without its work having been sent: what was set aside for it comes back."""
        self._release(job_id)


class Passage:
    """One answer on its way from a peer to whoever asked."""

    def __init__(self, job: Job, sink: Sink, now: Callable[[], float], decoder: Decoder) -> None:
        self._job = job
        self._sink = sink
        self._now = now
        self._decoder = decoder
        self._head: Head | None = None
        self._whole = bytearray()
        self._streamed = False
        self._bytes = 0
        self._started = False
        self.receipt: Receipt | None = None
        self.claimed: int | None = None  # tokens, by the executor's last word; None where it did not come to one

    def counted(self) -> int:
        """Tokens of the answer by our own count: events of a stream; of a whole answer what it says, bounded by its bytes."""
        return self._job.tokens if self._streamed else min(answer_tokens(bytes(self._whole)), self._bytes)

    async def run(self, reply: Reply) -> str:
        """Pass the answer on; returns DONE, REFUSED, BROKE or CUT."""
        job = self._job
        try:
            if reply.status != 200:
                job.failure = f"peer: status {reply.status}: {(await reply.body(4096))[:200]!r}"
                return BROKE
            async for chunk in reply:
                for frame in self._decoder.feed(chunk):
                    if isinstance(frame, Failed):
                        self.claimed = frame.tokens
                        job.failure = f"peer: {frame.code}"
                        return await self._cut(frame.code)
                    await self._take(frame)
            self._decoder.finish()
        except (HttpError, FrameError) as error:
            job.failure = f"peer: {error}"
            return await self._cut("executor_failed")
        return await self._done()

    async def _take(self, frame: Head | bytes | Receipt) -> None:
        if isinstance(frame, Head):
            self._head = frame
            self._streamed = is_streamed(frame.headers)
        elif isinstance(frame, Receipt):
            self.receipt, self.claimed = frame, frame.tokens
        else:
            self._bytes += len(frame)
            self._job.first_s = self._job.first_s or self._now()
            if not self._streamed:
                self._whole += frame
                return
            self._job.note(frame)
            await self._begin()
            await self._sink.write(frame)

    async def _begin(self) -> None:
        if not self._started and self._head is not None:
            self._started = True
            await self._sink.head(self._head.status, from_peer(self._head.headers))

    async def recalled(self) -> str:
        """The executor is believed gone: nothing more is waited for."""
        self._job.failure = "peer: is gone, by the news of all"
        return await self._cut("executor_gone")

    async def _cut(self, code: str) -> str:
        """The executor cannot go on: somebody else may, as long as nothing was passed on."""
        if not self._started:
            return BROKE
        await self._sink.cut(code, self._job.tokens)
        return CUT

    async def _done(self) -> str:
        head = self._head
        if head is None:
            return BROKE
        job = self._job
        if self._streamed:
            await self._begin()
            await self._sink.end()
        else:
            job.tokens = self.counted()
            if job.keep is not None:
                job.keep += self._whole
            await self._sink.whole(head.status, from_peer(head.headers), bytes(self._whole))
        return DONE if head.status < 400 else REFUSED


def request_of(job_id: str) -> str:
    """The tag of a request, which its second copy shares."""
    return job_id.removesuffix(COPY_MARK)


def work_letter(job: Job, held: Held) -> bytes:
    """Write work for an executor: 4 bytes of length, what it needs to know, and the body as the user sent it."""
    head = orjson.dumps(
        {
            "id": job.id,
            "path": job.path,
            "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in job.headers],
            "proof": proof_of(held),
        }
    )
    return len(head).to_bytes(4, "big") + head + job.body
