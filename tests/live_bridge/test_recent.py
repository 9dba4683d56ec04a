"""What the live page is told: the recent past in bounded memory, and decisions in the words of the rules."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live_bridge.view import Recent, why
from live_bridge.view.recent import FLOW_S, LONGEST_EVENT, MOST_LATENCIES, MOST_POINTS, WINDOW_S
from live_bridge.view.words import FULLEST, SHOWN, half_of, words
from market.action import ACCEPT_LEVELS, COMMIT_LEVELS, FORWARD_LEVELS
from market.observation import OBSERVATION_NAMES, OBSERVATION_SIZE, OBSERVATION_TABLE
from tests.live_bridge.market_demo import FakeClock, lived

TOTALS = dict.fromkeys(("arrived", "attained", "missed", "failed", "delegated", "executed_for_others", "in_flight", "queued"), 0)
ME = {"id": "ab", "name": "berlin", "policy": "paper", "brain": "paper", "speed": 1.0, "draining": False, "uptime_s": 1.0}


@pytest.fixture
def clock():
    return FakeClock()


def test_flows_are_counted_by_way_and_kind_most_first(clock):
    recent = Recent(clock.now)
    for way, kind in [("ab", "user"), ("ac", "user"), ("ab", "user"), ("ba", "user"), ("ab", "judge")]:
        recent.flow(*way, kind)
    assert recent.flows() == [
        {"from": "a", "to": "b", "kind": "user", "count": 2},
        {"from": "a", "to": "c", "kind": "user", "count": 1},
        {"from": "b", "to": "a", "kind": "user", "count": 1},
        {"from": "a", "to": "b", "kind": "judge", "count": 1},
    ]


def test_a_flow_is_forgotten_a_minute_later_even_when_nothing_follows(clock):
    recent = Recent(clock.now)
    recent.flow("a", "b", "user")
    clock.now_s = FLOW_S - 6.0
    assert recent.flows()[0]["count"] == 1
    clock.now_s = FLOW_S + 6.0
    assert recent.flows() == []


@given(st.lists(st.floats(0.0, 400.0), max_size=60).map(sorted))
def test_flows_are_those_of_the_last_minute_to_within_a_slot(times):
    clock = FakeClock()
    recent = Recent(clock.now)
    for time_s in times:
        clock.now_s = time_s
        recent.flow("a", "b", "user")
    now = times[-1] if times else 0.0
    count = sum(flow["count"] for flow in recent.flows())
    assert sum(now - time_s <= FLOW_S - 5.0 - 1e-6 for time_s in times) <= count <= sum(now - time_s <= FLOW_S for time_s in times)


def test_what_is_kept_does_not_grow_with_the_traffic(clock):
    recent = Recent(clock.now)
    for k in range(20_000):
        clock.now_s = k / 10
        recent.flow("a", "bcd"[k % 3], "user")
        recent.latency(1.0)
        recent.sample(1.0, 0.5, 100.0, None)
        recent.event("x" * 1000)
        recent.decision((1, 1, 1), None, {})
        recent.duel("a", "b", None, [])
    shown = recent.snapshot(ME, [], TOTALS)
    assert sum(flow["count"] for flow in shown["flows"]) <= FLOW_S * 10
    assert len(recent._slots) <= 12
    assert len(recent._latencies) <= MOST_LATENCIES
    assert MOST_POINTS / 2 <= len(shown["series"]["t"]) <= MOST_POINTS
    assert (len(shown["decisions"]), len(shown["duels"]), len(shown["events"])) == (20, 10, 30)
    assert {len(event["text"]) for event in shown["events"]} == {LONGEST_EVENT}


def test_latencies_are_summed_up_over_the_window_alone(clock):
    recent = Recent(clock.now)
    assert recent.latencies() is None
    recent.latency(1000.0)
    clock.now_s = WINDOW_S + 1.0
    drawn = list(range(1, 101))
    random.Random(1).shuffle(drawn)
    for latency_s in drawn:
        recent.latency(float(latency_s))
    assert recent.latencies() == {"p50": 51.0, "p95": 96.0, "mean": 50.5}
    clock.now_s += WINDOW_S + 1.0
    assert recent.latencies() is None


def test_a_curve_covers_the_window_evenly_and_ends_now(clock):
    recent = Recent(clock.now)
    for tenth in range(10_000):
        clock.now_s = tenth / 10
        recent.sample(clock.now_s, None, 1.0, None)
    series = recent.snapshot(ME, [], TOTALS)["series"]
    assert series["t"][-1] == series["wait"][-1] == clock.now_s
    assert series["t"][0] >= clock.now_s - WINDOW_S
    assert series["t"][0] <= clock.now_s - WINDOW_S / 2
    assert series["t"] == sorted(series["t"])
    assert {len(column) for column in series.values()} == {len(series["t"])}
    assert set(series["usage"]) == {None}


def test_attainment_is_of_all_that_was_due_and_unknown_before(clock):
    recent = Recent(clock.now)
    assert recent.snapshot(ME, [], TOTALS)["attainment"] is None
    assert recent.snapshot(ME, [], {**TOTALS, "attained": 6, "missed": 3, "failed": 1})["attainment"] == 0.6


def test_a_decision_says_who_made_it_and_why_not_the_policy(clock):
    recent = Recent(clock.now)
    recent.decision((4, 0, 2), None, {"queue": 3.0})
    recent.decision(None, "stalled", {})
    first, second = recent.snapshot(ME, [], TOTALS)["decisions"]
    assert first == {"at_s": 0.0, "accept": 4, "forward": 0, "commit": 2, "brain": "policy", "failure": None, "why": {"queue": 3.0}}
    assert (second["accept"], second["brain"], second["failure"]) == (None, "paper", "stalled")


def test_a_duel_keeps_each_vote_with_its_judge(clock):
    recent = Recent(clock.now)
    recent.duel("a", "b", "b", [("x", "B"), ("y", "abstain"), ("z", "B")])
    (duel,) = recent.snapshot(ME, [], TOTALS)["duels"]
    assert duel == {"at_s": 0.0, "a": "a", "b": "b", "winner": "b", "votes": ["B", "abstain", "B"], "judges": ["x", "y", "z"]}


def test_a_snapshot_is_no_window_into_what_changes_later(clock):
    recent = Recent(clock.now)
    recent.event("first")
    shown = recent.snapshot(ME, [], TOTALS)
    before = json.dumps(shown)
    recent.event("second")
    recent.sample(1.0, 1.0, 1.0, 1.0)
    recent.flow("a", "b", "user")
    assert json.dumps(shown) == before


def test_a_snapshot_of_a_market_is_small():
    assert len(json.dumps(lived(6).snapshot())) < 40_000


# -- words


def test_there_are_words_for_every_level_of_every_action():
    said = words()
    for head, levels in (("accept", ACCEPT_LEVELS), ("forward", FORWARD_LEVELS), ("commit", COMMIT_LEVELS)):
        assert len(said[head]) == len(levels)
        assert len({one["short"] for one in said[head]}) == len({one["long"] for one in said[head]}) == len(levels)
        assert all(one["long"].endswith(".") for one in said[head])


@pytest.mark.parametrize(
    ("head", "level", "short", "words_of"),
    [
        ("accept", 0, "none", "Takes no work"),
        ("accept", 1, "≤ 50%", "within 50%"),
        ("accept", 4, "all", "any work"),
        ("forward", 0, "never", "Keeps all own work"),
        ("forward", 1, "> 120%", "more than 120%"),
        ("forward", 4, "always", "all own work to peers"),
        ("commit", 0, "0%", "no stake"),
        ("commit", 3, "25%", "25% of its wealth"),
    ],
)
def test_levels_are_said_as_the_rules_mean_them(head, level, short, words_of):
    said = words()[head][level]
    assert said["short"] == short
    assert words_of in said["long"]


def test_every_entry_of_the_observation_has_words_and_those_shown_exist():
    assert set(words()["entries"]) == set(OBSERVATION_NAMES)
    assert set(SHOWN) <= set(OBSERVATION_NAMES)
    json.dumps(words())


@pytest.mark.parametrize("entry", OBSERVATION_TABLE, ids=lambda entry: entry.name)
def test_every_normalisation_can_be_undone(entry):
    half = half_of(entry)
    assert half is None if entry.normalisation == "as it is" else half > 0.0


@given(st.floats(0.0, 1e4))
def test_what_is_shown_is_what_was_seen_before_it_was_squashed(value):
    seen = [0.0] * OBSERVATION_SIZE
    seen[OBSERVATION_NAMES.index("queue")] = value / (8.0 + value)
    seen[OBSERVATION_NAMES.index("credit")] = value / (100.0 + value)
    seen[OBSERVATION_NAMES.index("kv_usage")] = 0.25
    found = why(seen)
    assert found["queue"] == pytest.approx(value, rel=1e-3, abs=1e-9)
    assert found["credit"] == pytest.approx(value, rel=1e-3, abs=1e-9)
    assert found["kv_usage"] == 0.25
    assert tuple(found) == SHOWN


@pytest.mark.parametrize("value", [1.0, 1.5, -0.1])
def test_an_entry_at_its_end_or_beyond_gives_a_finite_number(value):
    found = why([value] * OBSERVATION_SIZE)
    assert 0.0 <= found["queue"] <= 8.0 * FULLEST / (1.0 - FULLEST) * 1.001
    assert json.loads(json.dumps(found)) == found
