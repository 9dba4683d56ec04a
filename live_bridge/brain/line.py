"""A provider's own queue in front of its engine: waiting work can still be forwarded, what the engine has is never moved."""

from collections import deque
from collections.abc import Callable
from typing import Any

from live_bridge.brain.belief import Belief
from live_bridge.brain.engine import EngineView
from live_bridge.brain.work import QUEUED, RUNNING, USER, Work
from market import provider, serving

REVIEW_MOST = 32
"""Waiting requests that a review looks at, from the head, as in the simulator."""

Command = list[Any]


class Line:
    """First come, first served; the engine is fed what would start almost at once."""

    def __init__(self, node: Any, engine: EngineView, belief: Belief) -> None:
        """Take the provider's NODE record, whose sums over waiting work are kept here, its engine and its beliefs."""
        self._node = node
        self._engine = engine
        self._belief = belief
        self.works: deque[Work] = deque()
        self.closed = False  # while the engine does not answer

    def count(self, work: Work, sign: int) -> None:
        """Add `work` to what is forecast to wait here (1), or take it off (-1)."""
        node = self._node
        node.queued += sign
        node.queued_prompt += sign * work.prompt
        node.queued_output += sign * work.forecast

    def put(self, work: Work, placed: int, *, first: bool = False) -> list[Command]:
        """Queue `work`, at the head or the tail; `placed` 1 when it is decided that it runs here. Returns what starts."""
        work.placed = placed
        work.state = QUEUED
        work.waited = 1
        if first:
            self.works.appendleft(work)
        else:
            self.works.append(work)
        self.count(work, 1)
        return self.feed()

    def remove(self, work: Work) -> None:
        """Take waiting `work` out."""
        self.works.remove(work)
        self.count(work, -1)

    def feed(self) -> list[Command]:
        """Hand the engine what would start almost at once."""
        out: list[Command] = []
        engine = self._engine
        backlog = self._belief.terms.engine_backlog
        while self.works and not self.closed:
            work = self.works[0]
            if not provider.may_start(self._node, engine.record, engine.profile, backlog, work.placed):
                break
            self.works.popleft()
            self.count(work, -1)
            work.state = RUNNING
            engine.start(work)
            out.append(["start", work.id])
        return out

    def review(self, now: float, decide: Callable[[Work, float, float], int]) -> list[Work]:
        """Look again at own work that waits: marks what is to run here, takes out and returns what is to be offered.

        decide   the provider's decision by work, forecast of its completion (s) and time (market s)
        """
        ahead = prompt = output = 0
        leaving: list[Work] = []
        for work in list(self.works)[:REVIEW_MOST]:
            decision = provider.HOLD
            if work.kind == USER and now - work.offered_s >= self._belief.terms.reoffer_s:
                decision = decide(work, self._forecast_s(work, ahead, prompt, output), now)
            if decision == provider.OFFER:
                leaving.append(work)
                continue
            if decision == provider.LOCAL:
                work.placed = 1
            ahead, prompt, output = ahead + 1, prompt + work.prompt, output + work.forecast
        for work in leaving:
            self.remove(work)
        return leaving

    def _forecast_s(self, work: Work, ahead: int, prompt: int, output: int) -> float:
        """Forecast of a waiting request's completion, given what stands before it in the queue."""
        record = self._engine.record
        found: float = serving.forecast_s(
            self._engine.profile,
            record.running,
            record.kv_tokens,
            record.due_tokens,
            record.waiting + ahead,
            record.waiting_prompt + prompt,
            record.waiting_output + output,
            work.prompt,
            work.forecast,
        )
        return found
