"""Credit and stake: every move keeps the total exactly, every refusal changes nothing, no balance falls below zero."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from market import ledger
from market.ledger import ACCOUNT, TRANCHES
from tests.market.rows import column, image, read, table

MICRO = 1_000_000
BALANCES = ("credit_micro", "stake_micro", "escrow_micro", "unbonding_micro")


def accounts(*owned: int, stake: int = 0) -> Any:
    """One account for each credit (micro-credits) owned, all with the same stake."""
    out = table(ACCOUNT, *({} for _ in owned))
    for place, credit in enumerate(owned):
        ledger.open_account(out[place], credit, stake)
    return out


def total(table_: Any) -> int:
    """All that the accounts own together."""
    return sum(sum(column(table_, ACCOUNT, name)) for name in BALANCES)


def test_a_payment_moves_credit_and_nothing_else() -> None:
    a = accounts(10, 3)
    assert ledger.pay(a, 0, 1, 4)
    assert column(a, ACCOUNT, "credit_micro") == [6, 7]
    assert total(a) == 13


def test_a_balance_of_one_pays_for_one_of_fifty() -> None:
    a = accounts(1, 0)
    assert sum(ledger.pay(a, 0, 1, 1) for _ in range(50)) == 1
    assert column(a, ACCOUNT, "credit_micro") == [0, 1]


def test_paying_oneself_changes_nothing() -> None:
    a = accounts(5)
    before = image(a, ACCOUNT)
    assert ledger.pay(a, 0, 0, 5)
    assert image(a, ACCOUNT) == before


@pytest.mark.parametrize(
    "move",
    [
        lambda a: ledger.pay(a, 0, 1, 11),
        lambda a: ledger.escrow(a[0], 11),
        lambda a: ledger.commit(a[0], 11),
        lambda a: ledger.release(a[0], 6, 1.0),
    ],
    ids=["pay", "escrow", "commit", "release"],
)
def test_a_refused_move_changes_nothing(move: Callable[[Any], bool]) -> None:
    a = accounts(10, 10, stake=5)
    before = image(a, ACCOUNT)
    assert not move(a)
    assert image(a, ACCOUNT) == before


@pytest.mark.parametrize(
    "move",
    [
        lambda a: ledger.pay(a, 0, 1, -1),
        lambda a: ledger.escrow(a[0], -1),
        lambda a: ledger.commit(a[0], -1),
        lambda a: ledger.release(a[0], -1, 1.0),
        lambda a: ledger.seize(a[0], -1),
        lambda a: ledger.settle(a, 0, 1, 0, -1),
        lambda a: ledger.open_account(a[0], -1, 0),
        lambda a: ledger.open_account(a[0], 0, -1),
    ],
    ids=["pay", "escrow", "commit", "release", "seize", "settle", "open credit", "open stake"],
)
def test_a_negative_amount_mints_nothing_because_it_is_a_bug(move: Callable[[Any], object]) -> None:
    a = accounts(10, 10, stake=5)
    before = image(a, ACCOUNT)
    with pytest.raises(AssertionError):
        move(a)
    assert image(a, ACCOUNT) == before


def test_money_in_escrow_cannot_be_spent_again() -> None:
    a = accounts(10, 0)
    assert ledger.escrow(a[0], 7)
    assert not ledger.pay(a, 0, 1, 4) and not ledger.commit(a[0], 4) and not ledger.escrow(a[0], 4)


def test_work_that_was_accepted_is_paid_whatever_its_payer_spends_meanwhile() -> None:
    a = accounts(10, 0, 0)
    ledger.escrow(a[0], 7)
    assert ledger.pay(a, 0, 2, 3)
    ledger.settle(a, 0, 1, 7, 7)
    assert column(a, ACCOUNT, "credit_micro") == [0, 7, 3]


def test_work_that_failed_is_not_paid_and_its_escrow_comes_back() -> None:
    a = accounts(10, 0)
    ledger.escrow(a[0], 7)
    ledger.settle(a, 0, 1, 7, 0)
    assert column(a, ACCOUNT, "credit_micro") == [10, 0]
    assert column(a, ACCOUNT, "escrow_micro") == [0, 0]


def test_an_escrow_can_be_shared_between_payee_and_payer() -> None:
    a = accounts(10, 0)
    ledger.escrow(a[0], 7)
    ledger.settle(a, 0, 1, 7, 2)
    assert column(a, ACCOUNT, "credit_micro") == [8, 2]


def test_an_answer_cannot_be_paid_twice() -> None:
    a = accounts(10, 0)
    ledger.escrow(a[0], 7)
    ledger.settle(a, 0, 1, 7, 7)
    with pytest.raises(AssertionError):
        ledger.settle(a, 0, 1, 7, 7)


def test_no_more_is_paid_than_was_set_aside() -> None:
    a = accounts(10, 0)
    ledger.escrow(a[0], 7)
    with pytest.raises(AssertionError):
        ledger.settle(a, 0, 1, 7, 8)


@pytest.mark.parametrize("escrowed", [0, 1])
def test_work_that_is_done_is_paid_with_and_without_escrow(escrowed: int) -> None:
    a = accounts(10, 0)
    assert ledger.set_aside(a[0], 7, escrowed)
    assert column(a, ACCOUNT, "escrow_micro") == [7 * escrowed, 0]
    assert ledger.pay_up(a, 0, 1, 7, escrowed) == 7
    assert column(a, ACCOUNT, "credit_micro") == [3, 7] and column(a, ACCOUNT, "escrow_micro") == [0, 0]


@pytest.mark.parametrize("escrowed", [0, 1])
def test_work_that_is_not_done_costs_nothing_with_and_without_escrow(escrowed: int) -> None:
    a = accounts(10, 0)
    before = image(a, ACCOUNT)
    assert ledger.set_aside(a[0], 7, escrowed)
    ledger.give_back(a, 0, 7, escrowed)
    assert image(a, ACCOUNT) == before


def test_escrow_refuses_whoever_is_broke_before_the_work_and_without_it_the_work_is_not_paid() -> None:
    a = accounts(6, 0)
    before = image(a, ACCOUNT)
    assert not ledger.set_aside(a[0], 7, 1)
    assert ledger.set_aside(a[0], 7, 0), "nobody asks"
    assert ledger.pay_up(a, 0, 1, 7, 0) == 0
    assert image(a, ACCOUNT) == before, "and nothing is paid in part"


def test_with_escrow_the_executor_is_paid_though_its_payer_is_broke_by_then() -> None:
    a = accounts(7, 0, 0)
    assert ledger.set_aside(a[0], 7, 1)
    assert not ledger.pay(a, 0, 2, 1)
    assert ledger.pay_up(a, 0, 1, 7, 1) == 7


def test_commitment_turns_credit_into_stake() -> None:
    a = accounts(10)
    assert ledger.commit(a[0], 4)
    assert read(a, ACCOUNT)["credit_micro"] == 6 and read(a, ACCOUNT)["stake_micro"] == 4


def test_released_stake_is_free_on_time_and_not_before() -> None:
    a = accounts(0, stake=10)
    assert ledger.release(a[0], 4, 60.0)
    ledger.mature(a[0], 59.999)
    assert read(a, ACCOUNT)["credit_micro"] == 0 and read(a, ACCOUNT)["unbonding_micro"] == 4
    ledger.mature(a[0], 60.0)
    assert read(a, ACCOUNT)["credit_micro"] == 4 and read(a, ACCOUNT)["unbonding_micro"] == 0


def test_tranches_mature_one_by_one() -> None:
    a = accounts(0, stake=10)
    for amount, free_s in ((1, 10.0), (2, 20.0), (3, 30.0)):
        ledger.release(a[0], amount, free_s)
    freed = []
    for now in (5.0, 10.0, 15.0, 25.0, 99.0):
        ledger.mature(a[0], now)
        freed.append(read(a, ACCOUNT)["credit_micro"])
    assert freed == [0, 1, 1, 3, 6]


def test_releasing_nothing_takes_no_tranche() -> None:
    a = accounts(0, stake=10)
    assert ledger.release(a[0], 0, 5.0)
    assert read(a, ACCOUNT)["tranches"] == 0


def test_a_release_too_many_joins_the_last_tranche_and_waits_with_it() -> None:
    a = accounts(0, stake=100)
    for k in range(TRANCHES + 2):
        assert ledger.release(a[0], 1, 10.0 + k)
    assert read(a, ACCOUNT)["tranches"] == TRANCHES
    ledger.mature(a[0], 10.0 + TRANCHES - 1)
    assert read(a, ACCOUNT)["credit_micro"] == TRANCHES - 1
    ledger.mature(a[0], 10.0 + TRANCHES + 1)
    assert read(a, ACCOUNT)["credit_micro"] == TRANCHES + 2


def test_leaving_does_not_save_stake_from_a_slash() -> None:
    a = accounts(0, 0, stake=10)
    ledger.release(a[0], 10, 60.0)
    assert ledger.slash(a, 0, 1, 500, 0) == 5
    ledger.mature(a[0], 60.0)
    assert column(a, ACCOUNT, "credit_micro") == [5, 5]


def test_a_slash_takes_stake_before_what_unbonds_and_the_newest_tranche_first() -> None:
    a = accounts(0, stake=10)
    ledger.release(a[0], 3, 10.0)
    ledger.release(a[0], 3, 20.0)
    assert ledger.seize(a[0], 6) == 6
    row = read(a, ACCOUNT)
    assert row["stake_micro"] == 0 and row["tranche_micro"][:2] == [3, 1] and row["unbonding_micro"] == 4


def test_no_more_can_be_seized_than_is_bonded() -> None:
    a = accounts(50, stake=10)
    ledger.release(a[0], 3, 10.0)
    assert ledger.seize(a[0], 99) == 10
    assert read(a, ACCOUNT)["credit_micro"] == 50


@pytest.mark.parametrize(("per_mille", "moved"), [(0, 0), (1, 0), (100, 1), (200, 2), (999, 9), (1000, 10)])
def test_a_slash_moves_thousandths_of_the_stake_rounded_down(per_mille: int, moved: int) -> None:
    a = accounts(7, 7, stake=10)
    assert ledger.slash(a, 0, 1, per_mille, 0) == moved
    assert column(a, ACCOUNT, "credit_micro") == [7, 7 + moved]
    assert column(a, ACCOUNT, "stake_micro") == [10 - moved, 10]


@pytest.mark.parametrize(("bond", "moved"), [(0, 2), (2, 2), (3, 3), (10, 10), (11, 10), (99, 10)])
def test_a_slash_takes_the_bond_where_that_is_more_and_never_more_than_there_is(bond: int, moved: int) -> None:
    a = accounts(7, 7, stake=10)
    assert ledger.slash(a, 0, 1, 200, bond) == moved
    assert column(a, ACCOUNT, "credit_micro") == [7, 7 + moved]
    assert column(a, ACCOUNT, "stake_micro") == [10 - moved, 10]


@pytest.mark.parametrize(
    ("target", "most", "stake"), [(10, 99, 10), (10, 3, 8), (10, 0, 5), (5, 99, 5), (0, 99, 0), (0, 2, 3), (99, 99, 25)]
)
def test_stake_moves_towards_its_target_at_a_bounded_rate(target: int, most: int, stake: int) -> None:
    a = accounts(20, stake=5)
    ledger.steer_stake(a[0], target, most, 60.0)
    assert read(a, ACCOUNT)["stake_micro"] == stake
    assert total(a) == 25


def test_an_account_is_opened_empty() -> None:
    a = accounts(20, stake=5)
    ledger.escrow(a[0], 3)
    ledger.release(a[0], 2, 9.0)
    ledger.open_account(a[0], 7, 1)
    assert ledger.wealth(a[0]) == 8
    ledger.mature(a[0], 99.0)
    assert read(a, ACCOUNT)["credit_micro"] == 7


PEOPLE = st.integers(0, 3)
AMOUNTS = st.integers(0, 3 * MICRO)


class AnyMoves(RuleBasedStateMachine):
    """Four accounts, all moves of the ledger in any order, time that goes on."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.accounts = accounts(*(2 * MICRO,) * 4, stake=MICRO)
        self.now = 0.0

    @rule(span=st.floats(0.0, 50.0))
    def wait(self, span: float) -> None:
        """Time passes, and stake matures."""
        self.now += span
        for place in range(4):
            ledger.mature(self.accounts[place], self.now)
            row = read(self.accounts, ACCOUNT, place)
            assert all(free_s > self.now for free_s in row["tranche_s"][: row["tranches"]])

    @rule(payer=PEOPLE, payee=PEOPLE, amount=AMOUNTS)
    def pay(self, payer: int, payee: int, amount: int) -> None:
        """Anybody pays anybody."""
        before = image(self.accounts, ACCOUNT)
        if not ledger.pay(self.accounts, payer, payee, amount):
            assert image(self.accounts, ACCOUNT) == before

    @rule(target=jobs, payer=PEOPLE, payee=PEOPLE, amount=AMOUNTS)
    def start_work(self, payer: int, payee: int, amount: int) -> tuple[int, int, int]:
        """Work begins, with its price set aside."""
        before = image(self.accounts, ACCOUNT)
        if ledger.escrow(self.accounts[payer], amount):
            return payer, payee, amount
        assert image(self.accounts, ACCOUNT) == before
        return payer, payee, 0

    @rule(job=consumes(jobs), share=st.integers(0, 100))
    def end_work(self, job: tuple[int, int, int], share: int) -> None:
        """Work ends and is paid in part or in full."""
        payer, payee, held = job
        ledger.settle(self.accounts, payer, payee, held, held * share // 100)

    @rule(who=PEOPLE, amount=AMOUNTS)
    def commit(self, who: int, amount: int) -> None:
        """Somebody stakes."""
        ledger.commit(self.accounts[who], amount)

    @rule(who=PEOPLE, amount=AMOUNTS)
    def release(self, who: int, amount: int) -> None:
        """Somebody unstakes."""
        ledger.release(self.accounts[who], amount, self.now + 60.0)

    @rule(who=PEOPLE, aim=AMOUNTS, most=AMOUNTS)
    def steer(self, who: int, aim: int, most: int) -> None:
        """Somebody's stake follows an aim."""
        stake = read(self.accounts, ACCOUNT, who)["stake_micro"]
        ledger.steer_stake(self.accounts[who], aim, most, self.now + 60.0)
        assert abs(read(self.accounts, ACCOUNT, who)["stake_micro"] - stake) <= most

    @rule(loser=PEOPLE, winner=PEOPLE, per_mille=st.integers(0, 1000), bond=AMOUNTS)
    def slash(self, loser: int, winner: int, per_mille: int, bond: int) -> None:
        """Somebody loses a duel."""
        ledger.slash(self.accounts, loser, winner, per_mille, bond)

    @invariant()
    def the_total_is_kept_exactly(self) -> None:
        """Nothing is made and nothing is lost."""
        assert total(self.accounts) == 12 * MICRO
        assert sum(ledger.wealth(self.accounts[place]) for place in range(4)) == 12 * MICRO

    @invariant()
    def no_balance_is_negative(self) -> None:
        """Not even a tranche."""
        for place in range(4):
            row = read(self.accounts, ACCOUNT, place)
            tranches = row["tranche_micro"][: row["tranches"]]
            assert min(row[name] for name in BALANCES) >= 0 and all(amount >= 0 for amount in tranches)
            assert sum(tranches) == row["unbonding_micro"]
            times = row["tranche_s"][: row["tranches"]]
            assert times == sorted(times)


AnyMoves.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestAnyMoves = AnyMoves.TestCase
