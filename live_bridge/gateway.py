"""The front for users: the OpenAI API, answered here or at a peer, with the same bytes either way."""

import logging

from live_bridge import facts as reading
from live_bridge.core import Core
from live_bridge.facts import BadRequestError
from live_bridge.http.message import HttpError, Request, Response
from live_bridge.job import LOCAL, PEER, Job
from live_bridge.metrics import NodeMetrics
from live_bridge.portrait import Portrait
from live_bridge.relay import BROKE, DONE, Relay, Sink, UserSink, refuse
from live_bridge.trade import Trade

LOG = logging.getLogger(__name__)
RETRY_SHARE = 0.1
"""Executions beyond the first, as a share of requests: a retry that always happens doubles the load when it hurts most."""
RETRY_SAVED = 10.0


class Budget:
    """Retries that traffic has earned."""

    def __init__(self) -> None:
        self._saved = RETRY_SAVED

    def earn(self) -> None:
        """A request has come."""
        self._saved = min(self._saved + RETRY_SHARE, RETRY_SAVED)

    def spend(self) -> bool:
        """Take one retry, if there is one."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True


class Gateway:
    """Answers users' requests: tells the mind, waits for its decree, relays, and tells it how that ended."""

    def __init__(
        self,
        core: Core,
        relay: Relay,
        trade: Trade,
        metrics: NodeMetrics,
        portrait: Portrait,
        default_max_tokens: int,
        retries: int,
    ) -> None:
        """Take what does the work.

        default_max_tokens  forecast for a request that states no limit
        retries             further executions when one fails before its first byte
        """
        self._core = core
        self._relay = relay
        self._trade = trade
        self._metrics = metrics
        self._portrait = portrait
        self._default_max_tokens = default_max_tokens
        self._most = 1 + retries
        self._budget = Budget()
        self.draining = False

    async def answer(self, request: Request, response: Response) -> None:
        """Answer one request for a completion, from its arrival to its end, whichever way it ends."""
        if self.draining:
            refuse(response, 503, "this node is leaving", "draining", [(b"retry-after", b"1")])
            return
        try:
            facts = reading.read(request, self._default_max_tokens)
        except BadRequestError as error:
            refuse(response, error.status, str(error), "bad_request")
            return
        core = self._core
        job = Job.of(core.serial(), request, facts, core.clock.now())
        sink = UserSink(response, job, core.brain.setup.me)
        self._budget.earn()
        core.jobs[job.id] = job
        self._portrait.arrived()
        core.emit("arrive", job.id, job.facts.prompt, job.facts.forecast)
        outcome = "cancelled"
        try:
            outcome = await self._serve(job, sink, response)
        finally:
            latency_s = core.clock.now() - job.arrived_s
            ttft_s = job.first_s - job.arrived_s if job.first_s else None
            del core.jobs[job.id]
            self._trade.forget(job.id)
            if job.failure:
                LOG.info("an executor has failed", extra={"request": job.id, "outcome": outcome, "reason": job.failure})
            core.emit("end", job.id, int(outcome == DONE), latency_s)
            self._portrait.ended(outcome, latency_s, job.executor)
            self._metrics.request(outcome, latency_s, ttft_s, core.brain.setup.slo_s)

    async def _serve(self, job: Job, sink: Sink, response: Response) -> str:
        """Follow decrees until one leads to an end."""
        while True:
            kind, *rest = await job.fate()
            if kind == LOCAL:
                outcome = await self._relay.run(job, sink, self._core.clock.now)
            elif kind == PEER:
                outcome = await self._trade.remote(job, sink, tuple(rest))
            else:
                refuse(response, 503, str(rest[0]), "no_executor", [(b"retry-after", b"1")])
                return "failed"
            if outcome != BROKE:
                return outcome
            if job.executions >= self._most or not self._budget.spend():
                refuse(response, 502, "no executor could answer", "executor_failed")
                return "failed"
            self._again(job, kind, rest)

    def _again(self, job: Job, kind: str, rest: list[object]) -> None:
        """Have work whose executor failed before its first byte placed anew."""
        self._metrics.retry(kind)
        if kind == LOCAL:
            self._core.emit("retry", job.id)
        else:
            self._core.emit("answer", job.id, rest[0], "broke")

    async def models(self, request: Request, response: Response) -> None:
        """Pass GET /v1/models on to the engine."""
        try:
            status, headers, body = await self._relay.get(request.path)
        except HttpError as error:
            refuse(response, 502, f"the engine does not answer: {error}", "engine_down")
            return
        response.send(status, headers, body)
