"""What a node shows of itself: the live page's snapshot once a second, and the state that reports are made of."""

from collections import Counter
from typing import Any

from live_bridge.brain.work import COPY_MARK
from live_bridge.core import Core
from live_bridge.metrics import Levels, NodeMetrics
from live_bridge.peers.rows import Directory
from live_bridge.pilot import Pilot, Verdict
from live_bridge.view.recent import Recent
from live_bridge.view.snapshot import Me, NodeView, Snapshot, Status, Totals
from live_bridge.view.words import why
from market import gossip
from market.terms import MICRO

STATUS: dict[int, Status] = {gossip.ALIVE: "alive", gossip.SUSPECT: "suspect", gossip.GONE: "gone"}


class Portrait:
    """Counts what a node does and shows what it is."""

    def __init__(self, core: Core, directory: Directory, pilot: Pilot, recent: Recent, metrics: NodeMetrics, name: str) -> None:
        self._core = core
        self._metrics = metrics
        self._directory = directory
        self._pilot = pilot
        self._recent = recent
        self._name = name
        self._arrived = self._delegated = self._guests = 0
        self._fates: Counter[str] = Counter()
        self.actions: Counter[str] = Counter()
        self.draining = False

    def arrived(self) -> None:
        """An own request has come."""
        self._arrived += 1

    def sent(self, executor: str, job_id: str) -> None:
        """Own work has gone to a peer."""
        self._recent.flow(self._core.brain.setup.me, executor, "copy" if job_id.endswith(COPY_MARK) else "user")

    def ended(self, outcome: str, latency_s: float, executor: str) -> None:
        """An own request has ended, answered by `executor` (empty: here, or by nobody)."""
        setup = self._core.brain.setup
        late = latency_s > setup.slo_s
        if outcome == "done":
            self._recent.latency(latency_s)
            self._delegated += executor not in {setup.me, ""}
            self._fates["missed" if late else "attained"] += 1
        elif outcome in {"failed", "cut"}:
            self._fates["failed"] += 1
        elif late:
            self._fates["missed"] += 1

    def offered(self, accepted: bool) -> None:
        """A peer's offer was answered."""
        self._metrics.offer("received", "yes" if accepted else "no")

    def hosted(self, origin: str, kind: str) -> None:
        """Work of a peer was done here."""
        self._guests += 1
        self._recent.flow(origin, self._core.brain.setup.me, "judge" if kind == "judge" else "user")

    def decided(self, verdict: Verdict) -> None:
        """A decision was made."""
        self.actions["paper" if verdict.action is None else "-".join(map(str, verdict.action))] += 1
        seen = self._core.brain.observe(self._core.clock.now())[0][0]
        self._recent.decision(verdict.action, verdict.failure, why(seen.tolist()))

    def levels(self) -> Levels:
        """What metrics read off the node."""
        brain = self._core.brain
        peers = Counter[str](STATUS[brain.belief.status(place)] for place in range(1, brain.belief.providers))
        mine = brain.belief.accounts[0]
        return Levels(self._in_flight(), brain.node.queued, mine.credit_micro, mine.stake_micro, peers)

    def _in_flight(self) -> int:
        return sum(work.kind == "user" for work in self._core.brain.works.values())

    def totals(self) -> Totals:
        """Requests since the node began."""
        fates = self._fates
        return {
            "arrived": self._arrived,
            "attained": fates["attained"],
            "missed": fates["missed"],
            "failed": fates["failed"],
            "delegated": self._delegated,
            "executed_for_others": self._guests,
            "in_flight": self._in_flight(),
            "queued": self._core.brain.node.queued,
        }

    def state(self) -> dict[str, Any]:
        """The state that reports are made of: GET /market/v1/state."""
        brain = self._core.brain
        node = brain.node
        names = ("offers_made", "offers_accepted", "offers_received", "offers_declined", "duels_won", "duels_lost")
        return {
            "id": brain.setup.me,
            "name": self._name,
            "policy": self._pilot.name,
            "now_s": self._core.clock.now(),
            "totals": self.totals(),
            "counters": {name: getattr(node, name) for name in names},
            "actions": dict(self.actions),
            "balances": self._balances(0),
            "alive": brain.alive(),
            "works": len(brain.works),
            "duels": len(brain.contests.open),
            "stakes": {owner: self._balances(place)["stake"] for owner, place in brain.belief.places.items()},
        }

    def _balances(self, place: int) -> dict[str, float]:
        account = self._core.brain.belief.accounts[place]
        return {
            "credit": account.credit_micro / MICRO,
            "stake": account.stake_micro / MICRO,
            "unbonding": account.unbonding_micro / MICRO,
            "escrow": account.escrow_micro / MICRO,
        }

    async def sample(self) -> None:
        """Add a point to the page's curves."""
        brain, totals = self._core.brain, self.totals()
        row, wealth = brain.belief.rows[0], brain.belief.wealth() / MICRO
        due = totals["attained"] + totals["missed"] + totals["failed"]
        self._recent.sample(row.wait_s, row.usage, wealth, totals["attained"] / due if due else None)

    def snapshot(self) -> Snapshot:
        """What the live page is told."""
        brain = self._core.brain
        totals = self.totals()
        now = self._core.clock.now()
        me: Me = {
            "id": brain.setup.me,
            "name": self._name,
            "policy": self._pilot.name,
            "brain": "paper" if brain.paper else "policy",
            "speed": self._core.clock.speed,
            "draining": self.draining,
            "uptime_s": now,
        }
        return self._recent.snapshot(me, [self._node(place, now) for place in range(brain.belief.providers)], totals)

    def _node(self, place: int, now: float) -> NodeView:
        brain = self._core.brain
        belief = brain.belief
        row = belief.rows[place]
        told = self._directory.get(belief.ids[place])
        mine = place == 0
        balances = self._balances(place)
        return {
            "id": belief.ids[place],
            "name": self._name if mine else (told.name if told else belief.ids[place][:8]),
            "address": told.address if told else "",
            "me": mine,
            "status": "alive" if mine else STATUS[row.status],
            "wait_s": row.wait_s,
            "usage": row.usage,
            "running": brain.engine.record.running if mine else None,
            "waiting": brain.engine.record.waiting + brain.node.queued if mine else None,
            "accepts": row.accepts,
            "credit": balances["credit"],
            "stake": balances["stake"],
            "duels_won": row.duels_won,
            "duels_lost": row.duels_lost,
            "age_s": 0.0 if mine else max(now - row.posted_s, 0.0),
        }
