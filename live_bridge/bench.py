"""The judge's side of duels: this node's own engine reads the question and both answers, in both orders; the vote is signed."""

import hashlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import orjson

from live_bridge.core import Core
from live_bridge.facts import Facts
from live_bridge.host import Host, Offer, offer_of
from live_bridge.http.message import HttpError, Response
from live_bridge.identity import Identity
from live_bridge.job import LOCAL, Job
from live_bridge.ledger.orders import Delivery
from live_bridge.ledger.orders import Vote as Ballot
from live_bridge.peers.envelope import Message
from live_bridge.peers.frames import RECEIPT_DOMAIN, Receipt, receipt_bytes
from live_bridge.peers.judge import Chat, Vote, judge, judge_by_likelihood, mean_logprob, sign_vote
from live_bridge.relay import Relay
from live_bridge.wire import json_of
from market.duel import ABSTAIN

MOST_CHARACTERS = 16_000
"""Of the question and of each answer in a judge's prompt."""
MARGIN = 0.01
"""Nats a token by which log-likelihoods must differ."""


class Asked(NamedTuple):
    """What a judge is asked."""

    duel: str
    executors: tuple[str, str]
    question: str
    a: str
    b: str
    proof: object


class Bench:
    """Votes for others."""

    def __init__(
        self,
        core: Core,
        host: Host,
        relay: Relay,
        identity: Identity,
        model: Callable[[], str],
        by: Literal["letters", "likelihood"],
    ) -> None:
        """Take what does the work.

        model   name of the model that this node's engine serves
        by      letters: the model says which answer is better; likelihood: the one that it finds likelier wins
        """
        self._core = core
        self._host = host
        self._relay = relay
        self._identity = identity
        self._model = model
        self._by = by
        self.willing = True

    async def judge(self, message: Message, response: Response) -> None:
        """Read both answers and vote."""
        offer, asked = offer_of(message), asked_of(message)
        if offer is None or asked is None or self._identity.id in asked.executors:
            self._host.reply(message, response, 400, {"error": "a judge needs duel, question, a, b, proof, and what an offer has"})
            return
        if not self.willing or self._host.draining or not self._host.promise(message.sender, offer, "judge"):
            self._host.reply(message, response, 503, {"error": "this node does not judge now"})
            return
        found = self._host.redeem(offer.id, message.sender, asked.proof)
        if isinstance(found[0], int):
            self._core.emit("end", offer.id, 0, 0.0)
            self._host.reply(message, response, found[0], {"error": found[1]})
            return
        vote = await self._work(offer, asked)
        signed = Ballot.of(sign_vote(self._identity, self._core.network, asked.duel, *asked.executors, vote))
        delivery = self._delivery(found[1].hold_id, signed.verdict)
        answer = {"verdict": signed.verdict, "public": signed.public, "signature": signed.signature, "delivery": delivery}
        self._host.reply(message, response, 200, answer)

    def _delivery(self, hold_id: str, verdict: str) -> Delivery:
        """Sign for one vote, which is paid as one token."""
        said = hashlib.sha256(verdict.encode()).digest()
        signature = self._identity.sign(RECEIPT_DOMAIN, receipt_bytes(self._core.network, hold_id, 1, said))
        return Delivery.of(self._identity.public, Receipt(hold_id, 1, said, signature))

    async def _work(self, offer: Offer, asked: Asked) -> int:
        """Wait for the engine's turn, as any work does, and vote."""
        core = self._core
        facts = Facts(offer.prompt_tokens, offer.forecast_tokens, stream=False, model="")
        job = Job(offer.id, "", [], b"", facts, core.clock.now())
        core.jobs[job.id] = job
        core.emit("begin", job.id)
        done = 0
        try:
            kind, *_ = await job.fate()
            if kind != LOCAL:
                return ABSTAIN
            vote = await self._vote(asked)
            done = 1
        finally:
            del core.jobs[job.id]
            core.emit("end", job.id, done, core.clock.now() - job.arrived_s)
        return vote.vote

    async def _vote(self, asked: Asked) -> Vote:
        if self._by == "likelihood":
            return await judge_by_likelihood(self._score, asked.question, asked.a, asked.b, MARGIN)
        return await judge(self._ask, asked.question, asked.a, asked.b, MOST_CHARACTERS)

    async def _ask(self, chat: Chat) -> str | None:
        """Ask the engine for a letter; None when it gives no answer."""
        tokens = self._core.brain.belief.terms.judge_tokens
        said = await self._post("/v1/chat/completions", {"messages": chat, "max_tokens": tokens, "temperature": 0})
        try:
            content = said["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            return None
        return content if isinstance(content, str) else None

    async def _score(self, question: str, answer: str) -> float | None:
        """Mean log-likelihood of an answer's tokens behind the question; None where the engine gives none."""
        asked = {"prompt": f"{question}\n{answer}", "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 0}
        said = await self._post("/v1/completions", asked)
        try:
            logprobs = said["choices"][0]["logprobs"]
            found = mean_logprob(logprobs["token_logprobs"][:-1], logprobs["text_offset"][:-1], len(question) + 1)
        except (KeyError, IndexError, TypeError, ValueError):
            return None
        return found

    async def _post(self, path: str, body: dict[str, object]) -> dict[str, Any]:
        try:
            status, raw = await self._relay.post(path, orjson.dumps(body | {"model": self._model()}))
            said = orjson.loads(raw)
        except (HttpError, orjson.JSONDecodeError):
            return {}
        return said if status == 200 and isinstance(said, dict) else {}


def asked_of(message: Message) -> Asked | None:
    """Read what a judge is asked; None when it has not that form."""
    match json_of(message.body):
        case {
            "duel": str(duel),
            "executors": [str(first), str(second)],
            "question": str(question),
            "a": str(a),
            "b": str(b),
            "proof": dict(proof),
        }:
            return Asked(duel, (first, second), question, a, b, proof)
    return None
