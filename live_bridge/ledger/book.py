"""The book: applies checked orders to a sheet by the rules of market.ledger and market.duel. No clock, no file, no key.

It decides who may do what, and hands every move of money to a rule. A refused order moves nothing, and stays refused.
"""

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from live_bridge.identity import id_of
from live_bridge.ledger.journal import MICROSECONDS, NOTHING, Balances, Entry, Founding, Receipt, receipt_of, refusal, sealed
from live_bridge.ledger.orders import Checked, Duel, Hold, Open, Pay, Settle, Side, Stake, Unstake, Vote, duel_name
from live_bridge.ledger.sheet import EXPIRED, OPEN, SETTLED, Account, Escrow, Sheet, balances
from market import duel as duels
from market import ledger as rules
from market.rule import record_class

REASONS = {
    "malformed": "the order has not the shape of its kind",
    "signature": "the order is not signed by the owner of the account, for this network and ledger",
    "delivery_signature": "the delivery is not signed for this hold, these tokens and this digest",
    "vote_signature": "a vote is not signed by its judge for this duel",
    "no_account": "the signer has no account; open one first",
    "sequence_used": "the account has used this sequence number for another order",
    "to_itself": "payer and payee are the same account",
    "unknown_payee": "the payee has no account",
    "insufficient_credit": "the account's free credit is less",
    "insufficient_stake": "the account's stake is less",
    "hold_exists": "this hold_id was used before",
    "no_such_hold": "there is no hold of this id",
    "not_the_origin": "the hold is another account's: only who has set credit aside can settle it",
    "hold_settled": "the hold was settled before",
    "hold_expired": "the hold's time is over, and its credit is back",
    "above_held": "more than was set aside",
    "not_the_payee": "the delivery is signed by another than the hold's payee",
    "no_proof_of_delivery": "all that is held needs the payee's signature; a part without it needs tokens that were counted",
    "duel_executors": "the executors are one account, or the account itself",
    "duel_holds": "both executors need a settled hold with proof of delivery, by this account, for one request, and in no duel yet",
    "duel_name": "duel_id does not name these executors, holds and answers",
    "duel_late": "the time in which the duel could be settled is over",
    "duel_judges": "judges must be distinct, neither origin nor executor, with accounts, and no more than the terms say",
    "disputed": "(accepted) the payee claims more tokens than were counted and paid",
    "won_by_a": "(accepted) stakes moved to executor A and the majority",
    "won_by_b": "(accepted) stakes moved to executor B and the majority",
    "tie": "(accepted) no majority: no stake moved",
}
"""What a receipt's reason means."""
_Contest = record_class(duels.DUEL)
_VOTES = {"A": duels.FOR_A, "B": duels.FOR_B, "abstain": duels.ABSTAIN, "absent": duels.PENDING}
_RESULTS = {duels.FOR_A: "won_by_a", duels.FOR_B: "won_by_b", duels.NONE: "tie"}
_ACCEPTED = frozenset({"", "disputed", *_RESULTS.values()})


class Book:
    """Applies orders for one ledger."""

    def __init__(self, founding: Founding) -> None:
        self.founding = founding
        self._apply: dict[type, Callable[[Sheet, str, Any], str]] = {
            Open: self._open, Pay: self._pay, Hold: self._hold, Settle: self._settle,
            Stake: self._stake, Unstake: self._unstake, Duel: self._duel,
        }  # fmt: skip

    def apply(self, sheet: Sheet, orders: Sequence[Checked]) -> list[Receipt]:
        """Apply orders one after the other, and expire what is due before; returns a receipt for each."""
        self.expire(sheet)
        return [self._one(sheet, checked) for checked in orders]

    def expire(self, sheet: Sheet) -> None:
        """Give back what was held for work that never came, as an entry of the ledger's own."""
        if not sheet.due:
            return
        for key in sorted(sheet.due):
            hold = sheet.holds[key]
            rules.settle(sheet.money, hold.origin, hold.payee, hold.held_micro, 0)
            _end(sheet, hold._replace(state=EXPIRED, ended_us=sheet.at_us))
            sheet.touched_accounts.add(hold.origin)
        body = orjson.dumps({"kind": "expire", "holds": sorted(sheet.due)})
        sheet.due = []
        self._append(sheet, Entry(sheet.place + 1, sheet.at_us, "", sheet.place + 1, b"", body, True, "", NOTHING, b""))

    def _one(self, sheet: Sheet, checked: Checked) -> Receipt:
        account, order = checked.account, checked.order
        earlier = sheet.used.get((account, order.sequence))
        if earlier is not None:
            if earlier.order_id == checked.order_id:
                return receipt_of(earlier)
            return refusal(checked.order_id.hex(), account, "sequence_used")
        if account not in sheet.money and order.kind != "open":
            return refusal(checked.order_id.hex(), account, "no_account")
        if account in sheet.money:  # whatever comes of the order, so that balances follow from the journal, not from its groups
            _mature(sheet, account)
        sheet.touched_accounts.add(account)
        reason = self._apply[type(order.terms)](sheet, account, order.terms)
        accepted = reason in _ACCEPTED
        after = balances(sheet.money[account])
        return receipt_of(self._append(sheet, _entry(sheet, checked, accepted, reason, after)))

    def _append(self, sheet: Sheet, unsealed: Entry) -> Entry:
        entry = sealed(sheet.digest, unsealed)
        sheet.place, sheet.digest = entry.place, entry.digest
        sheet.used[entry.account, entry.sequence] = entry
        sheet.entries.append(entry)
        return entry

    def _open(self, sheet: Sheet, account: str, terms: Open) -> str:
        assert account not in sheet.money, "an account's opening has one order id, so that a second one is a replay"
        sheet.money[account] = Account()
        rules.open_account(sheet.money[account], self.founding.initial_credit_micro, self.founding.initial_stake_micro)
        return ""

    def _pay(self, sheet: Sheet, account: str, terms: Pay) -> str:
        reason = _payee(sheet, account, terms.payee)
        if reason:
            return reason
        if not rules.pay(sheet.money, account, terms.payee, terms.amount_micro):
            return "insufficient_credit"
        sheet.touched_accounts.add(terms.payee)
        return ""

    def _hold(self, sheet: Sheet, account: str, terms: Hold) -> str:
        if terms.hold_id in sheet.holds:
            return "hold_exists"
        reason = _payee(sheet, account, terms.payee)
        if reason:
            return reason
        if not rules.escrow(sheet.money[account], terms.amount_micro):
            return "insufficient_credit"
        expires_us = sheet.at_us + terms.ttl_us
        head = account, terms.hold_id, terms.payee, terms.amount_micro, expires_us, terms.purpose, terms.request
        _end(sheet, Escrow(*head, state=OPEN, paid_micro=0, tokens=0, digest="", ended_us=0, duelled=0))
        return ""

    def _settle(self, sheet: Sheet, account: str, terms: Settle) -> str:
        hold = sheet.holds.get(terms.hold_id)
        reason = _unpayable(hold, account, terms)
        if reason or hold is None:
            return reason
        rules.settle(sheet.money, account, hold.payee, hold.held_micro, terms.amount_micro)
        delivery = terms.delivery
        digest = delivery.digest if delivery is not None and terms.amount_micro > 0 else ""
        ended = hold._replace(
            state=SETTLED, paid_micro=terms.amount_micro, tokens=terms.tokens, digest=digest, ended_us=sheet.at_us
        )  # fmt: skip
        _end(sheet, ended)
        sheet.touched_accounts.add(hold.payee)
        return "disputed" if delivery is not None and delivery.tokens > terms.tokens else ""

    def _stake(self, sheet: Sheet, account: str, terms: Stake) -> str:
        return "" if rules.commit(sheet.money[account], terms.amount_micro) else "insufficient_credit"

    def _unstake(self, sheet: Sheet, account: str, terms: Unstake) -> str:
        free_s = (sheet.at_us + self.founding.unbond_us) / MICROSECONDS
        return "" if rules.release(sheet.money[account], terms.amount_micro, free_s) else "insufficient_stake"

    def _duel(self, sheet: Sheet, account: str, terms: Duel) -> str:
        reason = self._unfair(sheet, account, terms)
        if reason:
            return reason
        names = [terms.executor_a, terms.executor_b, *(vote.judge for vote in terms.judges)]
        for name in names:
            _mature(sheet, name)
        contest: Any = _Contest()
        contest.executor_a, contest.executor_b, contest.judges = 0, 1, len(terms.judges)
        for seat, vote in enumerate(terms.judges):
            contest.judge[seat], contest.vote[seat] = 2 + seat, _VOTES[vote.verdict]
        founding = self.founding
        costs = founding.slash_per_mille, founding.bond_micro, founding.minority_per_mille, founding.absent_per_mille
        result = duels.settle(contest, [sheet.money[name] for name in names], 0, *costs)
        for hold_id in (terms.hold_a, terms.hold_b):
            _end(sheet, sheet.holds[hold_id]._replace(duelled=1))
        sheet.touched_accounts |= set(names)
        return _RESULTS[result]

    def _unfair(self, sheet: Sheet, account: str, terms: Duel) -> str:
        """Say why a duel does not count, or nothing.

        Without two proven deliveries, and a name made of all that is judged, an origin could slash whom it likes.
        """
        a, b = sheet.holds.get(terms.hold_a), sheet.holds.get(terms.hold_b)
        if terms.executor_a == terms.executor_b or account in {terms.executor_a, terms.executor_b}:
            return "duel_executors"
        if a is None or b is None or not _proven(a, account, terms.executor_a) or not _proven(b, account, terms.executor_b):
            return "duel_holds"
        if a.request != b.request:
            return "duel_holds"
        sides = Side(a.payee, a.hold_id, a.digest), Side(b.payee, b.hold_id, b.digest)
        if terms.duel_id != duel_name(self.founding.network, account, a.request, *sides):
            return "duel_name"
        if sheet.at_us > max(a.ended_us, b.ended_us) + self.founding.duel_ttl_us:
            return "duel_late"
        return "" if self._fit(sheet, terms.judges, {account, a.payee, b.payee}) else "duel_judges"

    def _fit(self, sheet: Sheet, judges: tuple[Vote, ...], parties: set[str]) -> bool:
        names = {vote.judge for vote in judges}
        known = all(name in sheet.money for name in names)
        return known and len(names) == len(judges) <= self.founding.judges and not names & parties


def _entry(sheet: Sheet, checked: Checked, accepted: bool, reason: str, after: Balances) -> Entry:
    sequence = checked.order.sequence
    return Entry(
        sheet.place + 1, sheet.at_us, checked.account, sequence, checked.order_id, checked.body, accepted, reason, after, b""
    )  # fmt: skip


def _mature(sheet: Sheet, account: str) -> None:
    rules.mature(sheet.money[account], sheet.at_us / MICROSECONDS)


def _payee(sheet: Sheet, account: str, payee: str) -> str:
    if payee == account:
        return "to_itself"
    return "" if payee in sheet.money else "unknown_payee"


def _unpayable(hold: Escrow | None, account: str, terms: Settle) -> str:
    if hold is None:
        return "no_such_hold"
    if hold.origin != account:
        return "not_the_origin"
    if hold.state != OPEN:
        return "hold_settled" if hold.state == SETTLED else "hold_expired"
    if terms.amount_micro > hold.held_micro:
        return "above_held"
    if terms.delivery is not None and id_of(bytes.fromhex(terms.delivery.public)) != hold.payee:
        return "not_the_payee"
    counted = terms.delivery is not None or terms.amount_micro < hold.held_micro
    if terms.amount_micro > 0 and not (counted and terms.tokens > 0):
        return "no_proof_of_delivery"
    return ""


def _proven(hold: Escrow, origin: str, executor: str) -> bool:
    parties = hold.origin == origin and hold.payee == executor
    return parties and hold.state == SETTLED and hold.digest != "" and hold.duelled == 0


def _end(sheet: Sheet, hold: Escrow) -> None:
    sheet.holds[hold.hold_id] = hold
    sheet.touched_holds.add(hold.hold_id)
