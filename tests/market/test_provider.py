"""One provider's reactions: where its own work goes, whose work it takes, what it remembers, what it tells others."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market import action, gossip, provider, serving
from market.action import ACCEPT_LEVELS, FORWARD_LEVELS, LEVELS
from market.gossip import ROW
from market.ledger import ACCOUNT
from market.provider import HOLD, LOCAL, NODE, OFFER
from market.serving import ENGINE, PROFILE, REQUEST
from market.terms import to_record
from tests.market.rows import TERMS, one, put_all, read, table

PROFILE_VALUES = {"a_s": 0.02, "b_s": 1e-4, "d_s": 2e-7, "kv_blocks": 1000, "max_num_seqs": 64, "max_num_batched_tokens": 2048}
PLENTY_S = 100.0
JUST_ABOVE = 1.0 + 1e-9


def node_of(accept: int = 0, forward: int = 0, **fields: Any) -> Any:
    """A provider online with an SLO of 100 s, an intent by levels, and further fields."""
    node = one(NODE)
    provider.open_node(node[0], PLENTY_S)
    action.intent_of_action(node[0], accept, forward, 0)
    put_all(node[0], **fields)
    return node[0]


def paper_node(**fields: Any) -> Any:
    """A provider that follows the paper's rules: target use 0.7, offload 0.8, accept 0.8, queue 0.2."""
    node = one(NODE)
    provider.open_node(node[0], PLENTY_S)
    action.intent_of_paper(node[0], to_record(TERMS, 4)[0], 0.0, 0, 0)
    return put_all(node[0], **fields)


def arrival(node: Any, forecast: float, *, remaining: float = PLENTY_S, use: float = 0.0, pay: bool = True, u: float = 0.5) -> int:
    """Decide about own work with one uniform for both draws."""
    return int(provider.on_arrival(node, use, forecast, remaining, pay, u, u))


def engine_with(tokens: int = 0) -> tuple[Any, Any]:
    """An engine that decodes one request of `tokens` prompt tokens, or an empty one, with its profile."""
    engine, profile, requests = one(ENGINE), one(PROFILE, **PROFILE_VALUES), one(REQUEST, prompt_tokens=tokens, output_tokens=9)
    serving.open_engine(engine[0], 0.0)
    if tokens > 0:
        serving.enqueue(engine[0], requests, 0, 0.0)
        serving.advance(engine[0], profile[0], requests, 1e-6)
    return engine[0], profile[0]


@pytest.mark.parametrize("level", range(1, LEVELS - 1))
def test_own_work_is_offered_when_its_forecast_exceeds_the_ceiling(level: int) -> None:
    node = node_of(forward=level)
    ceiling = FORWARD_LEVELS[level] * PLENTY_S
    assert arrival(node, ceiling) == LOCAL
    assert arrival(node, ceiling * JUST_ABOVE) == OFFER


def test_own_work_is_never_offered_at_the_first_level_and_always_at_the_last() -> None:
    assert arrival(node_of(forward=0), 1e8) == LOCAL
    assert arrival(node_of(forward=LEVELS - 1), 1e-6) == OFFER


@pytest.mark.parametrize("level", range(1, LEVELS - 1))
def test_a_peers_work_is_taken_when_its_forecast_is_within_the_ceiling(level: int) -> None:
    node = node_of(accept=level)
    ceiling = ACCEPT_LEVELS[level] * PLENTY_S
    assert provider.on_offer(node, 0.0, ceiling, PLENTY_S, 0.5)
    assert not provider.on_offer(node, 0.0, ceiling * JUST_ABOVE, PLENTY_S, 0.5)


def test_a_peers_work_is_refused_at_the_first_level_and_taken_at_the_last() -> None:
    assert not provider.on_offer(node_of(accept=0), 0.0, 0.0, PLENTY_S, 0.5)
    assert provider.on_offer(node_of(accept=LEVELS - 1), 1.0, 1e8, PLENTY_S, 0.5)


def test_who_is_offline_takes_nothing() -> None:
    assert not provider.on_offer(node_of(accept=LEVELS - 1, online=0), 0.0, 0.0, PLENTY_S, 0.5)


def test_late_work_is_placed_by_ratio_still() -> None:
    node = node_of(accept=3, forward=2)
    for remaining in (provider.PATIENCE_S, 0.0, -50.0):
        assert arrival(node, 0.8 * provider.PATIENCE_S, remaining=remaining) == LOCAL
        assert arrival(node, 0.81 * provider.PATIENCE_S, remaining=remaining) == OFFER
        assert provider.on_offer(node, 0.0, provider.PATIENCE_S, remaining, 0.5)
        assert not provider.on_offer(node, 0.0, 1.01 * provider.PATIENCE_S, remaining, 0.5)


def test_work_that_cannot_be_paid_for_stays_at_home() -> None:
    assert arrival(node_of(forward=LEVELS - 1), 99.0, pay=False) == LOCAL


def test_the_papers_rules_run_at_home_below_the_target_use() -> None:
    assert arrival(paper_node(), 1e8, use=0.699, u=0.01) == LOCAL
    assert arrival(paper_node(), 0.1, use=0.7, u=0.01) == OFFER


@pytest.mark.parametrize(("u", "decision"), [(0.79, OFFER), (0.81, HOLD)])
def test_the_papers_rules_offer_by_chance_and_hold_what_is_not_offered(u: float, decision: int) -> None:
    assert arrival(paper_node(), 1.0, use=0.9, u=u) == decision


@pytest.mark.parametrize(("u", "decision"), [(0.19, LOCAL), (0.21, HOLD)])
def test_the_papers_rules_queue_refused_work_by_chance(u: float, decision: int) -> None:
    assert provider.place_refused(paper_node(), u) == decision
    assert arrival(paper_node(), 1.0, use=0.9, pay=False, u=u) == decision


@pytest.mark.parametrize(
    ("use", "queued", "u", "taken"), [(0.69, 0, 0.79, True), (0.7, 0, 0.79, False), (0.1, 1, 0.79, False), (0.1, 0, 0.81, False)]
)
def test_the_papers_rules_accept_when_idle_without_a_queue_by_chance(use: float, queued: int, u: float, taken: bool) -> None:
    assert provider.on_offer(paper_node(queued=queued), use, 1e8, 1.0, u) == taken


@settings(deadline=None)
@given(st.integers(0, 4), st.integers(0, 4), st.floats(0, 1e6), st.floats(-1e3, 1e6), st.floats(0, 1), st.booleans())
def test_a_decision_is_one_of_three_and_never_an_offer_without_credit(
    accept: int, forward: int, forecast: float, remaining: float, use: float, pay: bool
) -> None:
    decision = arrival(node_of(accept, forward), forecast, remaining=remaining, use=use, pay=pay)
    assert decision in (LOCAL, OFFER, HOLD) and (pay or decision != OFFER)


@settings(deadline=None)
@given(st.integers(0, 3), st.floats(0, 1e4), st.floats(0, 1e4))
def test_a_higher_level_accepts_and_forwards_no_less(level: int, forecast: float, remaining: float) -> None:
    low, high = node_of(level, level), node_of(level + 1, level + 1)
    taken = [bool(provider.on_offer(node, 0.0, forecast, remaining, 0.5)) for node in (low, high)]
    offered = [arrival(node, forecast, remaining=remaining) == OFFER for node in (low, high)]
    assert taken[0] <= taken[1] and offered[0] <= offered[1]


def test_an_engine_gets_work_only_up_to_its_backlog() -> None:
    engine, profile = engine_with()
    node = node_of()
    for waiting, backlog, start in ((0, 1, True), (1, 1, False), (1, 2, True)):
        put_all(engine, waiting=waiting)
        assert provider.may_start(node, engine, profile, backlog, 1) == start


def test_work_that_is_held_starts_only_below_the_target_use() -> None:
    engine, profile = engine_with()
    for used, start in ((699, True), (700, False)):
        put_all(engine, blocks_used=used)
        assert provider.may_start(paper_node(), engine, profile, 1, 0) == start
        assert provider.may_start(paper_node(), engine, profile, 1, 1)


@pytest.mark.parametrize(("per_ktoken", "micro"), [(0.0, 2_000_000), (1.0, 2_300_000), (0.001, 2_000_300)])
def test_a_price_has_a_fixed_part_and_one_by_forecast_tokens(per_ktoken: float, micro: int) -> None:
    terms = to_record(replace(TERMS, price_per_request=2.0, price_per_ktoken=per_ktoken), 4)[0]
    assert provider.price(terms, 100, 200) == micro


def test_a_forecast_here_counts_the_own_queue_and_that_of_the_engine() -> None:
    engine, profile = engine_with(200)
    alone = provider.forecast_here(node_of(), engine, profile, 50, 50)
    behind = provider.forecast_here(node_of(queued=9, queued_prompt=900, queued_output=9_000), engine, profile, 50, 50)
    put_all(engine, waiting=9, waiting_prompt=900, waiting_output=9_000)
    assert behind > alone
    assert provider.forecast_here(node_of(), engine, profile, 50, 50) == behind
    wait_s = provider.wait_here(node_of(), engine, profile)
    assert provider.forecast_here_after(node_of(), engine, profile, wait_s, 50, 50) == behind


def test_an_empty_provider_has_no_wait() -> None:
    engine, profile = engine_with()
    assert provider.wait_here(node_of(), engine, profile) == 0.0


def test_the_first_request_sets_the_means_and_later_ones_move_them() -> None:
    node = one(NODE)
    provider.open_node(node[0], PLENTY_S)
    provider.note_arrival(node[0], 100, 1000)
    assert (read(node, NODE)["mean_prompt"], read(node, NODE)["mean_forecast"]) == (100.0, 1000.0)
    provider.note_arrival(node[0], 200, 0)
    assert (read(node, NODE)["mean_prompt"], read(node, NODE)["mean_forecast"]) == (110.0, 900.0)
    assert read(node, NODE)["arrivals"] == 2


def test_offers_are_counted_and_their_success_remembered() -> None:
    node = one(NODE)
    provider.open_node(node[0], PLENTY_S)
    for accepted in (1, 0, 1, 1):
        provider.note_offer(node[0], accepted)
    row = read(node, NODE)
    assert (row["offers_made"], row["offers_accepted"]) == (4, 3) and 0.5 < row["offer_success"] < 1.0


def test_latency_of_delegated_work_is_remembered_as_a_share_of_the_objective() -> None:
    node = one(NODE)
    provider.open_node(node[0], PLENTY_S)
    for _ in range(200):
        provider.note_delegated(node[0], 150.0)
    assert read(node, NODE)["delegated_ratio"] == pytest.approx(1.5)


def test_averages_over_time_reach_the_rate_whatever_the_step() -> None:
    for span in (0.5, 1.0, 10.0):
        node = one(NODE)
        provider.open_node(node[0], PLENTY_S)
        for _ in range(int(3000 / span)):
            put_all(node[0], arrivals=int(2 * span), income_micro=int(4 * span), spend_micro=int(6 * span))
            provider.tick(node[0], span)
        row = read(node, NODE)
        assert [row[name] for name in ("rate_fast", "rate_slow", "income_rate", "spend_rate")] == pytest.approx(
            [2, 2, 4, 6], rel=1e-3
        )
        assert row["arrivals"] == row["income_micro"] == row["spend_micro"] == 0


def test_a_post_says_what_is_so_here_and_is_newer() -> None:
    engine, profile = engine_with(320)
    row = one(ROW, version=5, status=gossip.SUSPECT)
    provider.post(row[0], node_of(2, duels_won=3, duels_lost=4), engine, profile, 7.0, 2)
    values = read(row, ROW)
    assert (values["version"], values["status"], values["posted_s"], values["changed_s"]) == (7, gossip.ALIVE, 7.0, 7.0)
    assert (values["duels_won"], values["duels_lost"], values["accepts"]) == (3, 4, 1.0)
    assert values["usage"] == serving.usage(engine, profile) > 0.0


@pytest.mark.parametrize(
    ("node", "accepts"), [(node_of(0), 0.0), (node_of(1), 1.0), (paper_node(), 1.0), (paper_node(p_accept=0.0), 0.0)]
)
def test_a_post_says_whether_work_is_taken_at_all(node: Any, accepts: float) -> None:
    row = one(ROW)
    provider.post(row[0], node, *engine_with(), 0.0, 1)
    assert read(row, ROW)["accepts"] == accepts


def capacity(**means: float) -> float:
    """The capacity that a provider works out for given means."""
    node = one(NODE)
    put_all(node[0], **means)
    provider.size_up(node[0], one(PROFILE, **PROFILE_VALUES)[0])
    return float(read(node, NODE)["capacity_tps"])


def test_capacity_is_a_full_batch_over_the_time_of_its_step() -> None:
    assert capacity(mean_prompt=10.0, mean_forecast=20.0) == pytest.approx(64 / (0.02 + 2e-7 * 64 * 20.0))
    places = 16_000 / 4_000
    assert capacity(mean_prompt=1_000.0, mean_forecast=3_000.0) == pytest.approx(places / (0.02 + 2e-7 * places * 2_500.0))
    assert capacity(mean_prompt=1e9, mean_forecast=1e9) > 0.0


def survey(rows: list[dict[str, Any]], stakes: list[int]) -> dict[str, Any]:
    """What provider 0 sums up at 10 s."""
    node = one(NODE)
    accounts = table(ACCOUNT, *({"stake_micro": s} for s in stakes))
    provider.survey(node[0], table(ROW, *rows), 0, accounts, 0, len(rows), 0, 10.0)
    return read(node, NODE)


def test_a_survey_weighs_peers_by_stake() -> None:
    me = {"wait_s": 99.0, "accepts": 1.0}
    peers = [{"wait_s": 2.0, "accepts": 1.0, "posted_s": 8.0}, {"wait_s": 6.0, "accepts": 0.0, "posted_s": 4.0}]
    seen = survey([me, *peers], [50, 30, 10])
    assert (seen["peers_alive"], seen["peers_stake_micro"]) == (2, 40)
    assert (seen["peers_wait_mean_s"], seen["peers_wait_min_s"], seen["peers_wait_max_s"]) == (3.0, 2.0, 6.0)
    assert (seen["peers_accept"], seen["news_s"]) == (0.75, 4.0)


def test_a_survey_leaves_out_oneself_the_suspect_and_the_gone() -> None:
    others = [{"status": gossip.SUSPECT, "wait_s": 5.0}, {"status": gossip.GONE, "wait_s": 5.0}]
    seen = survey([{"wait_s": 99.0}, *others], [1, 1, 1])
    names = (
        "peers_alive",
        "peers_stake_micro",
        "peers_wait_mean_s",
        "peers_wait_min_s",
        "peers_wait_max_s",
        "peers_accept",
        "news_s",
    )
    assert [seen[name] for name in names] == [0] * 7


def test_peers_without_stake_are_still_seen() -> None:
    seen = survey([{}, {"wait_s": 4.0, "accepts": 1.0}], [0, 0])
    assert (seen["peers_alive"], seen["peers_wait_mean_s"], seen["peers_accept"]) == (1, 4.0, 1.0)


def test_a_new_provider_remembers_nothing() -> None:
    node = one(NODE, arrivals=5, duels_won=4, rate_fast=2.0, queued=3)
    provider.open_node(node[0], 30.0)
    row = read(node, NODE)
    assert (row["slo_s"], row["online"], row["queue_head"], row["queue_tail"]) == (30.0, 1, -1, -1)
    kept = {"slo_s", "online", "queue_head", "queue_tail", "offer_success", "delegated_ratio", *action.INTENT_FIELDS}
    assert all(value == 0 for name, value in row.items() if name not in kept)
