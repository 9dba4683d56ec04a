"""What a node does by the clock: upkeep each tick, a decision each control_s, a gossip round, a look at engine and ledger."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from live_bridge.backends.watcher import Watcher
from live_bridge.core import Core
from live_bridge.metrics import NodeMetrics
from live_bridge.pilot import Pilot, Seen, Verdict

Round = Callable[[], Awaitable[None]]


async def every(core: Core, span_s: float, work: Round, failed: Callable[[BaseException], None]) -> None:
    """Do `work` each `span_s` market seconds; a late round delays none after it, and none is made up for.

    failed   hears of a round that met something out of reach; the next one is tried all the same
    """
    due = core.clock.now()
    while True:
        try:
            await work()
        except OSError as error:
            failed(error)
        due = max(due + span_s, core.clock.now())
        await core.clock.sleep(due - core.clock.now())


class Upkeep:
    """The rounds of one node."""

    def __init__(
        self, core: Core, pilot: Pilot, watcher: Watcher, metrics: NodeMetrics, decided: Callable[[Verdict], None]
    ) -> None:
        """Take what is looked after; `decided` hears of each decision."""
        self._core = core
        self._pilot = pilot
        self._watcher = watcher
        self._metrics = metrics
        self._decided = decided
        self._ticked_s = core.clock.now()
        self._seen: bool | None = None
        self._counted: dict[str, int] = {}
        pilot.late = self._follow
        watcher.turned = self.look

    async def tick(self) -> None:
        """Look at the engine, then let the mind do its upkeep."""
        core = self._core
        now = core.clock.now()
        counted = {job.id: job.tokens for job in core.jobs.values() if job.facts.stream and job.tokens}
        talking = any(job.tokens > self._counted.get(job.id, 0) and not job.executor for job in core.jobs.values())
        self._counted = counted
        self.look(talking=talking)
        span_s, self._ticked_s = now - self._ticked_s, now
        core.emit("tick", span_s, counted)

    def look(self, *, talking: bool = False) -> None:
        """Tell the mind what the engine says, or that nothing can be believed, or that it is down or up again.

        talking   tokens of it have just come: it is up, whatever has become of its metrics
        """
        core = self._core
        alive = talking or self._watcher.alive
        if alive != self._seen:
            self._seen = alive
            core.emit("up" if alive else "down")
        load = self._watcher.load()
        if load is None:
            core.emit("blind")
        else:
            core.emit("load", load.running, load.waiting, load.usage)
        self._metrics.backend(alive, self._watcher.age_s)

    async def decide(self) -> None:
        """Ask the policy and put its intent in force; where it fails, the paper's rules."""
        self._follow(await self._pilot.decide(self._observe))

    def _observe(self) -> Seen:
        """What is seen now, as an event: a replay asks its policy the same, at the same place."""
        self._core.emit("asked", self._pilot.loads)
        return self._core.brain.seen

    def _follow(self, verdict: Verdict) -> None:
        if verdict.action is None:
            self._core.emit("paper")
        else:
            self._core.emit("decide", *verdict.action)
        self._metrics.decision("policy" if verdict.action else "paper", verdict.failure)
        self._decided(verdict)


async def run_all(core: Core, rounds: Sequence[tuple[float, Round]], failed: Callable[[BaseException], None]) -> None:
    """Run rounds side by side until one fails or all are cancelled."""
    async with asyncio.TaskGroup() as group:
        for span_s, work in rounds:
            group.create_task(every(core, span_s, work, failed))
