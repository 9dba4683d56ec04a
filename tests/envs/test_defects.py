"""What goes wrong in markets like this one, and is right here: each test is named by what holds.

Small markets of a minute's arrivals are played out until nothing is under way, in whichever mode the rules run.
"""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from envs.wwwserve.state import COPY, FREE, JUDGE, LOST, OFFERED
from market.duel import PENDING
from market.gossip import GONE
from tests.envs.stage import (
    GIVE,
    STAY,
    TAKE,
    TINY,
    TRADE,
    State,
    all_is_over,
    duels_are_fair,
    everything,
    market,
    play,
    who,
)


@pytest.mark.parametrize("seed", [1, 2])
def test_no_request_is_lost_and_no_credit_whatever_crashes(seed: int) -> None:
    scenario = market(who(1.0, count=3, up_s=30.0), who(0.1, count=3, up_s=60.0), horizon_s=120.0)
    batch = play(scenario, *[TRADE] * 6, check=everything, seed=seed, duel_rate=0.5, duel_ttl_s=30.0)
    rows = batch.outcomes()
    assert len(rows) == batch.totals()["arrived"][0] and set(rows["status"].tolist()) >= {1, 2}


def test_every_request_of_a_calm_market_is_answered() -> None:
    batch = play(market(who(1.0), who(0.1, count=3)), *[TRADE] * 4, check=everything, duel_rate=0.3, duel_ttl_s=60.0)
    all_is_over(batch)
    assert batch.totals()["failed"][0] == 0 and batch.outcomes()["delegated"].mean() > 0.5


def test_a_duel_always_ends() -> None:
    batch = play(market(who(1.0), who(count=5)), GIVE, *[TAKE] * 5, check=duels_are_fair, duel_rate=1.0, duel_ttl_s=60.0)
    all_is_over(batch)
    counters = batch.counters()
    assert counters["duels_won"].sum() == counters["duels_lost"].sum() > 0
    assert counters["duels_won"][0, 0] == counters["duels_lost"][0, 0] == 0


def test_a_duel_whose_judges_have_gone_ends_when_its_time_is_over() -> None:
    missing: list[int] = []

    def count_missing(state: State) -> None:
        over = state["duel"][(state["duel"]["judges"] > 0) & (state["duel"]["open"] == 0)]
        missing.append(sum(int((duel["vote"][: duel["judges"]] == PENDING).sum()) for duel in over))

    groups = (who(3.0), who(count=2), who(count=4, leave_s=30.0))
    batch = play(market(*groups), GIVE, *[TAKE] * 6, check=count_missing, duel_rate=1.0, duel_ttl_s=20.0, initial_credit=1000.0)
    state = batch.save()
    assert max(missing) > 0 and not state["duel"]["open"].any() and state["net"][0]["duels"] == 0


def test_a_judges_work_is_never_offered_and_starts_no_duel() -> None:
    def judges_hold_no_duel(state: State) -> None:
        requests, duels = state["request"], state["duel"]
        judging = (requests["state"] != FREE) & (requests["kind"] == JUDGE)
        assert not (judging & (requests["state"] == OFFERED)).any()
        assert not judging[duels["request"][duels["request"] >= 0]].any()

    batch = play(market(who(1.0), who(count=5)), *[TRADE] * 6, check=judges_hold_no_duel, duel_rate=1.0, duel_ttl_s=60.0)
    state = all_is_over(batch)
    assert 0 < int(state["duel"]["generation"].sum()) <= int(state["node"]["offers_accepted"].sum())


def test_two_providers_trade_though_every_delegated_request_should_duel() -> None:
    batch = play(market(who(1.0), who()), GIVE, TAKE, duel_rate=1.0, duel_ttl_s=60.0)
    all_is_over(batch)
    assert batch.outcomes()["delegated"].mean() > 0.9 and batch.counters()["duels_won"].sum() == 0


def test_the_work_of_a_crashed_peer_returns_and_is_answered() -> None:
    lost: list[int] = []

    def count_lost(state: State) -> None:
        everything(state)
        lost.append(int((state["request"]["state"] == LOST).sum()))

    batch = play(market(who(2.0), who(leave_s=30.0)), GIVE, TAKE, check=count_lost, duel_rate=0.0)
    state = all_is_over(batch)
    assert max(lost) > 0 and batch.totals()["failed"][0] == 0
    rows = batch.outcomes()
    assert (rows["executor"][rows["arrival_s"] > 45.0] == 0).all() and (rows["executor"][rows["arrival_s"] < 15.0] == 1).any()
    assert state["row"][1]["status"] == GONE


def no_money_is_held_after_the_deadline(state: State) -> None:
    """Of one who is offline: work that is lost holds nothing once nobody waits for it."""
    requests, now_s = state["request"], float(state["net"][0]["step"])
    away = state["node"]["online"][requests["origin"]] == 0
    assert not ((requests["state"] == LOST) & away & (requests["deadline_s"] <= now_s)).any()


def test_no_escrow_outlives_its_request_when_neither_side_ever_comes_back() -> None:
    held: list[int] = []

    def watch(state: State) -> None:
        everything(state)
        no_money_is_held_after_the_deadline(state)
        if state["node"]["online"][0] == 0:
            held.append(int(state["account"]["escrow_micro"][0]))

    groups = who(6.0, leave_s=10.0), who(count=2, leave_s=10.1)
    batch = play(market(*groups), GIVE, TAKE, TAKE, check=watch, duel_rate=0.3, duel_ttl_s=20.0)
    state = all_is_over(batch)
    assert max(held) > 0 and state["node"]["online"].sum() == 0
    assert batch.totals()["failed"][0] > 0


def test_a_peer_that_crashed_is_not_paid_for_what_it_lost() -> None:
    batch = play(market(who(0.5), who(leave_s=10.0)), GIVE, TAKE, duel_rate=0.0)
    paid = int((batch.outcomes()["executor"] == 1).sum())
    accounts = batch.accounts()
    assert accounts["wealth"][0].tolist() == [102.0 - paid, 102.0 + paid]


def test_offers_to_a_silent_peer_time_out() -> None:
    rows = play(market(who(0.5), who(leave_s=10.0)), GIVE, TAKE, offer_timeout_s=2.0).outcomes()
    silent = rows[(rows["arrival_s"] > 10.0) & (rows["arrival_s"] < 15.0)]
    assert len(silent) > 0 and (silent["status"] == 1).all() and (silent["executor"] == 0).all()
    assert silent["ttft_s"].max() < 4.0


def test_an_offer_does_not_time_out_before_it_has_arrived() -> None:
    scenario = market(who(0.5), who(leave_s=10.0), delay_s={"lab": {"lab": 5.0}})
    rows = play(scenario, GIVE, TAKE, offer_timeout_s=0.5, duel_rate=0.0).outcomes()
    silent = rows[(rows["arrival_s"] > 10.0) & (rows["arrival_s"] < 15.0)]
    assert len(silent) > 0 and silent["ttft_s"].max() >= 5.0


def test_a_duel_ends_without_a_verdict_when_its_first_executor_crashes() -> None:
    def no_gone_duellist_of_reused_work(state: State) -> None:
        for duel in state["duel"]:
            if duel["origin"] >= 0 and duel["open"] == 1 and duel["request"] >= 0:
                assert state["request"][duel["request"]]["state"] != FREE
                assert state["request"][duel["request"]]["duel"] >= 0

    scenario = market(who(1.0), who(count=3, up_s=15.0), horizon_s=200.0)
    batch = play(scenario, GIVE, *[TAKE] * 3, check=no_gone_duellist_of_reused_work, duel_rate=1.0, duel_ttl_s=100.0)
    assert not batch.save()["duel"]["open"].any()


def test_delegated_work_is_not_handed_on() -> None:
    def only_origins_offer(state: State) -> None:
        requests = state["request"]
        offered = requests[requests["state"] == OFFERED]
        assert not offered["held_micro"].any() and not (offered["kind"] == JUDGE).any()
        assert (offered["banned"][:, 0] == offered["origin"]).all()

    batch = play(market(who(1.0, count=2), who(count=2)), *[TRADE] * 4, check=only_origins_offer, duel_rate=0.0)
    rows, counters = batch.outcomes(), batch.counters()
    assert counters["offers_accepted"].sum() == rows["delegated"].sum() > 0


def test_nobody_works_for_who_cannot_pay() -> None:
    batch = play(market(who(1.0), who()), GIVE, TAKE, initial_credit=0.0)
    assert not batch.outcomes()["delegated"].any() and batch.counters()["offers_made"].sum() == 0


def test_credit_for_five_requests_buys_five_requests() -> None:
    batch = play(market(who(1.0), who()), GIVE, TAKE, initial_credit=5.0, initial_stake=0.5, duel_rate=0.0)
    assert batch.outcomes()["delegated"].sum() == 5
    assert batch.accounts()["wealth"][0].tolist() == [0.5, 10.5]


def test_a_provider_handles_more_than_two_requests_a_second() -> None:
    rows = play(market(who(6.0), who(), requests_max=2048, kinds=short_answers()), STAY, STAY).outcomes()
    assert len(rows) > 300 and np.median(rows["ttft_s"]) < 0.5


def short_answers() -> dict[str, Any]:
    """Users who want a word or two."""
    return {"reasoning": replace(TINY.kinds["reasoning"], max_tokens=16)}


def test_guests_do_not_starve_behind_a_providers_own_users() -> None:
    rows = play(market(who(1.0), who(0.5)), GIVE, TAKE, duel_rate=0.0, initial_credit=1000.0).outcomes()
    guests, own = rows[rows["delegated"] == 1], rows[(rows["origin"] == 1)]
    assert len(guests) > 20 and (guests["status"] == 1).all()
    assert guests["ttft_s"].mean() < 2.0 * own["ttft_s"].mean() + 1.0


def test_a_provider_that_is_offline_keeps_its_stake() -> None:
    batch = play(market(who(0.5), who(leave_s=20.0)), TRADE, TRADE, duel_rate=0.0, unbond_s=5.0)
    stake = batch.accounts()["stake"][0]
    assert stake[1] > 5.0


def test_a_provider_that_rejoins_takes_up_its_work_again() -> None:
    up_again: list[bool] = []

    def watch(state: State) -> None:
        up_again.append(bool(state["node"][1]["online"]))

    batch = play(market(who(1.0), who(up_s=15.0)), GIVE, TAKE, check=watch, seed=4)
    flips = [now and not before for before, now in itertools.pairwise(up_again)]
    rows = batch.outcomes()
    back = flips.index(True) + 1.0
    assert (rows["executor"][(rows["arrival_s"] > back + 10.0)] == 1).any()
    assert batch.totals()["failed"][0] == 0


def test_a_newcomer_knows_one_address_and_is_soon_known_by_all() -> None:
    seen: list[int] = []

    def watch(state: State) -> None:
        status = state["row"]["status"].reshape(4, 4)
        seen.append(int((status[:3, 3] == 0).sum()))

    play(market(who(0.5, count=3), who(join_s=20.0), horizon_s=60.0), *[TRADE] * 4, check=watch)
    assert seen[18] == 0 and seen[-1] == 3 and max(seen[:40]) == 3


def test_a_copy_is_dropped_when_no_second_executor_is_found() -> None:
    def few_copies(state: State) -> None:
        requests = state["request"]
        assert not ((requests["state"] != FREE) & (requests["kind"] == COPY) & (requests["held_micro"] > 0)).any()

    all_is_over(play(market(who(0.5), who()), GIVE, TAKE, check=few_copies, duel_rate=1.0, duel_ttl_s=30.0))


def test_a_judges_work_is_as_old_as_the_question_to_it_whatever_stood_in_its_slot() -> None:
    def young(state: State) -> None:
        judging = state["request"][(state["request"]["state"] != FREE) & (state["request"]["kind"] == JUDGE)]
        opened = state["duel"]["opened_s"][judging["duel"]]
        assert (judging["arrival_s"] >= opened).all() and (judging["arrival_s"] <= judging["deadline_s"]).all()
        seen.append(len(judging))

    seen: list[int] = []
    play(market(who(2.0), who(count=5)), GIVE, *[TAKE] * 5, check=young, duel_rate=1.0, duel_ttl_s=60.0, initial_credit=1000.0)
    assert max(seen) > 0
