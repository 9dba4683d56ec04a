"""What a node shows of itself: every request counted in one place, the market as it is believed, and nothing that was said."""

import json
from typing import Any

import pytest

from live_bridge.brain import Brain
from live_bridge.clock import Clock
from live_bridge.core import Core
from live_bridge.identity import Identity
from live_bridge.metrics import NodeMetrics
from live_bridge.peers.rows import Bounds, Directory, Row, sign, write
from live_bridge.pilot import Pilot, Verdict
from live_bridge.portrait import Portrait
from live_bridge.view.recent import Recent
from market import gossip
from tests.live_bridge.minds import CREDIT, PEERS, STAKE, mind

ANN = Identity(b"a" * 32)
SLO_S = 200.0


class Time:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class NoJournal:
    def write(self, line: list[Any]) -> None:
        """Forget it."""


class Scene:
    """A mind that knows three peers, and its portrait."""

    def __init__(self, policy: str = "fixed:3-4-2", **changes: Any) -> None:
        self.time = Time()
        self.brain: Brain = mind(**changes)
        self.core = Core(self.brain, Clock(1.0, self.time), NoJournal(), "test")
        self.core.carry_out |= dict.fromkeys(("ask", "send", "stake", "unstake", "gossip", "fail", "yes", "no"), lambda *_: None)
        self.metrics = NodeMetrics()
        self.recent = Recent(self.time)
        self.directory = Directory("me", "test", Bounds(10, 1e9, 0.0), lambda _: None, lambda _: True, lambda _: None)
        self.portrait = Portrait(self.core, self.directory, Pilot(policy, 5.0), self.recent, self.metrics, "berlin")

    def arrive(self, *ids: str) -> None:
        for one in ids:
            self.portrait.arrived()
            self.core.emit("arrive", one, 100, 50)


def test_a_node_that_has_just_begun_shows_zeros() -> None:
    totals = Scene().portrait.totals()
    assert set(totals.values()) == {0}


@pytest.mark.parametrize(
    ("outcome", "latency_s", "where"),
    [
        ("done", 1.0, "attained"),
        ("done", SLO_S, "attained"),
        ("done", SLO_S + 0.1, "missed"),
        ("failed", 1.0, "failed"),
        ("failed", SLO_S + 1, "failed"),
        ("cut", 1.0, "failed"),
        ("cancelled", 1.0, None),
        ("refused", 1.0, None),
        ("cancelled", SLO_S + 1, "missed"),
        ("refused", SLO_S + 1, "missed"),
    ],
)
def test_every_request_ends_in_one_place(outcome: str, latency_s: float, where: str | None) -> None:
    portrait = Scene().portrait
    portrait.ended(outcome, latency_s, "")
    totals = portrait.totals()
    fates = {name: totals[name] for name in ("attained", "missed", "failed")}  # type: ignore[literal-required]
    assert fates == {name: int(name == where) for name in fates}


@pytest.mark.parametrize(("executor", "delegated"), [("", 0), ("me", 0), ("ann", 1)])
def test_a_request_is_delegated_when_a_peer_has_answered_it(executor: str, delegated: int) -> None:
    portrait = Scene().portrait
    portrait.ended("done", 1.0, executor)
    portrait.ended("failed", 1.0, executor)
    assert portrait.totals()["delegated"] == delegated


def test_requests_without_an_end_are_in_flight() -> None:
    scene = Scene(policy="fixed:3-0-2")
    scene.core.emit("decide", 3, 0, 2)
    scene.arrive("a", "b")
    totals = scene.portrait.totals()
    assert (totals["arrived"], totals["in_flight"]) == (2, 2)
    scene.core.emit("end", "a", 1, 1.0)
    assert scene.portrait.totals()["in_flight"] == 1


def test_guests_are_not_own_requests() -> None:
    scene = Scene()
    scene.core.emit("offered", "g", "ann", [10, 10], 100.0, "guest")
    assert (scene.portrait.totals()["in_flight"], scene.portrait.state()["works"]) == (0, 1)
    scene.portrait.hosted("ann", "guest")
    scene.portrait.hosted("ben", "judge")
    assert scene.portrait.totals()["executed_for_others"] == 2
    assert [(flow["from"], flow["to"], flow["kind"]) for flow in scene.recent.flows()] == [
        ("ann", "me", "user"),
        ("ben", "me", "judge"),
    ]


@pytest.mark.parametrize(("job", "kind"), [("me.1.1", "user"), ("me.1.2", "user"), ("me.1.12", "user"), ("me.1.1:copy", "copy")])
def test_a_flow_is_a_copy_only_when_it_is_one(job: str, kind: str) -> None:
    scene = Scene()
    scene.portrait.sent("ann", job)
    [flow] = scene.recent.flows()
    assert (flow["from"], flow["to"], flow["kind"]) == ("me", "ann", kind)


def test_decisions_are_counted_by_their_levels_and_shown_with_their_reasons() -> None:
    scene = Scene()
    for verdict in (Verdict((3, 4, 2), None), Verdict((3, 4, 2), None), Verdict(None, "stalled"), Verdict(None, None)):
        scene.portrait.decided(verdict)
    assert scene.portrait.state()["actions"] == {"3-4-2": 2, "paper": 2}
    shown = scene.portrait.snapshot()["decisions"]
    assert [one["brain"] for one in shown] == ["policy", "policy", "paper", "paper"]
    assert [one["failure"] for one in shown] == [None, None, "stalled", None]
    assert all(one["why"] for one in shown)


def test_an_offer_is_counted_as_received_by_its_answer() -> None:
    scene = Scene()
    for accepted in (True, True, False):
        scene.portrait.offered(accepted)
    page = scene.metrics.render(scene.portrait.levels()).decode()
    assert 'wwwserve_offers_total{result="yes",side="received"} 2.0' in page
    assert 'wwwserve_offers_total{result="no",side="received"} 1.0' in page


def test_balances_are_shown_in_credits() -> None:
    scene = Scene()
    scene.core.emit("accounts", [["me", 1_500_000, 2_000_000, 250_000, 125_000]])
    assert scene.portrait.state()["balances"] == {"credit": 1.5, "stake": 2.0, "unbonding": 0.25, "escrow": 0.125}


def test_the_state_is_plain_json_with_all_that_reports_need() -> None:
    scene = Scene(policy="paper")
    scene.time.now_s = 12.5
    state = json.loads(json.dumps(scene.portrait.state()))
    assert (state["id"], state["name"], state["policy"], state["now_s"]) == ("me", "berlin", "paper", 12.5)
    assert sorted(state["alive"]) == sorted(PEERS)
    assert state["stakes"] == dict.fromkeys(("me", *PEERS), STAKE / 1e6)
    assert set(state["counters"]) >= {"offers_made", "offers_accepted", "offers_received", "offers_declined"}
    assert (state["works"], state["duels"]) == (0, 0)


def test_metrics_read_levels_off_the_mind() -> None:
    scene = Scene()
    scene.core.emit("mute", "ann")
    levels = scene.portrait.levels()
    assert dict(levels.peers) == {"alive": 2, "suspect": 1}
    assert (levels.credit_micro, levels.stake_micro, levels.in_flight, levels.queued) == (CREDIT, STAKE, 0, 0)


def test_the_page_shows_every_node_as_it_is_believed() -> None:
    scene = Scene()
    row = Row(ANN.public, "http://127.0.0.1:9001", "annie", ("m",), 7, 3.0, 0.5, 1.0, 2, 1, False)
    scene.directory.heard(json.dumps([[ANN.id, 7, 0.0, write(row), sign(ANN, "test", write(row))]]).encode(), 0.0)
    scene.core.emit("heard", [[ANN.id, 7, 0.0, 3.0, 0.5, 1.0, 2, 1]])
    scene.time.now_s = 4.0
    nodes = {node["id"]: node for node in scene.portrait.snapshot()["nodes"]}
    assert set(nodes) == {"me", *PEERS, ANN.id}
    mine, annie, ben = nodes["me"], nodes[ANN.id], nodes["ben"]
    assert (mine["me"], mine["name"], mine["status"], mine["age_s"], mine["running"], mine["waiting"]) == (
        True,
        "berlin",
        "alive",
        0.0,
        0,
        0,
    )
    assert (annie["name"], annie["address"], annie["me"], annie["running"]) == ("annie", "http://127.0.0.1:9001", False, None)
    assert (annie["wait_s"], annie["usage"], annie["duels_won"], annie["duels_lost"]) == (3.0, 0.5, 2, 1)
    assert annie["age_s"] == pytest.approx(4.0)
    assert (ben["name"], ben["address"], ben["credit"], ben["stake"]) == ("ben", "", CREDIT / 1e6, STAKE / 1e6)


@pytest.mark.parametrize(("status", "shown"), [(gossip.ALIVE, "alive"), (gossip.SUSPECT, "suspect"), (gossip.GONE, "gone")])
def test_what_is_believed_of_a_peer_has_a_word(status: int, shown: str) -> None:
    scene = Scene()
    scene.brain.belief.rows[scene.brain.belief.place("ann")].status = status
    [ann] = [node for node in scene.portrait.snapshot()["nodes"] if node["id"] == "ann"]
    assert ann["status"] == shown


def test_the_page_says_who_steers_and_whether_the_node_leaves() -> None:
    scene = Scene()
    scene.time.now_s = 3.0
    me = scene.portrait.snapshot()["me"]
    assert (me["brain"], me["draining"], me["uptime_s"], me["speed"], me["policy"]) == ("policy", False, 3.0, 1.0, "fixed:3-4-2")
    scene.core.emit("paper")
    scene.portrait.draining = True
    me = scene.portrait.snapshot()["me"]
    assert (me["brain"], me["draining"]) == ("paper", True)


def test_attainment_is_of_requests_that_were_due() -> None:
    scene = Scene()
    assert scene.portrait.snapshot()["attainment"] is None
    for outcome, latency_s in (("done", 1.0), ("done", 1.0), ("done", SLO_S + 1), ("failed", 1.0), ("cancelled", 1.0)):
        scene.portrait.ended(outcome, latency_s, "")
    assert scene.portrait.snapshot()["attainment"] == 0.5
    assert scene.portrait.snapshot()["totals"]["attained"] == 2


def test_the_page_is_plain_json() -> None:
    scene = Scene()
    scene.arrive("a")
    scene.portrait.decided(Verdict((3, 4, 2), None))
    assert json.loads(json.dumps(scene.portrait.snapshot(), allow_nan=False))["totals"]["arrived"] == 1
