"""Credit and stake: pay, escrow, settle, commit, release, slash. Integers, so that totals are kept exactly.

Every rule moves or refuses; none makes or destroys a micro-credit. A refused move changes nothing.
source   WWW.Serve, credit-based transactions (arXiv 2603.20661)
differs  money is escrowed before work starts, stake unbonds with a delay, and no balance can fall below zero
"""

from market.rule import layout, rule

TRANCHES = 8
"""Releases of stake that an account can have under way; a further one joins the last."""

ACCOUNT = layout(
    credit_micro=int,  # free
    stake_micro=int,  # committed: draws work and can be slashed
    escrow_micro=int,  # set aside for work under way
    unbonding_micro=int,  # sum of the tranches
    tranches=int,
    tranche_micro=(int, TRANCHES),  # stake on its way to credit: can be slashed, draws nothing
    tranche_s=(float, TRANCHES),  # when it is free, ascending
)


@rule
def wealth(account):
    """All that an account owns (micro-credits): credit, stake, unbonding stake and escrow."""
    return account.credit_micro + account.stake_micro + account.unbonding_micro + account.escrow_micro


@rule
def open_account(account, credit, stake):
    """Empty an account, in place, and endow it with `credit` and `stake` (micro-credits, >= 0)."""
    assert credit >= 0 and stake >= 0
    account.credit_micro = credit
    account.stake_micro = stake
    account.escrow_micro = 0
    account.unbonding_micro = 0
    account.tranches = 0


@rule
def pay(accounts, payer, payee, amount):
    """Move credit from one account to another, or refuse.

    accounts      records with the fields of ACCOUNT, changed in place
    payer, payee  account index
    amount        micro-credits, >= 0
    returns       False, and nothing moved, when the payer's free credit is less than `amount`
    """
    assert amount >= 0
    if accounts[payer].credit_micro < amount:
        return False
    accounts[payer].credit_micro -= amount
    accounts[payee].credit_micro += amount
    return True


@rule
def escrow(account, amount):
    """Set `amount` (micro-credits, >= 0) aside for work that starts now; False when free credit is less."""
    assert amount >= 0
    if account.credit_micro < amount:
        return False
    account.credit_micro -= amount
    account.escrow_micro += amount
    return True


@rule
def settle(accounts, payer, payee, held, amount):
    """End an escrow: `amount` of the `held` micro-credits goes to the payee, the rest back to the payer.

    held     what `escrow` set aside for this work
    amount   0 <= amount <= held; 0 gives everything back
    """
    assert 0 <= amount <= held
    assert accounts[payer].escrow_micro >= held
    accounts[payer].escrow_micro -= held
    accounts[payer].credit_micro += held - amount
    accounts[payee].credit_micro += amount


@rule
def set_aside(account, amount, escrowed):
    """Escrow `amount` (micro-credits) where the terms ask for it; without escrow nothing moves and nobody is refused."""
    return escrow(account, amount) if escrowed == 1 else True


@rule
def give_back(accounts, payer, held, escrowed):
    """End the escrow of work that is not done; without escrow there is nothing to give back."""
    if escrowed == 1:
        settle(accounts, payer, payer, held, 0)


@rule
def pay_up(accounts, payer, payee, held, escrowed):
    """Pay `held` micro-credits for work that is done; returns what was paid: 0 when nothing is in escrow and the payer is broke.

    source   credit_ledger.py of the released code, whose transfers fail silently; only without escrow
    """
    if escrowed == 1:
        settle(accounts, payer, payee, held, held)
        return held
    return held if pay(accounts, payer, payee, held) else 0


@rule
def commit(account, amount):
    """Turn free credit into stake; False when free credit is less than `amount` (micro-credits, >= 0)."""
    assert amount >= 0
    if account.credit_micro < amount:
        return False
    account.credit_micro -= amount
    account.stake_micro += amount
    return True


@rule
def release(account, amount, free_s):
    """Begin to turn stake back into credit, free at `free_s` (s); False when the stake is less than `amount`."""
    assert amount >= 0
    if account.stake_micro < amount:
        return False
    if amount == 0:
        return True
    account.stake_micro -= amount
    account.unbonding_micro += amount
    place = account.tranches
    if place == TRANCHES:
        place -= 1
        account.tranche_micro[place] += amount
    else:
        account.tranche_micro[place] = amount
        account.tranches += 1
    account.tranche_s[place] = free_s
    return True


@rule
def mature(account, now):
    """Free the tranches whose time has come, by `now` (s)."""
    due = 0
    while due < account.tranches and account.tranche_s[due] <= now:
        account.unbonding_micro -= account.tranche_micro[due]
        account.credit_micro += account.tranche_micro[due]
        due += 1
    if due > 0:
        account.tranches -= due
        for place in range(account.tranches):
            account.tranche_micro[place] = account.tranche_micro[place + due]
            account.tranche_s[place] = account.tranche_s[place + due]


@rule
def steer_stake(account, target, most, free_s):
    """Move stake towards `target` by at most `most` (micro-credits): commit when below, release when above."""
    gap = target - account.stake_micro
    if gap > 0:
        commit(account, min(gap, most, account.credit_micro))
    elif gap < 0:
        release(account, min(-gap, most), free_s)


@rule
def seize(account, amount):
    """Take up to `amount` (micro-credits) of stake, then of unbonding stake, for a slash; returns what was taken.

    The caller credits the same sum elsewhere at once: between the two the total is short of it.
    """
    assert amount >= 0
    taken = min(amount, account.stake_micro)
    account.stake_micro -= taken
    place = account.tranches - 1
    while taken < amount and place >= 0:
        part = min(amount - taken, account.tranche_micro[place])
        account.tranche_micro[place] -= part
        account.unbonding_micro -= part
        taken += part
        place -= 1
    return taken


@rule
def slash(accounts, loser, winner, per_mille, bond):
    """Move thousandths of the loser's stake (unbonding included) to the winner's credit; returns micro-credits moved.

    bond   micro-credits that are taken at least, as far as the stake goes
    """
    bonded = accounts[loser].stake_micro + accounts[loser].unbonding_micro
    taken = seize(accounts[loser], max(bonded * per_mille // 1000, bond))
    accounts[winner].credit_micro += taken
    return taken
