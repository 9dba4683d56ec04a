"""An engine that computes nothing and takes as long as one that does: `market.serving` on a node's clock. Knows no HTTP.

Requests enter it `h_s` after they arrived, and leave it when the rules say so. The rules are asked for times that have passed,
never for times of timers: what a late timer delays is the telling, not what follows.
"""

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from live_bridge.backends.metrics import Load
from live_bridge.clock import Clock
from market import serving
from market.decoding import abort
from market.profile import Profile, to_record
from market.rule import record_class

GAP_S = 0.01
"""Tokens that come within this time on the wall are told together."""


class Size(NamedTuple):
    """What is asked of the engine."""

    prompt: int  # tokens, > 0
    output: int  # tokens that it will make, > 0
    limit: int  # tokens that it may make at most: what it can know


class Job:
    """One sequence in the engine."""

    __slots__ = ("entry_s", "finish_s", "first_token_s", "index", "preemptions", "size", "ticket", "visible")

    def __init__(self, size: Size, entry_s: float, ticket: "Ticket") -> None:
        self.size, self.entry_s, self.ticket = size, entry_s, ticket
        self.index = serving.NONE
        self.visible = 0  # tokens that are out
        self.preemptions = 0
        self.first_token_s = math.inf  # market s
        self.finish_s = math.inf


class Ticket:
    """What one request is waiting for: one job a choice."""

    def __init__(self, sizes: Sequence[Size], entry_s: float, watched: bool) -> None:
        """Take the sizes of the choices; `watched`: every token is told, not only the end."""
        self.jobs = [Job(size, entry_s, self) for size in sizes]
        self.left = len(self.jobs)  # jobs not finished
        self.watched = watched
        self._changed = False
        self._waiter: asyncio.Future[None] | None = None

    def tell(self) -> None:
        """Something has come out."""
        self._changed = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def change(self) -> None:
        """Wait until something has come out since the last call; one may wait at a time."""
        if not self._changed:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._changed = False


class Totals:
    """What the engine has done since it began."""

    __slots__ = ("aborted", "finished", "generated", "latency_s", "preemptions", "prompt", "ttft_s")

    def __init__(self) -> None:
        self.finished = self.aborted = self.prompt = self.generated = self.preemptions = 0
        self.latency_s = self.ttft_s = 0.0


class Engine:
    """A batch of jobs and the timer that follows them."""

    def __init__(self, profile: Profile, clock: Clock) -> None:
        """Begin idle; needs a running loop from the first `submit` on."""
        self.profile: Any = to_record(profile)[0]
        self.totals = Totals()
        self._clock = clock
        self._gap_s = GAP_S * clock.speed
        self._kind = record_class(serving.REQUEST)
        self._requests: list[Any] = []
        self._free: list[int] = []
        self._jobs: dict[int, Job] = {}
        self._watched: set[Job] = set()
        self._coming: deque[Job] = deque()
        self._record: Any = record_class(serving.ENGINE)()
        serving.open_engine(self._record, clock.now())
        self._timer: asyncio.TimerHandle | None = None

    def submit(self, sizes: Sequence[Size], watched: bool) -> Ticket:
        """Hand in the choices of one request; each must fit in the KV blocks by itself."""
        capacity = serving.BLOCK_TOKENS * self.profile.kv_blocks
        for size in sizes:
            if size.prompt < 1 or size.output < 1 or size.prompt + size.output > capacity:
                raise ValueError(f"{size}: prompt and output must be > 0 and fit in {capacity} tokens of KV cache together")
        ticket = Ticket(sizes, self._clock.now() + self.profile.h_s, watched)
        self._coming.extend(ticket.jobs)
        self._settle()
        return ticket

    def abort(self, ticket: Ticket) -> None:
        """Take out what has not finished: its user has left. Nothing more is told."""
        if ticket.left == 0:
            return
        self._advance(self._clock.now())
        for job in ticket.jobs:
            if job.finish_s < math.inf:
                continue
            self.totals.aborted += 1
            ticket.left -= 1
            self._watched.discard(job)
            if job.index == serving.NONE:
                self._coming.remove(job)
            elif abort(self._record, self._requests, job.index):
                self._release(job)
        self._settle()

    def load(self) -> Load:
        """How busy it is now."""
        now = self._clock.now()
        self._advance(now)
        record = self._record
        return Load(
            running=record.running + (record.partial != serving.NONE),
            waiting=record.waiting + len(self._coming),
            usage=serving.usage(record, self.profile),
            kv_blocks=self.profile.kv_blocks,
            read_s=now,
            source="metrics",
        )

    def close(self) -> None:
        """Follow nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _release(self, job: Job) -> None:
        del self._jobs[job.index]
        self._free.append(job.index)

    def _enter(self, job: Job) -> None:
        """Put a job into the engine, which has been advanced to its time of entry."""
        if self._free:
            job.index = self._free.pop()
        else:
            job.index = len(self._requests)
            self._requests.append(self._kind())
        request = self._requests[job.index]
        request.prompt_tokens, request.output_tokens, request.forecast_tokens = job.size
        self._jobs[job.index] = job
        if job.ticket.watched:
            self._watched.add(job)
        self.totals.prompt += job.size.prompt
        serving.enqueue(self._record, self._requests, job.index, job.entry_s)

    def _advance(self, now: float) -> None:
        """Let time pass up to `now`, letting each job in at its own moment on the way."""
        while self._coming and self._coming[0].entry_s <= now:
            job = self._coming.popleft()
            serving.advance(self._record, self.profile, self._requests, job.entry_s)
            self._enter(job)
        serving.advance(self._record, self.profile, self._requests, now)

    def _settle(self) -> None:
        """Bring everything up to now, tell what has come out, and wake again when there is more."""
        now = self._clock.now()
        self._advance(now)
        while (index := serving.collect(self._record, self._requests, now)) != serving.NONE:
            self._finish(index)
        next_s = serving.begin(self._record, self.profile, self._requests, now)
        if self._coming:
            next_s = min(next_s, self._coming[0].entry_s)
        if self._watched:
            next_s = min(next_s, self._tell_tokens(now))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if next_s < math.inf:
            # up to the next millisecond, which loops count in: a timer that fires early would only have to be set again
            wall_s = math.ceil(self._clock.wall_s(next_s - now) * 1000.0) / 1000.0
            self._timer = asyncio.get_running_loop().call_later(max(wall_s, 0.0), self._settle)

    def _finish(self, index: int) -> None:
        request, job = self._requests[index], self._jobs[index]
        self._release(job)
        if job.ticket.left == 0:
            return
        job.first_token_s, job.finish_s, job.preemptions = request.first_token_s, request.finish_s, request.preemptions
        self._watched.discard(job)
        totals, arrival_s = self.totals, job.entry_s - self.profile.h_s
        totals.finished += 1
        totals.generated += job.size.output - job.visible
        totals.preemptions += job.preemptions
        totals.latency_s += job.finish_s - arrival_s
        totals.ttft_s += job.first_token_s - arrival_s
        job.visible = job.size.output
        job.ticket.left -= 1
        job.ticket.tell()

    def _tell_tokens(self, now: float) -> float:
        """Tell watched jobs what has come out by `now`; returns when there is more to tell (s)."""
        record, requests = self._record, self._requests
        under_way = record.clock_s > now
        soon = False
        for job in self._watched:
            request = requests[job.index]
            visible = request.generated
            if request.finish_s < math.inf:
                visible -= 1  # the last one comes with the iteration under way
            elif request.prefill_left == 0:
                visible += 1 + record.iteration - request.joined - under_way
                soon = soon or visible == 0
            if visible > job.visible:
                self.totals.generated += visible - job.visible
                job.visible = visible
                job.ticket.tell()
        if record.running == 0:
            return math.inf
        end_s = record.clock_s
        if not under_way:
            end_s += serving.decode_s(self.profile, record.running, record.kv_tokens + record.running)
        return float(end_s if soon else max(end_s, now + self._gap_s))
