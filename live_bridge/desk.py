"""Duels with real answers: a second copy is executed, judges read both, their signed votes go to the ledger."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import orjson

from live_bridge.brain.work import COPY_MARK
from live_bridge.core import Core
from live_bridge.correspondence import Correspondence, UnansweredError
from live_bridge.http.message import Headers
from live_bridge.identity import id_of
from live_bridge.job import PEER, Job
from live_bridge.ledger.orders import CAST, Delivery, Vote, encode
from live_bridge.metrics import NodeMetrics
from live_bridge.peers.judge import SignedVote, is_cast
from live_bridge.purse import Held, Paid, Purse, proof_of
from live_bridge.relay import BROKE, DONE
from live_bridge.trade import Trade, request_of
from live_bridge.view.recent import Recent
from live_bridge.view.snapshot import Vote as Shown
from live_bridge.wire import json_of

LOG = logging.getLogger(__name__)
JUDGE = "/market/v1/judge"
VERDICT = "/market/v1/verdict"
SHOWN: dict[str, Shown] = {"A": "A", "B": "B", "abstain": "abstain", "absent": "absent"}
PATIENCE_S = 120.0
"""Seconds on the wall that a judge may take; the duel's own deadline is in market seconds, and ends it sooner."""
TELLING_S = 10.0


class DeskSink:
    """Where the second copy's answer goes: it is kept for the judges, nobody is waiting for it."""

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """See Sink; the job keeps what it is given."""

    async def head(self, status: int, headers: Headers) -> None:
        """See Sink."""

    async def write(self, chunk: bytes) -> None:
        """See Sink."""

    async def end(self) -> None:
        """See Sink."""

    async def cut(self, code: str, tokens: int) -> None:
        """See Sink."""


class Case(NamedTuple):
    """A duelled request and its second copy."""

    first: Job
    copy: Job
    votes: dict[str, Vote]
    beside: list[asyncio.Task[Any]]  # the copy on its way, and the judges that are asked: over when the duel is


class Desk:
    """The origin's side of duels."""

    def __init__(
        self,
        core: Core,
        trade: Trade,
        letters: Correspondence,
        purse: Callable[[], Purse],
        metrics: NodeMetrics,
        recent: Recent,
        spawn: Callable[[Awaitable[object]], None],
    ) -> None:
        self._core = core
        self._trade = trade
        self._letters = letters
        self._purse = purse
        self._metrics = metrics
        self._recent = recent
        self._spawn = spawn
        self._cases: dict[str, Case] = {}
        core.carry_out |= {
            "copy": self._copy,
            "drop": self._drop,
            "judge": self._judge,
            "duel": self._settle,
            "duel_off": self._call_off,
        }

    def _copy(self, job_id: str, copy_id: str) -> None:
        """Begin a duel: the same content goes to a second executor."""
        core = self._core
        first = core.jobs[job_id]
        copy = Job(copy_id, first.path, first.headers, first.body, first.facts, first.arrived_s)
        first.keep, copy.keep = bytearray(), bytearray()
        core.jobs[copy_id] = copy
        case = self._cases[job_id] = Case(first, copy, {}, [])
        run = asyncio.create_task(self._run(copy))
        run.add_done_callback(lambda ended: self._ended(copy, ended))
        self._let(case, run)

    def _let(self, case: Case, part: asyncio.Task[Any]) -> None:
        """Let a part of a duel happen beside."""
        case.beside.append(part)
        self._spawn(part)

    def _drop(self, copy_id: str) -> None:
        copy = self._core.jobs.get(copy_id)
        if copy is not None:
            copy.decree("fail", "no peer takes the copy")

    async def _run(self, copy: Job) -> str:
        """Take a copy to its end; returns how it ended."""
        while True:
            kind, *rest = await copy.fate()
            if kind != PEER:
                return "failed"
            outcome = await self._trade.remote(copy, DeskSink(), tuple(rest))
            if outcome != BROKE:
                return outcome
            self._core.emit("answer", copy.id, rest[0], "broke")

    def _ended(self, copy: Job, run: "asyncio.Task[str]") -> None:
        """A copy has come to its end, or was cancelled, perhaps before it began."""
        core = self._core
        done = not run.cancelled() and run.exception() is None and run.result() == DONE
        core.jobs.pop(copy.id, None)
        self._trade.forget(copy.id)
        core.emit("end", copy.id, int(done), core.clock.now() - copy.arrived_s)

    def _judge(self, duel: str, judge: str, fee_micro: int) -> None:
        case = self._cases.get(duel)
        if case is not None:
            self._let(case, asyncio.create_task(self._ask(case, duel, judge, fee_micro)))

    async def _ask(self, case: Case, duel: str, judge: str, fee_micro: int) -> None:
        """Ask one judge, and pay it for its vote; nothing when it gives none, or the duel ends without it."""
        sides = self._sides(duel)
        verdict = "absent"
        held = await self._purse().hold(judge, fee_micro, "judge", request_of(duel)) if sides is not None else None
        if sides is not None and isinstance(held, Held):
            vote, delivery = None, None
            try:
                vote, delivery = await self._vote(case, sides, held)
            finally:
                self._spawn(self._pay(held, delivery))
            if vote is not None:
                case.votes[judge] = vote
                verdict = vote.verdict
        self._core.emit("vote", duel, judge, verdict)

    async def _pay(self, held: Held, delivery: Delivery | None) -> None:
        """Pay a judge for its signed vote; what it has not earned comes back."""
        receipt = await self._purse().settle(held, held.amount_micro, 1, delivery) if delivery else None
        if receipt is None or not receipt.accepted:
            await self._purse().settle(held, 0, 0, None)

    def _sides(self, duel: str) -> tuple[Paid, Paid] | None:
        """Both executors' paid and signed deliveries."""
        a, b = self._trade.delivered.get(duel), self._trade.delivered.get(f"{duel}{COPY_MARK}")
        if a is None or b is None:
            return None
        return Paid(a[0], a[1].digest), Paid(b[0], b[1].digest)

    async def _vote(self, case: Case, sides: tuple[Paid, Paid], held: Held) -> tuple[Vote | None, Delivery | None]:
        """Send the question and both answers to a judge; its vote, and its word on having voted."""
        name = self._purse().name_duel(*sides)
        texts = [
            question_text(case.first.body),
            answer_text(bytes(case.first.keep or b"")),
            answer_text(bytes(case.copy.keep or b"")),
        ]
        letter = {
            "id": f"{request_of(case.first.id)}.{held.payee[:8]}",
            "duel": name,
            "executors": [side.held.payee for side in sides],
            "question": texts[0],
            "a": texts[1],
            "b": texts[2],
            "prompt_tokens": max(sum(len(text) for text in texts) // 4, 1),
            "forecast_tokens": self._core.brain.belief.terms.judge_tokens,
            "remaining_s": self._core.brain.setup.duel_deadline_s,
            "proof": proof_of(held),
        }
        try:
            status, said = await self._letters.ask(held.payee, JUDGE, letter, PATIENCE_S)
        except UnansweredError as error:
            LOG.info("a judge has not voted", extra={"duel": name, "judge": held.payee, "reason": str(error)})
            return None, None
        if status != 200:
            LOG.info("a judge has not voted", extra={"duel": name, "judge": held.payee, "status": status, "reason": said})
            return None, None
        return vote_of(said, held.payee, self._core.network, name, sides), delivery_of(said)

    def _settle(self, duel: str, a: str, b: str, votes: list[list[str]]) -> None:
        self._spawn(self._close(duel, a, b, votes))

    async def _close(self, duel: str, a: str, b: str, votes: list[list[str]]) -> None:
        """Let the ledger move the stakes, and tell both executors."""
        case, sides = self._cases.get(duel), self._sides(duel)
        if case is None or sides is None:
            self._call_off(duel)
            return
        self._off(duel)
        cast = [case.votes.get(judge) or Vote.none(judge) for judge, _ in votes]
        order, receipt = await self._purse().duel(self._purse().name_duel(*sides), *sides, cast)
        winner = {"won_by_a": a, "won_by_b": b}.get(receipt.code)
        self._metrics.duel("settled" if winner else ("undecided" if receipt.accepted else "called_off"))
        self._recent.duel(a, b, winner, [(vote.judge, SHOWN[vote.verdict]) for vote in cast])
        if winner is not None:
            proof = {"order": orjson.loads(encode(order)), "receipt": list(receipt)}
            for executor in (a, b):
                self._spawn(self._tell(executor, proof))

    async def _tell(self, executor: str, proof: dict[str, object]) -> None:
        """Prove to an executor how its duel ended, for its own record."""
        try:
            await self._letters.ask(executor, VERDICT, proof, TELLING_S)
        except UnansweredError:
            return

    def _call_off(self, duel: str) -> None:
        self._metrics.duel("called_off")
        self._off(duel)

    def _off(self, duel: str) -> None:
        """A duel is over: nothing of it is kept, and nobody is waited for any more."""
        case = self._cases.pop(duel, None)
        if case is not None:
            case.first.keep = case.copy.keep = None
            for task in case.beside:
                task.cancel()
        for job_id in (duel, f"{duel}{COPY_MARK}"):
            self._trade.delivered.pop(job_id, None)


def vote_of(said: object, judge: str, network: str, duel: str, sides: tuple[Paid, Paid]) -> Vote | None:
    """Read a judge's vote; None when it is not signed by it for this duel: such a vote would void the whole duel."""
    match said:
        case {"verdict": str(verdict), "public": str(public), "signature": str(signature)} if verdict in CAST:
            try:
                signed = SignedVote(duel, bytes.fromhex(public), CAST[verdict], bytes.fromhex(signature))
            except ValueError:
                return None
            a, b = (side.held.payee for side in sides)
            return Vote.of(signed) if id_of(signed.public) == judge and is_cast(signed, network, a, b) else None
    return None


def delivery_of(said: object) -> Delivery | None:
    """Read a judge's word on having voted, as the ledger will check it."""
    match said:
        case {"delivery": {"public": str(public), "tokens": int(tokens), "digest": str(digest), "signature": str(signature)}}:
            return Delivery(public, tokens, digest, signature)
    return None


def question_text(body: bytes) -> str:
    """The question of a request: its prompt, or the messages of its chat."""
    said = orjson.loads(body)
    if "messages" in said and isinstance(said["messages"], list):
        return "\n".join(text_of(message.get("content")) for message in said["messages"] if isinstance(message, dict))
    return text_of(said.get("prompt"))


def answer_text(raw: bytes) -> str:
    """The text of an answer, whole or streamed."""
    if raw.startswith(b"data:") or b"\ndata:" in raw:
        events = [line[5:].strip() for line in raw.split(b"\n") if line.startswith(b"data:")]
        return "".join(_choice_text(event) for event in events if event != b"[DONE]")
    return _choice_text(raw)


def _choice_text(raw: bytes) -> str:
    """The text of the first choice; nothing where an executor has answered in another form: it is judged by that."""
    match json_of(raw):
        case {"choices": [{"text": str(text)}, *_]}:
            return text
        case {"choices": [{"message": {"content": content}}, *_]} | {"choices": [{"delta": {"content": content}}, *_]}:
            return text_of(content)
    return ""


def text_of(content: object) -> str:
    """Text of a message's content: itself, or its parts of kind text; token ids are shown as numbers."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content)
    return ""
