"""What the live page is told, once a second: types only. Times are market seconds, money is credits, shares lie in [0, 1]."""

from typing import Literal, TypedDict

Status = Literal["alive", "suspect", "gone"]
FlowKind = Literal["user", "copy", "judge"]
Vote = Literal["A", "B", "abstain", "absent"]


class Me(TypedDict):
    """The node whose page this is."""

    id: str
    name: str
    policy: str
    brain: Literal["policy", "paper"]  # who steers now
    speed: float
    draining: bool
    uptime_s: float


class NodeView(TypedDict):
    """One node of the market, as believed here."""

    id: str
    name: str
    address: str
    me: bool
    status: Status
    wait_s: float  # forecast wait for a first prefill
    usage: float  # share of KV blocks
    running: int | None  # None = not known of a peer
    waiting: int | None
    accepts: float  # share of offers that its posted intent takes
    credit: float
    stake: float
    duels_won: int
    duels_lost: int
    age_s: float  # of this news


# a field is called `from`, which is no name in Python
FlowView = TypedDict("FlowView", {"from": str, "to": str, "kind": FlowKind, "count": int})


class Totals(TypedDict):
    """Requests since the node began."""

    arrived: int
    attained: int
    missed: int
    failed: int
    delegated: int
    executed_for_others: int
    in_flight: int
    queued: int


class LatencyView(TypedDict):
    """Latency of own requests over the last minutes, s."""

    p50: float
    p95: float
    mean: float


class DecisionView(TypedDict):
    """One decision: levels as market/action.py numbers them; None where the paper's rules steer."""

    at_s: float
    accept: int | None
    forward: int | None
    commit: int | None
    brain: Literal["policy", "paper"]
    failure: str | None
    why: dict[str, float]  # entries of the observation, or readings, by name


class DuelView(TypedDict):
    """One duel that has ended; ids of nodes."""

    at_s: float
    a: str
    b: str
    winner: str | None
    votes: list[Vote]
    judges: list[str]


class EventView(TypedDict):
    """One line of the log."""

    at_s: float
    text: str


class SeriesView(TypedDict):
    """The last minutes: lists of one length."""

    t: list[float]
    wait: list[float | None]
    usage: list[float | None]
    wealth: list[float | None]
    attainment: list[float | None]


class Snapshot(TypedDict):
    """Everything that the page shows."""

    now_s: float
    me: Me
    nodes: list[NodeView]
    flows: list[FlowView]  # of the last 60 s
    totals: Totals
    attainment: float | None  # None = no request was due yet
    latency_s: LatencyView | None
    decisions: list[DecisionView]
    duels: list[DuelView]
    events: list[EventView]
    series: SeriesView
