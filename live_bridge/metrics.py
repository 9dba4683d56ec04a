"""What a node tells Prometheus: names, labels and help texts in one place. Knows numbers, never a prompt, a key or a user.

Durations are market seconds, which are seconds unless the node runs with another speed.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, product
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Gauge, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

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
    """A counter in plain integers, written out when it is asked for; values known beforehand show 0 from the start."""

    __slots__ = ("_counts", "_labels", "_meaning", "_name")

    def __init__(self, registry: CollectorRegistry, name: str, meaning: str, labels: Mapping[str, Iterable[str]]) -> None:
        """Declare a counter.

        labels   name -> the values that are known beforehand, in every combination
        """
        self._name, self._meaning, self._labels = name, meaning, tuple(labels)
        self._counts = dict.fromkeys(product(*labels.values()), 0)
        registry.register(self)

    def add(self, *values: str) -> None:
        """Count one; a value beyond MOST_VALUES combinations is counted as `other`."""
        counts = self._counts
        if values not in counts:
            if len(counts) >= MOST_VALUES:
                values = (OTHER,) * len(self._labels)
            counts.setdefault(values, 0)
        counts[values] += 1

    def describe(self) -> list[CounterMetricFamily]:
        """Give the registry the name alone."""
        return [CounterMetricFamily(self._name, self._meaning, labels=self._labels)]

    def collect(self) -> list[CounterMetricFamily]:
        """Give the registry the counts."""
        [family] = self.describe()
        for values, count in self._counts.items():
            family.add_metric(values, count)
        return [family]


class Spread:
    """A histogram in plain numbers, written out when it is asked for."""

    __slots__ = ("_bounds", "_counts", "_meaning", "_name", "_sum")

    def __init__(self, registry: CollectorRegistry, name: str, meaning: str, bounds: Sequence[float]) -> None:
        """Declare a histogram; `bounds` are the upper ends of its buckets, the last one, infinity, goes without saying."""
        self._name, self._meaning, self._bounds = name, meaning, tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def describe(self) -> list[HistogramMetricFamily]:
        """Give the registry the name alone."""
        return [HistogramMetricFamily(self._name, self._meaning)]

    def collect(self) -> list[HistogramMetricFamily]:
        """Give the registry the counts."""
        bounds = map(floatToGoString, (*self._bounds, float("inf")))
        buckets = list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
        return [HistogramMetricFamily(self._name, self._meaning, buckets, self._sum)]


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
        self._latency = Spread(
            registry,
            "wwwserve_request_latency_seconds",
            "Arrival to the last token of answers that were given whole.",
            LATENCY_BUCKETS,
        )
        self._ttft = Spread(registry, "wwwserve_ttft_seconds", "Arrival to the first byte of the answer.", TTFT_BUCKETS)
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
