"""Duel and judge: two executors answer one request, judges vote, the loser's stake moves.

source   WWW.Serve, duel-and-judge (arXiv 2603.20661): majority wins, minority judges and absent judges lose shares to the majority
differs  judges are never duellists; a tie moves nothing, as in the paper; a share of the stake is slashed, not all of it
"""

import math

from market.ledger import seize, slash
from market.rule import layout, rule

JUDGES = 3
NONE = -1
FOR_A = 0
FOR_B = 1
ABSTAIN = 2
PENDING = 3
MOST_ODDS = 700.0
"""Log-odds beyond this are certain; exp would overflow."""

DUEL = layout(
    origin=int,  # provider whose request it is; NONE = free slot
    open=int,  # 1 until it is settled; the slot stays taken until duel_ttl_s is over
    request=int,  # where the driver keeps the duelled request; NONE once that is gone
    executor_a=int,
    executor_b=int,
    answers=int,  # answers in: judges are drawn at 2
    prompt_tokens=int,  # of the judge's prompt: question and both answers
    judges=int,  # drawn
    pending=int,  # votes still out
    fee_micro=int,  # escrowed for each judge
    opened_s=float,
    generation=int,  # grows each time the slot is used, so that a late message finds nobody
    judge=(int, JUDGES),
    vote=(int, JUDGES),
)


@rule
def vote(quality_a, quality_b, scale, u):
    """One judge's vote: FOR_A with the logistic chance of the quality difference.

    scale   quality difference that moves the odds by a factor e
    u       uniform in (0, 1), the judge's own
    """
    gap = min(max((quality_a - quality_b) / scale, -MOST_ODDS), MOST_ODDS)
    return FOR_A if u < 1.0 / (1.0 + math.exp(-gap)) else FOR_B


@rule
def loyal(honest, judge, a, b):
    """Bend a vote to a judge's coalition: where exactly one duellist is its fellow, that one gets it.

    honest        the vote that the answers deserve
    judge, a, b   coalitions of the judge and of the duellists; 0 = none
    """
    if judge == 0 or (a == judge) == (b == judge):
        return honest
    return FOR_A if a == judge else FOR_B


@rule
def outcome(duel):
    """Count the votes: FOR_A, FOR_B, or NONE on a tie."""
    for_a = 0
    for_b = 0
    for k in range(duel.judges):
        if duel.vote[k] == FOR_A:
            for_a += 1
        elif duel.vote[k] == FOR_B:
            for_b += 1
    if for_a == for_b:
        return NONE
    return FOR_A if for_a > for_b else FOR_B


@rule
def settle(duel, accounts, first_account, slash_per_mille, bond, minority_per_mille, absent_per_mille):
    """Move stakes by the votes: loser to winner, minority and absent judges to the majority. A tie moves nothing.

    accounts   records of ACCOUNT, provider p at index first_account + p; totals are kept
    bond       micro-credits that a lost duel costs at least, as far as the loser's stake goes
    returns    FOR_A, FOR_B or NONE
    """
    result = outcome(duel)
    if result == NONE:
        return result
    winner = duel.executor_a if result == FOR_A else duel.executor_b
    loser = duel.executor_b if result == FOR_A else duel.executor_a
    slash(accounts, first_account + loser, first_account + winner, slash_per_mille, bond)
    majority = 0
    pool = 0
    for k in range(duel.judges):
        if duel.vote[k] == result:
            majority += 1
            continue
        account = accounts[first_account + duel.judge[k]]
        share = absent_per_mille if duel.vote[k] >= ABSTAIN else minority_per_mille
        pool += seize(account, (account.stake_micro + account.unbonding_micro) * share // 1000)
    for k in range(duel.judges):
        if duel.vote[k] == result:
            part = pool // majority
            pool -= part
            majority -= 1
            accounts[first_account + duel.judge[k]].credit_micro += part
    return result
