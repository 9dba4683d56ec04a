"""Duel and judge: who wins, what moves, what it costs to judge badly or not at all."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market import duel
from market.duel import ABSTAIN, DUEL, FOR_A, FOR_B, NONE, PENDING
from market.ledger import ACCOUNT
from tests.market.rows import column, image, one, table

A, B = 0, 1
STAKE = 1_000_000
BONDS = ("stake_micro", "unbonding_micro")


def tie_up(*votes: int) -> Any:
    """A duel of providers 0 and 1, judged by 2, 3, 4 with these votes."""
    judges = [2 + k for k in range(len(votes))] + [0] * (3 - len(votes))
    return one(DUEL, executor_a=A, executor_b=B, judges=len(votes), judge=judges, vote=[*votes, *[PENDING] * (3 - len(votes))])


def people(stake: int = STAKE) -> Any:
    """Five accounts with equal stakes and no credit."""
    return table(ACCOUNT, *({"stake_micro": stake} for _ in range(5)))


def settle(the_duel: Any, accounts: Any, slash: int = 200, bond: int = 0, minority: int = 100, absent: int = 50) -> int:
    """Settle with given thousandths, and a bond in micro-credits."""
    return int(duel.settle(the_duel[0], accounts, 0, slash, bond, minority, absent))


def total(accounts: Any) -> int:
    """All that the accounts own."""
    return sum(sum(column(accounts, ACCOUNT, name)) for name in ("credit_micro", *BONDS))


@pytest.mark.parametrize(
    ("votes", "result"),
    [
        ((FOR_A, FOR_A, FOR_A), FOR_A),
        ((FOR_B, FOR_A, FOR_B), FOR_B),
        ((FOR_A, FOR_B), NONE),
        ((FOR_A, FOR_B, ABSTAIN), NONE),
        ((FOR_B, PENDING, PENDING), FOR_B),
        ((ABSTAIN, ABSTAIN, PENDING), NONE),
        ((FOR_A,), FOR_A),
        ((), NONE),
    ],
)
def test_the_majority_of_the_votes_in_hand_decides(votes: tuple[int, ...], result: int) -> None:
    assert duel.outcome(tie_up(*votes)[0]) == result


@pytest.mark.parametrize("votes", [(FOR_A, FOR_B), (FOR_A, FOR_B, ABSTAIN), (PENDING, PENDING, PENDING), ()])
def test_a_tie_moves_no_credit(votes: tuple[int, ...]) -> None:
    accounts = people()
    before = image(accounts, ACCOUNT)
    assert settle(tie_up(*votes), accounts) == NONE
    assert image(accounts, ACCOUNT) == before


def test_the_loser_pays_the_winner_and_nobody_else_moves_when_all_agree() -> None:
    accounts = people()
    assert settle(tie_up(FOR_A, FOR_A, FOR_A), accounts) == FOR_A
    assert column(accounts, ACCOUNT, "stake_micro") == [STAKE, 800_000, STAKE, STAKE, STAKE]
    assert column(accounts, ACCOUNT, "credit_micro") == [200_000, 0, 0, 0, 0]


def test_either_side_can_win() -> None:
    accounts = people()
    assert settle(tie_up(FOR_B, FOR_B, FOR_B), accounts) == FOR_B
    assert column(accounts, ACCOUNT, "credit_micro") == [0, 200_000, 0, 0, 0]


def test_a_minority_judge_pays_the_majority_in_equal_parts() -> None:
    accounts = people()
    settle(tie_up(FOR_A, FOR_B, FOR_A), accounts)
    assert column(accounts, ACCOUNT, "credit_micro") == [200_000, 0, 50_000, 0, 50_000]
    assert column(accounts, ACCOUNT, "stake_micro")[3] == 900_000


@pytest.mark.parametrize("missing", [ABSTAIN, PENDING])
def test_an_absent_judge_pays_less_than_a_minority_judge(missing: int) -> None:
    accounts = people()
    settle(tie_up(FOR_A, missing, FOR_A), accounts)
    assert column(accounts, ACCOUNT, "stake_micro")[3] == 950_000
    assert column(accounts, ACCOUNT, "credit_micro") == [200_000, 0, 25_000, 0, 25_000]


def test_a_duel_whose_time_is_over_is_settled_with_the_one_vote_that_came() -> None:
    accounts = people()
    assert settle(tie_up(FOR_B, PENDING, PENDING), accounts) == FOR_B
    assert column(accounts, ACCOUNT, "credit_micro") == [0, 200_000, 100_000, 0, 0]


def test_parts_that_do_not_divide_evenly_lose_nothing() -> None:
    accounts = people(stake=101)
    settle(tie_up(FOR_A, FOR_B, FOR_A), accounts, slash=0, minority=30)
    assert column(accounts, ACCOUNT, "credit_micro") == [0, 0, 1, 0, 2]
    assert total(accounts) == 505


def test_a_judge_without_stake_loses_nothing() -> None:
    accounts = table(ACCOUNT, *({"stake_micro": s} for s in (STAKE, STAKE, STAKE, 0, STAKE)))
    settle(tie_up(FOR_A, FOR_B, FOR_A), accounts)
    assert total(accounts) == 4 * STAKE


def test_stake_that_unbonds_is_slashed_too() -> None:
    accounts = people(stake=0)
    loser = {"unbonding_micro": 500, "tranches": 1, "tranche_micro": [500, *[0] * 7]}
    accounts = table(ACCOUNT, {}, loser, {}, {}, {})
    settle(tie_up(FOR_A, FOR_A, FOR_A), accounts)
    assert column(accounts, ACCOUNT, "unbonding_micro")[B] == 400
    assert column(accounts, ACCOUNT, "credit_micro")[A] == 100


@pytest.mark.parametrize(
    ("bond", "paid"), [(0, 200_000), (200_000, 200_000), (250_000, 250_000), (STAKE, STAKE), (2 * STAKE, STAKE)]
)
def test_a_lost_duel_costs_the_bond_at_least_and_at_most_what_is_staked(bond: int, paid: int) -> None:
    accounts = people()
    settle(tie_up(FOR_A, FOR_A, FOR_A), accounts, bond=bond)
    assert column(accounts, ACCOUNT, "stake_micro") == [STAKE, STAKE - paid, STAKE, STAKE, STAKE]
    assert column(accounts, ACCOUNT, "credit_micro") == [paid, 0, 0, 0, 0]


def test_a_bond_costs_nobody_anything_in_a_tie() -> None:
    accounts = people()
    settle(tie_up(FOR_A, FOR_B), accounts, bond=STAKE)
    assert column(accounts, ACCOUNT, "stake_micro") == [STAKE] * 5


def test_a_network_is_found_by_its_first_account() -> None:
    accounts = table(ACCOUNT, *({"stake_micro": STAKE} for _ in range(7)))
    duel.settle(tie_up(FOR_A, FOR_A, FOR_A)[0], accounts, 2, 200, 0, 100, 50)
    assert column(accounts, ACCOUNT, "credit_micro") == [0, 0, 200_000, 0, 0, 0, 0]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 3), max_size=3),
    st.lists(st.integers(0, 10**12), min_size=5, max_size=5),
    st.tuples(*[st.integers(0, 1000)] * 3),
    st.integers(0, 10**12),
)
def test_a_settlement_keeps_the_total_and_leaves_no_stake_below_zero(
    votes: list[int], stakes: list[int], shares: tuple[int, int, int], bond: int
) -> None:
    accounts = table(ACCOUNT, *({"stake_micro": s} for s in stakes))
    slash, minority, absent = shares
    result = settle(tie_up(*votes), accounts, slash, bond, minority, absent)
    assert total(accounts) == sum(stakes)
    assert min(column(accounts, ACCOUNT, "stake_micro")) >= 0
    if result != NONE:
        loser = B if result == FOR_A else A
        assert column(accounts, ACCOUNT, "stake_micro")[loser] == stakes[loser] - min(
            max(stakes[loser] * slash // 1000, bond), stakes[loser]
        )


@pytest.mark.parametrize(("gap", "scale"), [(0.0, 1.0), (0.57, 1.0), (-1.2, 1.0), (2.0, 4.0), (-0.3, 0.25)])
def test_the_chance_of_a_vote_is_logistic_in_the_quality_difference(gap: float, scale: float) -> None:
    count = 4_000
    votes = [duel.vote(0.1 + gap, 0.1, scale, (k + 0.5) / count) for k in range(count)]
    assert votes.count(FOR_A) / count == pytest.approx(1 / (1 + math.exp(-gap / scale)), abs=1 / count)
    assert votes.count(FOR_A) + votes.count(FOR_B) == count


def test_the_order_of_the_answers_does_not_matter_to_a_judge() -> None:
    for k in range(99):
        u = (k + 0.5) / 100
        assert (duel.vote(0.8, 0.2, 1.0, u) == FOR_A) == (duel.vote(0.2, 0.8, 1.0, 1.0 - u) == FOR_B)


@pytest.mark.parametrize(("a", "b", "vote"), [(100.0, -100.0, FOR_A), (-100.0, 100.0, FOR_B)])
def test_a_hopeless_answer_loses_whatever_the_scale(a: float, b: float, vote: int) -> None:
    for scale in (1e-6, 1.0):
        assert duel.vote(a, b, scale, 0.5) == vote


@pytest.mark.parametrize("honest", [FOR_A, FOR_B])
@pytest.mark.parametrize(
    ("judge", "a", "b", "bent"),
    [
        (0, 0, 0, None),  # nobody holds with anybody
        (0, 1, 2, None),  # the judge is in no coalition
        (0, 0, 1, None),
        (1, 1, 0, FOR_A),
        (1, 0, 1, FOR_B),
        (1, 1, 2, FOR_A),  # the other one is of another coalition
        (1, 1, 1, None),  # both are fellows
        (1, 2, 2, None),  # none is
        (1, 0, 0, None),
    ],
)
def test_a_judge_of_a_coalition_votes_for_its_only_fellow(honest: int, judge: int, a: int, b: int, bent: int | None) -> None:
    assert duel.loyal(honest, judge, a, b) == (honest if bent is None else bent)
