"""An agent's sight: every entry written once, within its range in any state, and nothing in it that a node cannot know."""

import ast
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market import action, observation, provider, serving
from market.ledger import ACCOUNT
from market.observation import OBSERVATION_NAMES, OBSERVATION_SIZE, OBSERVATION_TABLE
from market.provider import NODE
from market.serving import ENGINE, PROFILE, REQUEST
from tests.market.rows import one, put_all

ROOM = Path(observation.__file__).parent
PROFILE_VALUES = {"a_s": 0.02, "b_s": 1e-4, "d_s": 2e-7, "kv_blocks": 1000, "max_num_seqs": 64, "max_num_batched_tokens": 2048}
COUNTS = st.one_of(st.integers(0, 9), st.integers(0, 10**12))
SECONDS = st.one_of(st.just(0.0), st.floats(0, 1e3), st.floats(0, 1e12))
SHARES = st.floats(0, 1)


def look(node: Any, engine: Any, profile: Any, account: Any, price: int = 10**6, oldest_s: float = 0.0, gap_s: float = 1.0) -> Any:
    """Write an observation over an array of NaN between two guards."""
    out = np.full(OBSERVATION_SIZE + 1, np.nan, np.float32)
    observation.write_observation(out[:-1], node, engine, profile, account, price, oldest_s, gap_s)
    assert math.isnan(out[-1])
    return dict(zip(OBSERVATION_NAMES, out[:-1].tolist(), strict=True))


def new() -> tuple[Any, Any, Any, Any]:
    """The records of a provider that has seen nothing yet."""
    node, engine = one(NODE), one(ENGINE)
    provider.open_node(node[0], 250.0)
    action.intent_of_action(node[0], 0, 0, 0)
    serving.open_engine(engine[0], 0.0)
    return node[0], engine[0], one(PROFILE, **PROFILE_VALUES)[0], one(ACCOUNT, credit_micro=10**8)[0]


def check_range(seen: dict[str, float]) -> None:
    """Every entry is finite and within what its row of the table says."""
    for entry in OBSERVATION_TABLE:
        assert math.isfinite(seen[entry.name]), entry.name
        assert entry.low <= seen[entry.name] <= entry.high, (entry.name, seen[entry.name])


@st.composite
def extreme_states(draw: st.DrawFn) -> tuple[tuple[Any, Any, Any, Any], dict[str, Any]]:
    """Records filled with any numbers that their fields may hold, and the arguments beside them."""
    node, engine, profile, account = new()
    counts = "queued queued_prompt queued_output away guests peers_alive peers_stake_micro duels_won duels_lost arrivals".split()
    spans = "rate_fast rate_slow mean_prompt mean_forecast delegated_ratio income_rate spend_rate capacity_tps news_s".split()
    spans += ["peers_wait_mean_s", "peers_wait_min_s", "peers_wait_max_s"]
    levels = draw(st.tuples(*[st.integers(0, action.LEVELS - 1)] * 3))
    action.intent_of_action(node, *levels)
    put_all(node, **{name: draw(COUNTS) for name in counts}, **{name: draw(SECONDS) for name in spans})
    put_all(node, slo_s=draw(st.floats(1e-3, 1e7)), online=draw(st.integers(0, 1)))
    put_all(node, offer_success=draw(SHARES), peers_accept=draw(SHARES))
    seats = draw(st.integers(1, serving.SLOTS))
    blocks = draw(st.integers(8, 10_000_000))
    put_all(
        profile, max_num_seqs=seats, kv_blocks=blocks, **{name: draw(st.floats(0, 10)) for name in ("a_s", "a2_s", "c_s", "d_s")}
    )
    put_all(profile, b_s=draw(st.floats(1e-9, 1)))
    put_all(engine, running=draw(st.integers(0, seats)), blocks_used=draw(st.integers(0, blocks)))
    put_all(engine, kv_tokens=draw(st.integers(0, 16 * blocks)), due_tokens=draw(st.integers(-(10**6), 10**9)))
    put_all(engine, **{name: draw(st.integers(0, 10**9)) for name in ("waiting", "waiting_prompt", "waiting_output")})
    money = ("credit_micro", "stake_micro", "unbonding_micro", "escrow_micro")
    put_all(account, **{name: draw(st.integers(0, 10**15)) for name in money})
    beside = {"price": draw(COUNTS), "oldest_s": draw(SECONDS), "gap_s": draw(SECONDS)}
    return (node, engine, profile, account), beside


@settings(deadline=None, max_examples=150)
@given(extreme_states())
def test_every_entry_is_finite_and_in_its_range_in_any_state(state: tuple[tuple[Any, Any, Any, Any], dict[str, Any]]) -> None:
    records, beside = state
    check_range(look(*records, **beside))


def test_a_new_provider_sees_an_empty_world() -> None:
    seen = look(*new())
    check_range(seen)
    zero = (
        "kv_usage batch_fill queue wait oldest work_ahead load_fast load_slow income spend away guests peers_alive news_age".split()
    )
    assert [seen[name] for name in zero] == [0.0] * len(zero)
    assert seen["online"] == 1.0 and seen["duel_record"] == seen["offer_success"] == 0.5


def test_a_provider_that_owns_nothing_sees_no_shares() -> None:
    node, engine, profile, account = new()
    put_all(account, credit_micro=0)
    seen = look(node, engine, profile, account)
    assert seen["stake_of_wealth"] == seen["unbonding_of_wealth"] == seen["credit"] == 0.0


@pytest.mark.parametrize(
    ("name", "record", "field", "half"),
    [
        ("queue", 0, "queued", 8),
        ("slo", 0, "slo_s", 100.0),
        ("output", 0, "mean_forecast", 1000.0),
        ("peers_alive", 0, "peers_alive", 8),
        ("news_age", 0, "news_s", 10.0),
        ("guests", 0, "guests", 8),
        ("delegated_latency", 0, "delegated_ratio", 1.0),
        ("peers_wait_max", 0, "peers_wait_max_s", 250.0),
        ("credit", 3, "credit_micro", 10**8),
    ],
)
def test_the_stated_half_way_point_reads_one_half(name: str, record: int, field: str, half: float) -> None:
    records = new()
    put_all(records[record], **{field: half})
    assert look(*records)[name] == pytest.approx(0.5)


@pytest.mark.parametrize("level", range(action.LEVELS))
def test_the_intent_in_force_is_seen(level: int) -> None:
    node, engine, profile, account = new()
    action.intent_of_action(node, level, level, level)
    seen = look(node, engine, profile, account)
    accept, forward = action.ACCEPT_LEVELS[level], action.FORWARD_LEVELS[level]
    assert seen["accept_now"] == pytest.approx(max(accept, 0.0) / (1.0 + max(accept, 0.0)))
    assert seen["forward_now"] == pytest.approx(forward / (1.0 + forward))
    assert seen["commit_now"] == pytest.approx(action.COMMIT_LEVELS[level])


def test_the_papers_rules_show_no_stake_target() -> None:
    node, engine, profile, account = new()
    put_all(node, stake_share=-1.0)
    assert look(node, engine, profile, account)["commit_now"] == 0.0


def test_writing_an_observation_changes_no_other_record() -> None:
    first, again = (look(*new()) for _ in range(2))
    records = new()
    assert look(*records) == look(*records) == first == again


def test_true_answer_lengths_cannot_be_seen() -> None:
    views = []
    for truth in (20, 4000):
        node, _, profile, account = new()
        engine, requests = one(ENGINE), one(REQUEST, prompt_tokens=100, output_tokens=truth, forecast_tokens=500)
        serving.open_engine(engine[0], 0.0)
        serving.enqueue(engine[0], requests, 0, 0.0)
        serving.advance(engine[0], profile, requests, 0.2)
        put_all(node, mean_prompt=100.0, mean_forecast=500.0, capacity_tps=900.0)
        views.append(look(node, engine[0], profile, account))
    assert views[0] == views[1] and views[0]["work_ahead"] > 0.0


def test_no_rule_of_decision_or_sight_names_the_true_length() -> None:
    for name in ("observation", "provider", "action", "gossip", "stake"):
        tree = ast.parse((ROOM / f"{name}.py").read_text(encoding="utf-8"))
        read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert "output_tokens" not in read, name


def test_each_entry_is_written_once() -> None:
    tree = ast.parse((ROOM / "observation.py").read_text(encoding="utf-8"))
    four = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "_half_ways")
    tree.body.remove(four)
    places = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            place = node.targets[0].slice
            assert isinstance(place, ast.Constant)
            places.append(place.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == four.name:
            first = node.args[1]
            assert isinstance(first, ast.Constant)
            places += range(first.value, first.value + 4)
    assert sorted(places) == list(range(OBSERVATION_SIZE))


def test_the_table_is_complete() -> None:
    assert len(set(OBSERVATION_NAMES)) == OBSERVATION_SIZE
    for entry in OBSERVATION_TABLE:
        assert entry.name.isidentifier() and entry.meaning and entry.unit and entry.normalisation
        assert -1.0 <= entry.low < entry.high <= 1.0
