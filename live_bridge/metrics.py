"""What a node tells Prometheus: names, labels and help texts in one place. Knows numbers, never a prompt, a key or a user.

Durations are market seconds, which are seconds unless the node runs with another speed.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

disable_created_metrics()  # a series more for each counter, that no query of ours reads

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
MOST_VALUES = 64
"""Values of one label: some are reasons that others provoke, and a server's memory must not be theirs to fill."""
OTHER = "other"
MICRO = 1e-6
LATENCY_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 100.0, 300.0)

OUTCOMES = ("done", "refused", "failed", "cut", "cancelled")
ABANDONED = frozenset({"refused", "cancelled"})
"""Ends that the user chose or caused: before the deadline, they are neither attained nor missed."""
BRAINS = ("policy", "paper")
FAILURES = ("not_finite", "wrong_shape", "masked", "stalled", "refused")
ANSWERS = ("yes", "no", "silent", "broke")
PEERS = ("alive", "suspect", "gone")


class Levels(NamedTuple):
    """What is read off the node when it is asked, rather than counted as it happens."""

    in_flight: int  # own users' requests without an end
    queued: int  # requests in the node's own queue
    credit_micro: int
    stake_micro: int
    peers: Mapping[str, int]  # status -> peers


class Tally:
    """A counter whose children are bound when they are first needed; those that are known beforehand show 0 from the start."""

    __slots__ = ("_children", "_counter", "_places")

    def __init__(self, registry: CollectorRegistry, name: str, meaning: str, labels: Mapping[str, Iterable[str]]) -> None:
        """Declare a counter.

        labels   name -> the values that are known beforehand, in every combination
        """
        self._counter = Counter(name, meaning, tuple(labels), registry=registry)
        self._places = len(labels)
        self._children: dict[tuple[str, ...], Counter] = {}
        known: list[tuple[str, ...]] = [()]
        for values in labels.values():
            known = [(*before, value) for value in values for before in known]
        for place in known:
            self._bind(place)

    def add(self, *values: str) -> None:
        """Count one; a value beyond MOST_VALUES combinations is counted as `other`."""
        child = self._children.get(values)
        if child is None:
            full = len(self._children) >= MOST_VALUES
            child = self._bind((OTHER,) * self._places if full else values)
        child.inc()

    def _bind(self, values: tuple[str, ...]) -> Counter:
        child = self._counter.labels(*values)
        self._children[values] = child
        return child


class NodeMetrics:
    """All metrics of one node, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._declare_requests()
        self._declare_market()
        self._declare_guards()
        self._declare_levels()

    def _declare_requests(self) -> None:
        registry = self.registry
        self._requests = Tally(registry, "wwwserve_requests", "Own users' requests by how they ended.", {"outcome": OUTCOMES})
        self._slo = Tally(
            registry,
            "wwwserve_slo_requests",
            "Own users' requests by whether the whole answer came within the objective; failures are missed.",
            {"result": ("attained", "missed")},
        )
        self._latency = Histogram(
            "wwwserve_request_latency_seconds",
            "Arrival to the last token of answers that were given whole.",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self._ttft = Histogram(
            "wwwserve_ttft_seconds", "Arrival to the first byte of the answer.", buckets=TTFT_BUCKETS, registry=registry
        )
        self._retries = Tally(
            registry, "wwwserve_retries", "Executions after one that failed before its first byte.", {"after": ("local", "peer")}
        )

    def _declare_market(self) -> None:
        registry = self.registry
        self._offers = Tally(
            registry, "wwwserve_offers", "Offers of work by side and answer.", {"side": ("sent", "received"), "result": ANSWERS}
        )
        self._decisions = Tally(registry, "wwwserve_policy_decisions", "Decisions by who made them.", {"brain": BRAINS})
        self._duels = Tally(
            registry, "wwwserve_duels", "Duels begun here by how they ended.", {"result": ("settled", "undecided", "called_off")}
        )
        self._orders = Tally(
            registry,
            "wwwserve_ledger_orders",
            "Orders sent to the ledger by kind and answer.",
            {
                "kind": ("open", "pay", "hold", "settle", "stake", "unstake", "duel"),
                "result": ("accepted", "refused", "unanswered"),
            },
        )

    def _declare_guards(self) -> None:
        registry = self.registry
        self._policy_failures = Tally(
            registry,
            "wwwserve_policy_failures",
            "Decisions that the policy failed to make: the paper's rules steer instead. Alarm on any increase.",
            {"reason": FAILURES},
        )
        self._reloads = Tally(
            registry,
            "wwwserve_reloads",
            "Readings of policy and settings on SIGHUP: a bad one is refused, and the old one stays in force.",
            {"result": ("done", "refused")},
        )
        self._refused = Tally(
            registry, "wwwserve_messages_refused", "Messages and rows of peers that were not believed.", {"reason": ()}
        )
        self._http_errors = Tally(
            registry, "wwwserve_http_errors", "Requests and connections that the HTTP server refused or gave up.", {"reason": ()}
        )
        self._readings = Tally(registry, "wwwserve_backend_readings", "Readings of the engine's load by result.", {"result": ()})

    def _declare_levels(self) -> None:
        def gauge(name: str, meaning: str) -> Gauge:
            return Gauge(name, meaning, registry=self.registry)

        self._in_flight = gauge("wwwserve_in_flight", "Own users' requests without an end.")
        self._queue = gauge("wwwserve_queue_length", "Requests in the node's own queue, in front of the engine.")
        self._credit = gauge("wwwserve_credit", "Free credit, by the latest news of the ledger.")
        self._stake = gauge("wwwserve_stake", "Committed stake, by the latest news of the ledger.")
        self._up = gauge("wwwserve_backend_up", "1 while the engine answers.")
        self._age = gauge(
            "wwwserve_backend_metrics_age_seconds",
            "Age of the latest reading of the engine's load; +Inf before the first. Stale readings are not believed.",
        )
        peers = Gauge("wwwserve_peers", "Peers by what is believed of them.", ("status",), registry=self.registry)
        self._peers = {status: peers.labels(status) for status in PEERS}
        self._node = Gauge(
            "wwwserve_node_info", "1; the labels say who this is.", ("id", "name", "policy", "version"), registry=self.registry
        )
        self._age.set(float("inf"))

    def identify(self, node_id: str, name: str, policy: str, version: str) -> None:
        """Say who this is; again when another policy is in force."""
        self._node.clear()
        self._node.labels(node_id, name, policy, version).set(1.0)

    def request(self, outcome: str, latency_s: float, ttft_s: float | None, slo_s: float) -> None:
        """Count an own user's request that has ended.

        outcome     one of OUTCOMES
        latency_s   arrival to end
        ttft_s      arrival to the first byte; None when there was none
        slo_s       the objective for `latency_s`
        """
        self._requests.add(outcome)
        if outcome == "done":
            self._latency.observe(latency_s)
        if ttft_s is not None:
            self._ttft.observe(ttft_s)
        late = latency_s > slo_s
        if late or outcome not in ABANDONED:
            self._slo.add("missed" if late or outcome != "done" else "attained")

    def retry(self, after: str) -> None:
        """Count a second execution; `after` is where the first failed, local or peer."""
        self._retries.add(after)

    def offer(self, side: str, result: str) -> None:
        """Count an offer: side sent or received, result one of ANSWERS."""
        self._offers.add(side, result)

    def decision(self, brain: str, failure: str | None) -> None:
        """Count a decision by `brain` (policy or paper); `failure` is why the policy made none, where it should have."""
        self._decisions.add(brain)
        if failure is not None:
            self._policy_failures.add(failure)

    def reload(self, result: str) -> None:
        """Count a reading of policy and settings: done, refused."""
        self._reloads.add(result)

    def duel(self, result: str) -> None:
        """Count a duel begun here: settled, undecided or called_off."""
        self._duels.add(result)

    def order(self, kind: str, result: str) -> None:
        """Count an order to the ledger: accepted, refused or unanswered."""
        self._orders.add(kind, result)

    def refused(self, reason: str) -> None:
        """Count a message or row of a peer that is not believed (a `Count` for peers/)."""
        self._refused.add(reason)

    def http_error(self, reason: str) -> None:
        """Count what the HTTP server refused or gave up (a `Count` for http/)."""
        self._http_errors.add(reason)

    def reading(self, result: str) -> None:
        """Count a reading of the engine (a `Count` for backends/)."""
        self._readings.add(result.removeprefix("backend_poll_"))

    def backend(self, alive: bool, age_s: float) -> None:
        """Note whether the engine answers, and how old the latest reading of its load is (infinite before the first)."""
        self._up.set(float(alive))
        self._age.set(age_s)

    def render(self, levels: Levels) -> bytes:
        """Write everything in Prometheus' text format."""
        self._in_flight.set(levels.in_flight)
        self._queue.set(levels.queued)
        self._credit.set(levels.credit_micro * MICRO)
        self._stake.set(levels.stake_micro * MICRO)
        for status, gauge in self._peers.items():
            gauge.set(levels.peers.get(status, 0))
        return generate_latest(self.registry)
