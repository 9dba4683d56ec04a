"""A node's money: orders on its own account, written, signed and handed to the ledger; and what all accounts hold, as last read."""

import secrets
from collections.abc import Callable
from typing import NamedTuple

import orjson

from live_bridge.identity import Identity
from live_bridge.ledger.journal import Founding, Receipt, is_signed
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

MICRO_S = 1_000_000


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

    def __init__(self, ledger: Ledger, identity: Identity, ttl_s: float, told: Callable[[str, Receipt], None]) -> None:
        """Take the ledger.

        ttl_s   market s after which credit that was set aside comes back by itself
        told    hears of every order: its kind, and the receipt
        """
        self.ledger = ledger
        self._author = Author(identity, ledger.founding.realm)
        self._identity = identity
        self._ttl_us = round(ttl_s * MICRO_S)
        self._told = told

    async def open(self) -> Receipt:
        """Open the account, once in its life."""
        return await self._order(Open())

    async def hold(self, payee: str, amount_micro: int, purpose: str, request: str) -> Held | Receipt:
        """Set credit aside; the ledger's refusal where it does not."""
        hold_id = f"{self._identity.id[:12]}.{secrets.token_hex(8)}"
        order, receipt = await self._written(Hold(hold_id, payee, amount_micro, self._ttl_us, purpose, request))
        if not receipt.accepted:
            return receipt
        return Held(hold_id, payee, amount_micro, request, order, self.ledger.signed(receipt))

    async def settle(self, held: Held, amount_micro: int, tokens: int, delivery: Delivery | None) -> Receipt:
        """End a hold: pay so much of it, with the payee's word on what it has delivered."""
        return await self._order(Settle(held.hold_id, amount_micro, tokens, delivery))

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
        order, receipt = await self._written(terms)
        return order, self.ledger.signed(receipt)

    async def accounts(self) -> dict[str, AccountView]:
        """Read all accounts."""
        return await self.ledger.accounts()

    async def _order(self, terms: Terms) -> Receipt:
        return (await self._written(terms))[1]

    async def _written(self, terms: Terms) -> tuple[Order, Receipt]:
        order = self._author.write(terms)
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


def duel_won(proof: object, founding: Founding, me: str) -> bool | None:
    """Read how a duel ended for `me`, by the order and the ledger's receipt for it; None when it proves nothing."""
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
    return None if winner is None or me not in {terms.executor_a, terms.executor_b} else winner == me
