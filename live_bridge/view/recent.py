"""The recent past, bounded, for the live page: flows of a minute, latencies and curves of five, the last decisions and duels."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from live_bridge.view.snapshot import (
    DecisionView,
    DuelView,
    EventView,
    FlowKind,
    FlowView,
    LatencyView,
    Me,
    NodeView,
    SeriesView,
    Snapshot,
    Totals,
    Vote,
)

FLOW_S = 60.0
FLOW_SLOTS = 12
"""A minute is counted in so many slots: what is kept does not grow with the traffic."""
WINDOW_S = 300.0
MOST_POINTS = 300
MOST_LATENCIES = 2000
MOST_DECISIONS, MOST_DUELS, MOST_EVENTS = 20, 10, 30
LONGEST_EVENT = 200


class _Slot(NamedTuple):
    number: int
    flows: Counter[tuple[str, str, FlowKind]]


class _Point(NamedTuple):
    t: float
    wait: float | None
    usage: float | None
    wealth: float | None
    attainment: float | None


class Recent:
    """What has happened at a node in the last minutes."""

    def __init__(self, now: Callable[[], float]) -> None:
        """Take the clock (market s)."""
        self._now = now
        self._slots: deque[_Slot] = deque()
        self._latencies: deque[tuple[float, float]] = deque(maxlen=MOST_LATENCIES)
        self._decisions: deque[DecisionView] = deque(maxlen=MOST_DECISIONS)
        self._duels: deque[DuelView] = deque(maxlen=MOST_DUELS)
        self._events: deque[EventView] = deque(maxlen=MOST_EVENTS)
        self._points: deque[_Point] = deque(maxlen=MOST_POINTS)

    def flow(self, origin: str, executor: str, kind: FlowKind) -> None:
        """Work has gone from one node (id) to another."""
        number = int(self._now() * FLOW_SLOTS / FLOW_S)
        if not self._slots or self._slots[-1].number != number:
            self._slots.append(_Slot(number, Counter()))
            self._forget(number)
        self._slots[-1].flows[origin, executor, kind] += 1

    def _forget(self, number: int) -> None:
        while self._slots and self._slots[0].number <= number - FLOW_SLOTS:
            self._slots.popleft()

    def latency(self, latency_s: float) -> None:
        """An own request was answered whole."""
        self._latencies.append((self._now(), latency_s))

    def decision(self, levels: tuple[int, int, int] | None, failure: str | None, why: dict[str, float]) -> None:
        """A decision was made.

        levels    accept, forward, commit by the policy; None = the paper's rules steer
        failure   why the policy has not decided, where it should have
        why       entries of the observation by name
        """
        accept, forward, commit = levels if levels is not None else (None, None, None)
        self._decisions.append(
            {
                "at_s": self._now(),
                "accept": accept,
                "forward": forward,
                "commit": commit,
                "brain": "paper" if levels is None else "policy",
                "failure": failure,
                "why": why,
            }
        )

    def duel(self, a: str, b: str, winner: str | None, votes: Sequence[tuple[str, Vote]]) -> None:
        """A duel has ended; `votes` are (judge, verdict)."""
        self._duels.append(
            {
                "at_s": self._now(),
                "a": a,
                "b": b,
                "winner": winner,
                "votes": [verdict for _, verdict in votes],
                "judges": [judge for judge, _ in votes],
            }
        )

    def event(self, text: str) -> None:
        """Something happened that a person should know: a peer joined, the policy failed. Never text of a request."""
        self._events.append({"at_s": self._now(), "text": text[:LONGEST_EVENT]})

    def sample(self, wait_s: float | None, usage: float | None, wealth: float | None, attainment: float | None) -> None:
        """Add a point to the curves; of those closer than WINDOW_S / MOST_POINTS market seconds the newest stays."""
        now = self._now()
        if len(self._points) > 1 and self._points[-1].t - self._points[-2].t < WINDOW_S / MOST_POINTS:
            self._points.pop()  # the newest stays until there is one far enough behind it
        self._points.append(_Point(now, wait_s, usage, wealth, attainment))
        while now - self._points[0].t > WINDOW_S:
            self._points.popleft()

    def snapshot(self, me: Me, nodes: list[NodeView], totals: Totals) -> Snapshot:
        """Put together what the page is told."""
        due = totals["attained"] + totals["missed"] + totals["failed"]
        return {
            "now_s": self._now(),
            "me": me,
            "nodes": nodes,
            "flows": self.flows(),
            "totals": totals,
            "attainment": totals["attained"] / due if due else None,
            "latency_s": self.latencies(),
            "decisions": list(self._decisions),
            "duels": list(self._duels),
            "events": list(self._events),
            "series": self._series(),
        }

    def flows(self) -> list[FlowView]:
        """Count the work of the last minute by way and kind, most first."""
        self._forget(int(self._now() * FLOW_SLOTS / FLOW_S))
        sums: Counter[tuple[str, str, FlowKind]] = Counter()
        for slot in self._slots:
            sums.update(slot.flows)
        return [{"from": a, "to": b, "kind": kind, "count": count} for (a, b, kind), count in sums.most_common()]

    def latencies(self) -> LatencyView | None:
        """Sum up the latencies of the window; None when no answer was given in it."""
        since = self._now() - WINDOW_S
        while self._latencies and self._latencies[0][0] < since:
            self._latencies.popleft()
        found = sorted(latency for _, latency in self._latencies)
        if not found:
            return None
        return {"p50": _rank(found, 0.5), "p95": _rank(found, 0.95), "mean": sum(found) / len(found)}

    def _series(self) -> SeriesView:
        points = self._points
        return {
            "t": [point.t for point in points],
            "wait": [point.wait for point in points],
            "usage": [point.usage for point in points],
            "wealth": [point.wealth for point in points],
            "attainment": [point.attainment for point in points],
        }


def _rank(ascending: list[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    return ascending[min(int(share * len(ascending)), len(ascending) - 1)]
