"""The quirks of WWW.Serve's released code, each behind its own term: what it changes, and that nothing is lost by it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from envs.wwwserve import load
from envs.wwwserve.batch import Batch
from envs.wwwserve.scenario import Standing
from market.ledger import ACCOUNT, give_back, pay_up, set_aside
from market.provider import take_turn
from tests.envs.stage import GIVE, MICRO, PROFILES, TAKE, State, all_is_over, market, play, who
from tests.envs.wwwserve.play import Players, draw_legal
from tests.market.rows import TERMS, column, image, table

MONEY = ("credit_micro", "stake_micro", "escrow_micro", "unbonding_micro")
RELEASED = load.terms("released")


def accounts(credit: int, escrow: int = 0) -> Any:
    """A payer with some credit, and a payee with none."""
    return table(ACCOUNT, {"credit_micro": credit, "escrow_micro": escrow}, {})


def test_without_escrow_nothing_is_set_aside_and_nobody_is_refused() -> None:
    both = accounts(3)
    before = image(both, ACCOUNT)
    assert set_aside(both[0], 5, 0) and image(both, ACCOUNT) == before
    give_back(both, 0, 5, 0)
    assert image(both, ACCOUNT) == before


def test_with_escrow_it_is_as_ever() -> None:
    both = accounts(5)
    assert not set_aside(both[0], 6, 1) and set_aside(both[0], 5, 1)
    assert column(both, ACCOUNT, "escrow_micro") == [5, 0]
    assert pay_up(both, 0, 1, 2, 1) == 2
    give_back(both, 0, 3, 1)
    assert column(both, ACCOUNT, "credit_micro") == [3, 2] and column(both, ACCOUNT, "escrow_micro") == [0, 0]


@pytest.mark.parametrize(("credit", "paid"), [(5, 5), (6, 5), (4, 0), (0, 0)])
def test_without_escrow_work_is_paid_with_the_answer_or_not_at_all(credit: int, paid: int) -> None:
    both = accounts(credit)
    assert pay_up(both, 0, 1, 5, 0) == paid
    assert column(both, ACCOUNT, "credit_micro") == [credit - paid, paid]


@pytest.mark.parametrize(
    ("turn_s", "now", "most_s", "after"),
    [
        (0.0, 10.0, 0.0, 10.5),  # long idle
        (0.0, 10.0, 1.0, 9.5),  # a second's decisions may be made up
        (9.5, 10.0, 1.0, 10.0),
        (10.0, 10.0, 1.0, 10.5),
        (10.5, 10.0, 1.0, -1.0),  # not yet
    ],
)
def test_a_decision_takes_its_turn(turn_s: float, now: float, most_s: float, after: float) -> None:
    assert take_turn(turn_s, now, 0.5, most_s) == after


def total_is(expected: int) -> Any:
    """A check that all the money is there, and none below zero."""

    def check(state: State) -> None:
        assert sum(int(state["account"][name].sum()) for name in MONEY) == expected
        assert min(int(state["account"][name].min()) for name in MONEY) >= 0

    return check


def test_a_broke_payer_is_served_for_nothing_where_there_is_no_escrow() -> None:
    scenario, few = market(who(3.0), who()), {"initial_credit": 5.0, "initial_stake": 0.5, "duel_rate": 0.0}
    check = total_is(2 * 5_500_000)
    free, paid = (play(scenario, GIVE, TAKE, check=check, escrow=escrow, **few) for escrow in (0, 1))
    # who has a credit may ask, and asks again before the first answer is paid
    assert free.outcomes()["delegated"].sum() > paid.outcomes()["delegated"].sum() == 5
    assert free.accounts()["wealth"][0].tolist() == paid.accounts()["wealth"][0].tolist() == [0.5, 10.5]
    assert not free.accounts()["escrow"].any()
    all_is_over(free)


def test_work_lost_in_a_crash_costs_nothing_without_escrow() -> None:
    batch = play(market(who(2.0), who(leave_s=30.0)), GIVE, TAKE, check=total_is(204 * MICRO), duel_rate=0.0, escrow=0)
    all_is_over(batch)
    paid = int((batch.outcomes()["executor"] == 1).sum())
    assert batch.accounts()["wealth"][0].tolist() == [102.0 - paid, 102.0 + paid]


def judges_of(batch: Batch) -> list[tuple[set[int], set[int]]]:
    """Judges and duellists of every duel that stands in the tables."""
    duels = batch.save()["duel"]
    return [
        (set(duel["judge"][: duel["judges"]].tolist()), {int(duel["executor_a"]), int(duel["executor_b"])})
        for duel in duels
        if duel["generation"] > 0 and duel["answers"] == 2
    ]


@pytest.mark.parametrize("allowed", [0, 1])
def test_duellists_judge_where_the_terms_allow_it(allowed: int) -> None:
    seen: list[bool] = []

    def watch(state: State) -> None:
        for duel in state["duel"]:
            if duel["origin"] >= 0 and duel["judges"] > 0:
                judges = set(duel["judge"][: duel["judges"]].tolist())
                assert int(duel["origin"]) not in judges and len(judges) == duel["judges"]
                seen.append(bool(judges & {int(duel["executor_a"]), int(duel["executor_b"])}))

    terms = {"duel_rate": 1.0, "duel_ttl_s": 60.0, "duellists_judge": allowed}
    batch = play(market(who(0.5), who(count=3)), GIVE, *[TAKE] * 3, check=watch, **terms)
    all_is_over(batch)
    assert seen and any(seen) is bool(allowed)
    # with three workers, two of whom duel, one judge is left, or all three
    assert {len(judges) for judges, _ in judges_of(batch)} <= {3 if allowed else 1, 0}


@pytest.mark.parametrize("escrow", [0, 1])
def test_a_duel_with_too_few_judges_has_no_verdict_and_costs_no_fee(escrow: int) -> None:
    terms = {"duel_rate": 1.0, "duel_ttl_s": 30.0, "escrow": escrow, "initial_credit": 300.0}
    strict = play(market(who(0.5), who(count=3)), GIVE, *[TAKE] * 3, check=total_is(4 * 302 * MICRO), judges_least=3, **terms)
    all_is_over(strict)
    assert strict.counters()["duels_won"].sum() == 0 and not [judges for judges, _ in judges_of(strict) if judges]
    lax = play(market(who(0.5), who(count=3)), GIVE, *[TAKE] * 3, judges_least=1, **terms)
    assert lax.counters()["duels_won"].sum() > 0
    executions = 2 * int(strict.outcomes()["delegated"].sum())
    spent = 302.0 - strict.accounts()["wealth"][0, 0]
    assert executions - 4 <= spent <= executions


def test_decisions_that_take_time_hold_up_those_behind() -> None:
    scenario = market(who(4.0), who(), requests_max=2048)
    quick, slow = (play(scenario, GIVE, TAKE, duel_rate=0.0, initial_credit=1e4, dispatch_s=s) for s in (0.0, 2.0))
    all_is_over(slow)
    counts = [int(batch.outcomes()["delegated"].sum()) for batch in (quick, slow)]
    assert counts[1] < 0.8 * counts[0]
    late = np.sort(slow.outcomes()["arrival_s"][slow.outcomes()["delegated"] == 1])
    assert len(late) <= scenario.horizon_s / 2.0 + 2


def test_half_a_second_a_decision_is_nothing_at_the_papers_loads() -> None:
    scenario = market(who(0.3), who())
    quick, slow = (play(scenario, GIVE, TAKE, duel_rate=0.0, dispatch_s=s, reoffer_s=0.5) for s in (0.0, 0.5))
    ttft = [batch.outcomes()["ttft_s"] for batch in (quick, slow)]
    assert len(ttft[0]) == len(ttft[1]) and abs(ttft[1].mean() - ttft[0].mean()) < 0.5


def test_the_released_terms_are_those_of_the_code() -> None:
    code = {"initial_credit": 1e4, "initial_stake": 0, "duel_rate": 1, "slash_per_mille": 1000, "minority_per_mille": 200}
    code |= {"absent_per_mille": 50, "unbond_s": 0, "dispatch_s": 0.5, "escrow": 0, "duellists_judge": 1, "judges_least": 3}
    assert {key: getattr(RELEASED, key) for key in code} == code


@pytest.mark.parametrize("brain", ["paper", "policy"])
@pytest.mark.parametrize("name", ["paper-1", "random-responders"])
def test_the_released_market_keeps_its_books(name: str, brain: str) -> None:
    scenario = load.scenario(name)
    profiles = load.profiles({profile for group in scenario.providers for profile in group.profiles})
    batch, players = Batch(scenario, RELEASED, profiles, seed=2, record=True, autoreset=False), Players(1)
    batch.pin(brain)
    first = sum(batch.save()["account"][part].sum() for part in MONEY)
    for step in range(batch.steps_per_episode):
        batch.step(players.act(batch.masks))
        if step % 20 == 0:
            total_is(first)(batch.save())
    total_is(first)(batch.save())
    assert (batch.outcomes()["status"] == 1).mean() > 0.5


def test_each_switch_alone_keeps_the_books_whatever_crashes() -> None:
    random = np.random.default_rng(1)
    scenario = market(who(1.0, count=2, up_s=30.0), who(0.1, count=4, up_s=60.0), horizon_s=100.0)
    for switch in ({"escrow": 0}, {"dispatch_s": 0.5}, {"duellists_judge": 1}, {"judges_least": 3}, {"unbond_s": 0.0}):
        batch = Batch(scenario, replace(TERMS, duel_rate=0.5, duel_ttl_s=30.0, **switch), PROFILES, seed=4, record=True)
        for _ in range(90):
            batch.step(draw_legal(batch.masks, random))
            total_is(6 * 102 * MICRO)(batch.save())
        assert batch.totals()["answered"][0] > 0, switch


@pytest.mark.parametrize("bond", [0.0, 25.0])
def test_below_the_bond_nobody_works_or_judges(bond: float) -> None:
    """Two give work to three who stake; one of these owns a tenth of what the others own, less than the bond."""
    poor = Standing(0.1, 1.0, None)
    scenario = market(who(0.6, count=2), who(count=2), who(standing=poor))
    batch = play(scenario, GIVE, GIVE, TAKE, TAKE, TAKE, duel_rate=0.5, bond=bond, judges=1)
    rows = batch.outcomes()
    executors = set(rows["executor"][rows["delegated"] == 1].tolist())
    assert executors == ({2, 3} if bond else {2, 3, 4})
    assert bool(batch.save()["node"]["duels_won"][4] + batch.save()["node"]["duels_lost"][4]) == (bond == 0)
