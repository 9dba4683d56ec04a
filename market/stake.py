"""The draw of executors and judges by stake, without replacement, among peers believed alive."""

from market.rule import rule

NONE = -1


@rule
def _banned(peer, banned, count):
    for k in range(count):
        if banned[k] == peer:
            return True
    return False


@rule
def draw(accounts, rows, first_account, first_row, providers, banned, count, bond, u):
    """Draw one peer with chance proportional to its stake, or NONE when no peer can be drawn.

    accounts        stakes of all providers, from index `first_account` on
    rows            the drawer's roster, from index `first_row` on: only peers whose `status` is 0 (alive) are drawn
    banned, count   the first `count` entries of `banned` are peers that are left out (drawn before, itself)
    bond            micro-credits: who has less at stake is not drawn
    u               uniform in (0, 1)
    source          drawing one after another with the drawn left out has the law of Efraimidis and Spirakis (IPL 2006)
    """
    least = max(bond, 1)
    total = 0
    for peer in range(providers):
        stake = accounts[first_account + peer].stake_micro
        if stake >= least and rows[first_row + peer].status == 0 and not _banned(peer, banned, count):
            total += stake
    if total == 0:
        return NONE
    mark = u * total
    passed = 0
    last = NONE
    for peer in range(providers):
        stake = accounts[first_account + peer].stake_micro
        if stake >= least and rows[first_row + peer].status == 0 and not _banned(peer, banned, count):
            passed += stake
            last = peer
            if mark < passed:
                return peer
    return last


@rule
def goal(intent, wealth, bond):
    """Micro-credits to stake by an intent: a share of `wealth`, or a sum; with less than `bond` it would be drawn for nothing."""
    target = intent.stake_target_micro if intent.stake_share < 0.0 else int(intent.stake_share * wealth)
    return max(target, bond) if target > 0 else 0
