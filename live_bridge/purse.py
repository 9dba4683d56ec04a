"""A node's money: orders on its own account, written, signed and handed to the ledger; and what all accounts hold, as last read."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import orjson

from live_bridge.identity import Identity
from live_bridge.ledger.journal import Founding, Receipt, is_signed, refusal
from live_bridge.ledger.ledger import AccountView, Ledger
from live_bridge.ledger.orders import (
    Author,
    Delivery,
    Duel,
    Hold,
    Open,
    Order,
    OrderError,
    Settle,
    Side,
    Stake,
    Terms,
    Unstake,
    Vote,
    check,
    decode,
    duel_name,
    encode,
)
from live_bridge.ledger.store import StoreError

MICRO_S = 1_000_000
HOLD_PATIENCE_S = 2.0
"""Seconds on the wall that a request waits for its price to be set aside: it can be answered here, without."""
AGAIN_S = 1.0
"""Seconds on the wall until an order that must not be lost is sent again."""
LEDGER_AWAY = "ledger_away"
"""Reason of a refusal by nobody: the ledger has not answered."""


class Held(NamedTuple):
    """Credit set aside for one piece of work."""

    hold_id: str
    payee: str
    amount_micro: int
    request: str
    order: Order  # signed by the payer
    receipt: Receipt  # signed by the ledger: with the order, the payee's proof that the credit is there


class Paid(NamedTuple):
    """A settled piece of work, as a duel names it."""

    held: Held
    digest: str


class Purse:
    """Orders of one account."""

    def __init__(
        self,
        ledger: Ledger,
        identity: Identity,
        ttl_s: float,
        told: Callable[[str, Receipt | None], None],
        spawn: Callable[[Awaitable[object]], None],
    ) -> None:
        """Take the ledger.

        ttl_s   market s after which credit that was set aside comes back by itself
        told    hears of every order: its kind, and the receipt; None while the ledger does not answer
        spawn   lets something happen beside
        """
        self.ledger = ledger
        self._author = Author(identity, ledger.founding.realm)
        self._identity = identity
        self._ttl_us = round(ttl_s * MICRO_S)
        self._told = told
        self._spawn = spawn
        self._late: set[asyncio.Future[tuple[Order, Receipt]]] = set()

    async def open(self) -> Receipt:
        """Open the account, once in its life."""
        return await self._order(Open())

    async def hold(self, payee: str, amount_micro: int, purpose: str, request: str) -> Held | Receipt:
        """Set credit aside; the ledger's refusal where it does not.

        A ledger that is away refuses, too: once it was waited for, others are not kept waiting. Credit that it sets aside after
        all is given back.
        """
        if self._late:
            return refusal("", self._identity.id, LEDGER_AWAY)
        hold_id = f"{self._identity.id[:12]}.{secrets.token_hex(8)}"
        terms = Hold(hold_id, payee, amount_micro, self._ttl_us, purpose, request)
        asked = asyncio.ensure_future(self._written(terms))
        try:
            done, _ = await asyncio.wait((asked,), timeout=HOLD_PATIENCE_S)
        except asyncio.CancelledError:
            self._abandon(asked, terms)
            raise
        if not done:
            self._late.add(asked)
        if not done or isinstance(asked.exception(), StoreError):
            self._abandon(asked, terms)
            self._told("hold", None)
            return refusal("", self._identity.id, LEDGER_AWAY)
        order, receipt = asked.result()
        if not receipt.accepted:
            return receipt
        return Held(hold_id, payee, amount_micro, request, order, self.ledger.signed(receipt))

    def _abandon(self, asked: "asyncio.Future[tuple[Order, Receipt]]", terms: Hold) -> None:
        """Nobody waits for this hold any more: when it is made after all, its credit comes back at once."""

        async def give_back() -> None:
            try:
                made = (await asked)[1].accepted
            except StoreError:
                made = True  # which is not known
            finally:
                self._late.discard(asked)
            if made:
                await self._insisted(Settle(terms.hold_id, 0, 0, None))

        self._spawn(give_back())

    async def settle(self, held: Held, amount_micro: int, tokens: int, delivery: Delivery | None) -> Receipt:
        """End a hold: pay so much of it, with the payee's word on what it has delivered; sent until the ledger answers."""
        return (await self._insisted(Settle(held.hold_id, amount_micro, tokens, delivery)))[1]

    async def stake(self, amount_micro: int) -> Receipt:
        """Commit credit."""
        return await self._order(Stake(amount_micro))

    async def unstake(self, amount_micro: int) -> Receipt:
        """Begin to release stake."""
        return await self._order(Unstake(amount_micro))

    def name_duel(self, a: Paid, b: Paid) -> str:
        """Name the duel between two executors of one request: judges vote on this name."""
        return duel_name(self._author.realm.network, self._identity.id, a.held.request, _side(a), _side(b))

    async def duel(self, duel_id: str, a: Paid, b: Paid, votes: list[Vote]) -> tuple[Order, Receipt]:
        """Let the votes move the stakes; returns the order and the signed receipt, which prove to others what came of it."""
        terms = Duel(duel_id, a.held.payee, b.held.payee, a.held.hold_id, b.held.hold_id, tuple(votes))
        order, receipt = await self._insisted(terms)
        return order, self.ledger.signed(receipt)

    async def accounts(self) -> dict[str, AccountView]:
        """Read all accounts."""
        return await self.ledger.accounts()

    async def _order(self, terms: Terms) -> Receipt:
        return (await self._written(terms))[1]

    async def _written(self, terms: Terms) -> tuple[Order, Receipt]:
        return await self._submitted(self._author.write(terms))

    async def _insisted(self, terms: Terms) -> tuple[Order, Receipt]:
        """Send the same order until the ledger answers: it is done once, however often it comes."""
        order = self._author.write(terms)
        while True:
            try:
                return await self._submitted(order)
            except StoreError:
                self._told(order.kind, None)
                await asyncio.sleep(AGAIN_S)

    async def _submitted(self, order: Order) -> tuple[Order, Receipt]:
        receipt = await self.ledger.submit(order)
        self._told(order.kind, receipt)
        return order, receipt


def proof_of(held: Held) -> dict[str, object]:
    """Write what shows an executor that it will be paid: the payer's order and the ledger's receipt for it."""
    return {"order": orjson.loads(encode(held.order)), "receipt": list(held.receipt)}


def proven(proof: object, founding: Founding, payer: str, payee: str) -> Hold | str:
    """Read a proof of payment: the hold, or what is wrong with it.

    founding   of the ledger that both use
    """
    if not isinstance(proof, dict) or not isinstance(proof.get("receipt"), list) or len(proof["receipt"]) != len(Receipt._fields):
        return "no proof of payment"
    receipt = Receipt(*proof["receipt"])
    try:
        checked = check(decode(proof.get("order")), founding.realm)
    except OrderError as error:
        return str(error)
    terms = checked.order.terms
    if not isinstance(terms, Hold) or checked.account != payer or terms.payee != payee:
        return "the order is not a hold of the sender's for this node"
    if receipt.order_id != checked.order_id.hex() or receipt.accepted is not True:
        return "the receipt is not for an accepted hold"
    if not is_signed(receipt, founding.network, bytes.fromhex(founding.public)):
        return "the receipt is not signed by the ledger"
    return terms


def _side(paid: Paid) -> Side:
    return Side(paid.held.payee, paid.held.hold_id, paid.digest)


def duel_won(proof: object, founding: Founding, me: str) -> tuple[str, bool] | None:
    """Read how a duel ended for `me`, by the order and the ledger's receipt for it; None when it proves nothing.

    returns   name of the duel, and whether it was won
    """
    match proof:
        case {"order": order, "receipt": list(parts)} if len(parts) == len(Receipt._fields):
            receipt = Receipt(*parts)
        case _:
            return None
    try:
        checked = check(decode(order), founding.realm)
    except OrderError:
        return None
    terms = checked.order.terms
    if not isinstance(terms, Duel) or receipt.order_id != checked.order_id.hex() or receipt.accepted is not True:
        return None
    if not is_signed(receipt, founding.network, bytes.fromhex(founding.public)):
        return None
    winner = {"won_by_a": terms.executor_a, "won_by_b": terms.executor_b}.get(receipt.code)
    return None if winner is None or me not in {terms.executor_a, terms.executor_b} else (terms.duel_id, winner == me)
