"""What Prometheus reads: every name is there from the start, every count is where it belongs, and a request costs microseconds."""

import json
import math
import re
import subprocess
import sys
import time
import timeit
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from live_bridge.metrics import ABANDONED, ANSWERS, FAILURES, MOST_VALUES, OUTCOMES, Levels, NodeMetrics

IDLE = Levels(in_flight=0, queued=0, credit_micro=0, stake_micro=0, peers={})
ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "docs" / "grafana.json"
FUNCTIONS = set("sum rate increase histogram_quantile max min avg by le clamp_max clamp_min vector or and on without".split())


def samples(metrics, levels=IDLE):
    """Everything that is shown: (name, labels...) -> value."""
    families = text_string_to_metric_families(metrics.render(levels).decode())
    return {(one.name, *sorted(one.labels.items())): one.value for family in families for one in family.samples}


def moved(metrics, action):
    """What an action changes, by how much; the process's own figures left out."""
    before = samples(metrics)
    action()
    after = samples(metrics)
    return {
        key: after[key] - before.get(key, 0.0)
        for key in after
        if key[0].startswith("wwwserve_") and after[key] != before.get(key, 0.0)
    }


def test_every_promised_name_is_shown_before_anything_has_happened():
    names = {key[0] for key in samples(NodeMetrics())}
    assert names >= {
        "wwwserve_requests_total",
        "wwwserve_slo_requests_total",
        "wwwserve_request_latency_seconds_bucket",
        "wwwserve_ttft_seconds_bucket",
        "wwwserve_in_flight",
        "wwwserve_queue_length",
        "wwwserve_offers_total",
        "wwwserve_credit",
        "wwwserve_stake",
        "wwwserve_policy_decisions_total",
        "wwwserve_policy_failures_total",
        "wwwserve_backend_up",
        "wwwserve_backend_metrics_age_seconds",
        "wwwserve_peers",
        "wwwserve_duels_total",
        "wwwserve_ledger_orders_total",
        "process_resident_memory_bytes",
        "process_open_fds",
    }
    assert not [name for name in names if name.endswith("_created")]


def test_counters_end_in_total_and_durations_in_seconds():
    families = list(text_string_to_metric_families(NodeMetrics().render(IDLE).decode()))
    ours = [family for family in families if family.name.startswith("wwwserve_")]
    assert len(ours) >= 20
    for family in ours:
        assert family.documentation.endswith("."), family.name
        assert not re.search(r"_(ms|s|micro|count)$", family.name), family.name
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_the_process_figures_are_those_of_this_process():
    shown = samples(NodeMetrics())
    assert shown[("process_resident_memory_bytes",)] > 10e6
    assert shown[("process_open_fds",)] >= 3


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_request_is_counted_under_its_outcome_alone(outcome):
    metrics = NodeMetrics()
    found = moved(metrics, lambda: metrics.request(outcome, 3.0, None, 200.0))
    assert {key: value for key, value in found.items() if key[0] == "wwwserve_requests_total"} == {
        ("wwwserve_requests_total", ("outcome", outcome)): 1.0
    }


@pytest.mark.parametrize(
    ("outcome", "latency_s", "result"),
    [
        ("done", 200.0, "attained"),
        ("done", 200.1, "missed"),
        ("failed", 1.0, "missed"),
        ("cut", 1.0, "missed"),
        ("refused", 1.0, None),
        ("cancelled", 1.0, None),
        ("cancelled", 201.0, "missed"),  # its deadline has passed: that the user then left does not undo the miss
    ],
)
def test_failures_stay_in_the_denominator_and_users_own_ends_do_not(outcome, latency_s, result):
    metrics = NodeMetrics()
    found = moved(metrics, lambda: metrics.request(outcome, latency_s, None, 200.0))
    slo = {dict(key[1:])["result"] for key in found if key[0] == "wwwserve_slo_requests_total"}
    assert slo == ({result} if result else set())
    assert outcome in ABANDONED or result is not None


def test_latency_is_of_whole_answers_and_first_bytes_are_counted_when_there_was_one():
    metrics = NodeMetrics()
    metrics.request("done", 3.0, 0.2, 200.0)
    metrics.request("cut", 7.0, 0.3, 200.0)
    metrics.request("failed", 9.0, None, 200.0)
    shown = samples(metrics)
    assert shown[("wwwserve_request_latency_seconds_count",)] == 1.0
    assert shown[("wwwserve_request_latency_seconds_sum",)] == 3.0
    assert shown[("wwwserve_ttft_seconds_count",)] == 2.0
    assert shown[("wwwserve_ttft_seconds_bucket", ("le", "0.25"))] == 1.0
    assert shown[("wwwserve_ttft_seconds_bucket", ("le", "0.5"))] == 2.0


def test_a_failure_of_the_policy_raises_the_alarm_and_counts_whose_rules_steer():
    metrics = NodeMetrics()
    assert moved(metrics, lambda: metrics.decision("paper", "stalled")) == {
        ("wwwserve_policy_decisions_total", ("brain", "paper")): 1.0,
        ("wwwserve_policy_failures_total", ("reason", "stalled")): 1.0,
    }
    assert moved(metrics, lambda: metrics.decision("policy", None)) == {
        ("wwwserve_policy_decisions_total", ("brain", "policy")): 1.0
    }


def test_an_alarm_can_fire_on_the_first_failure_because_zero_was_shown_before():
    shown = samples(NodeMetrics())
    for reason in FAILURES:
        assert shown[("wwwserve_policy_failures_total", ("reason", reason))] == 0.0


def test_levels_are_those_of_the_moment_and_money_is_in_credits():
    metrics = NodeMetrics()
    shown = samples(metrics, Levels(3, 2, 98_500_000, 2_000_001, {"alive": 4, "gone": 1}))
    assert shown[("wwwserve_in_flight",)] == 3.0
    assert shown[("wwwserve_queue_length",)] == 2.0
    assert shown[("wwwserve_credit",)] == pytest.approx(98.5)
    assert shown[("wwwserve_stake",)] == pytest.approx(2.000001)
    assert shown[("wwwserve_peers", ("status", "alive"))] == 4.0
    assert shown[("wwwserve_peers", ("status", "gone"))] == 1.0
    assert samples(metrics)[("wwwserve_peers", ("status", "alive"))] == 0.0


def test_metrics_of_a_backend_never_read_are_infinitely_old_not_fresh():
    metrics = NodeMetrics()
    assert samples(metrics)[("wwwserve_backend_metrics_age_seconds",)] == math.inf
    metrics.backend(True, 0.75)
    shown = samples(metrics)
    assert shown[("wwwserve_backend_metrics_age_seconds",)] == 0.75
    assert shown[("wwwserve_backend_up",)] == 1.0
    metrics.backend(False, 12.0)
    assert samples(metrics)[("wwwserve_backend_up",)] == 0.0


@pytest.mark.parametrize(
    ("count", "key"),
    [
        (lambda m: m.refused("signature"), ("wwwserve_messages_refused_total", ("reason", "signature"))),
        (lambda m: m.http_error("slow_reader"), ("wwwserve_http_errors_total", ("reason", "slow_reader"))),
        (lambda m: m.reading("backend_poll_ok"), ("wwwserve_backend_readings_total", ("result", "ok"))),
        (lambda m: m.duel("settled"), ("wwwserve_duels_total", ("result", "settled"))),
        (lambda m: m.reload("refused"), ("wwwserve_reloads_total", ("result", "refused"))),
        (lambda m: m.retry("peer"), ("wwwserve_retries_total", ("after", "peer"))),
        (lambda m: m.order("hold", "accepted"), ("wwwserve_ledger_orders_total", ("kind", "hold"), ("result", "accepted"))),
        *[
            (lambda m, r=result: m.offer("sent", r), ("wwwserve_offers_total", ("result", result), ("side", "sent")))
            for result in ANSWERS
        ],
    ],
)
def test_each_event_moves_its_own_counter_by_one(count, key):
    metrics = NodeMetrics()
    assert moved(metrics, lambda: count(metrics)) == {key: 1.0}


def test_reasons_that_others_invent_cannot_fill_the_memory():
    metrics = NodeMetrics()
    for k in range(5_000):
        metrics.refused(f"reason {k}")
    shown = {key: value for key, value in samples(metrics).items() if key[0] == "wwwserve_messages_refused_total"}
    assert len(shown) <= MOST_VALUES + 1
    assert sum(shown.values()) == 5_000.0
    assert shown["wwwserve_messages_refused_total", ("reason", "other")] == 5_000.0 - MOST_VALUES


def test_another_policy_replaces_the_one_that_was_named():
    metrics = NodeMetrics()
    metrics.identify("ab12", "berlin", "paper", "0.1.0")
    metrics.identify("ab12", "berlin", 'ppo "x"\n', "0.1.0")
    named = [dict(key[1:]) for key in samples(metrics) if key[0] == "wwwserve_node_info"]
    assert named == [{"id": "ab12", "name": "berlin", "policy": 'ppo "x"\n', "version": "0.1.0"}]


def test_two_nodes_in_one_process_count_for_themselves():
    a, b = NodeMetrics(), NodeMetrics()
    a.request("done", 1.0, 0.1, 2.0)
    assert samples(b)[("wwwserve_requests_total", ("outcome", "done"))] == 0.0


def test_a_local_request_costs_five_microseconds_at_most():
    metrics = NodeMetrics()
    # short runs of processor time, the least of many: what else runs on the machine is not measured
    runs = timeit.repeat(lambda: metrics.request("done", 120.0, 8.0, 200.0), timer=time.process_time, number=300, repeat=60)
    assert min(runs) / 300 <= 5e-6


def test_metrics_load_without_the_market_or_an_array_library():
    program = "import sys, live_bridge.metrics; print(*[n for n in ('numpy', 'torch', 'market', 'numba') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def targets(panels):
    """Every query of a dashboard, with the title of its panel."""
    for panel in panels:
        yield from targets(panel.get("panels", []))
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def test_every_query_of_the_dashboard_names_metrics_and_labels_that_a_node_shows():
    metrics = NodeMetrics()
    metrics.identify("ab12", "berlin", "paper", "0.1.0")
    metrics.refused("signature")
    metrics.http_error("slow_reader")
    metrics.reading("ok")
    labels = {}
    for key in samples(metrics):
        labels.setdefault(key[0], set()).update(name for name, _ in key[1:])
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    found = list(targets(dashboard["panels"]))
    assert len(found) >= 20
    used = set()
    for title, expr in found:
        bare = re.sub(r'"[^"]*"', '""', re.sub(r"\[[^\]]*\]", "", expr))
        matchers = {word for inside in re.findall(r"\{([^}]*)\}", bare) for word in re.findall(r"([a-z_]+)\s*[=!]", inside)}
        grouped = {word.strip() for inside in re.findall(r"by\s*\(([^)]*)\)", bare) for word in inside.split(",")}
        outside = re.sub(r"by\s*\([^)]*\)", "", re.sub(r"\{[^}]*\}", "", bare))
        names = set(re.findall(r"[a-z_][a-z0-9_]+", outside)) - FUNCTIONS
        assert names, f"{title}: {expr} asks for nothing"
        assert names <= set(labels), f"{title}: {names - set(labels)} is shown by no node"
        known = {"instance", "job"}.union(*(labels[name] for name in names))
        assert matchers | grouped <= known, f"{title}: {(matchers | grouped) - known} is a label of none of {names}"
        used |= {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in names}
    ours = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in labels if name.startswith("wwwserve_")}
    assert ours - used == {"wwwserve_node_info"} - used, f"no panel shows {ours - used}"


def test_the_dashboard_can_be_imported_anywhere():
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert dashboard["id"] is None
    assert {one["name"] for one in dashboard["templating"]["list"]} >= {"datasource", "instance"}
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken = set()
    for panel in panels:
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert panel["description"], panel["title"]
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24 and not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
