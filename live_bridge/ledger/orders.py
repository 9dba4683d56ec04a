"""Orders: what the owner of an account asks of a ledger, as signed bytes and as JSON. Knows shapes, not balances.

An order is bound to its network, to one ledger and to a sequence number that its account uses once: it means nothing elsewhere,
and nothing a second time.
"""

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, NamedTuple

import orjson

from live_bridge.identity import ID_BYTES, Identity, id_of, verify
from live_bridge.peers.frames import Receipt as Claim
from live_bridge.peers.frames import is_signed
from live_bridge.peers.judge import SignedVote, is_cast
from live_bridge.wire import pack
from market.duel import ABSTAIN, FOR_A, FOR_B

ORDER = "wwwserve/1/order"
LARGEST = 2**63 - 1
LONGEST_TTL_US = 10**15
MOST_JUDGES = 3
ABSENT = "absent"
CAST = {"A": FOR_A, "B": FOR_B, "abstain": ABSTAIN}
VERDICTS = (*CAST, ABSENT)


class OrderError(ValueError):
    """An order that no ledger looks at; `code` is for programs, the text names key, rule and value.

    `order_id` (hexadecimal) is empty when the order has no shape that could be named.
    """

    def __init__(self, code: str, text: str, order_id: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.order_id = order_id


@dataclass(frozen=True, slots=True)
class Open:
    """Open the signer's account with the network's endowment. Its sequence is 0, so that it happens once."""


@dataclass(frozen=True, slots=True)
class Pay:
    """Move credit to another account."""

    payee: str
    amount_micro: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Set credit aside for work that starts now; it comes back when it is not settled in time."""

    hold_id: str  # used once in a ledger; random, so that nobody takes it first
    payee: str
    amount_micro: int
    ttl_us: int  # market microseconds
    purpose: str  # such as work, judge
    request: str  # tag of the request: both holds of a duel carry the same


@dataclass(frozen=True, slots=True)
class Delivery:
    """The payee's word on what it has delivered: the receipt at the end of its answer, as `live_bridge.peers.frames` signs it."""

    public: str
    tokens: int
    digest: str  # SHA-256 of the answer's bytes
    signature: str

    @staticmethod
    def of(public: bytes, receipt: Claim) -> "Delivery":
        """Take the receipt that came with an answer."""
        return Delivery(public.hex(), receipt.tokens, receipt.digest.hex(), receipt.signature.hex())


@dataclass(frozen=True, slots=True)
class Settle:
    """End a hold of the signer's: pay `amount_micro` of it, the rest comes back. 0 releases it."""

    hold_id: str
    amount_micro: int
    tokens: int  # as the signer has counted
    delivery: Delivery | None


@dataclass(frozen=True, slots=True)
class Stake:
    """Turn free credit into stake."""

    amount_micro: int


@dataclass(frozen=True, slots=True)
class Unstake:
    """Begin to turn stake back into credit."""

    amount_micro: int


@dataclass(frozen=True, slots=True)
class Vote:
    """A judge's vote, as `live_bridge.peers.judge` signs it; an absent judge has neither key nor signature here."""

    judge: str
    verdict: str
    public: str
    signature: str

    @staticmethod
    def of(signed: SignedVote) -> "Vote":
        """Take a vote that a judge has cast."""
        verdict = next(name for name, number in CAST.items() if number == signed.vote)
        return Vote(id_of(signed.public), verdict, signed.public.hex(), signed.signature.hex())

    @staticmethod
    def none(judge: str) -> "Vote":
        """Name a judge who was drawn and has not voted."""
        return Vote(judge, ABSENT, "", "")


@dataclass(frozen=True, slots=True)
class Duel:
    """Let the votes of judges move the stakes of two executors of one request of the signer's."""

    duel_id: str
    executor_a: str
    executor_b: str
    hold_a: str
    hold_b: str
    judges: tuple[Vote, ...]


Terms = Open | Pay | Hold | Settle | Stake | Unstake | Duel
KINDS: dict[str, type[Terms]] = {kind.__name__.lower(): kind for kind in (Open, Pay, Hold, Settle, Stake, Unstake, Duel)}
NAMES = {kind: name for name, kind in KINDS.items()}
_PARTS = {kind: tuple(field.name for field in fields(kind)) for kind in (*KINDS.values(), Delivery, Vote)}


@dataclass(frozen=True, slots=True)
class Order:
    """What stands on the wire and in the journal."""

    kind: str
    public: str  # of the account's owner, hexadecimal
    sequence: int  # used once by the account; 0 is for `open`
    terms: Terms
    signature: str


class Realm(NamedTuple):
    """Where an order counts: a network, and the id of its ledger."""

    network: str
    ledger: str


class Checked(NamedTuple):
    """An order whose shape and signatures are good."""

    order: Order
    account: str
    order_id: bytes  # 32: SHA-256 of what was signed
    body: bytes  # canonical JSON


def payload(order: Order, realm: Realm) -> bytes:
    """Bytes that the owner of an account signs, domain ORDER."""
    return pack(realm.network, realm.ledger, order.public, order.sequence, order.kind, *_FLAT[type(order.terms)](order.terms))


def order_id(order: Order, realm: Realm) -> bytes:
    """Name an order by what its owner has signed (32 bytes)."""
    return hashlib.sha256(payload(order, realm)).digest()


class Side(NamedTuple):
    """One executor of a duel: who, under which hold, and the digest of the answer it has signed for."""

    executor: str
    hold_id: str
    digest: str


def duel_name(network: str, origin: str, request: str, a: Side, b: Side) -> str:
    """Name a duel by all that is judged, so that a vote cast in one can be used in no other: 40 hexadecimal characters."""
    return hashlib.sha256(pack("duel", network, origin, request, *a, *b)).digest()[:ID_BYTES].hex()


class Author:
    """Writes and signs the orders of one account."""

    def __init__(self, identity: Identity, realm: Realm, sequence: int | None = None) -> None:
        """Begin after `sequence`; None: after the nanoseconds of the wall's clock, which an earlier process cannot have reached."""
        self.identity = identity
        self.realm = realm
        self._sequence = time.time_ns() if sequence is None else sequence

    def write(self, terms: Terms) -> Order:
        """Sign an order with the next sequence number."""
        if isinstance(terms, Open):
            return self._signed(terms, 0)
        self._sequence += 1
        return self._signed(terms, self._sequence)

    def _signed(self, terms: Terms, sequence: int) -> Order:
        order = Order(NAMES[type(terms)], self.identity.public.hex(), sequence, terms, "")
        signature = self.identity.sign(ORDER, payload(order, self.realm)).hex()
        return Order(order.kind, order.public, sequence, terms, signature)


def check(order: Order, realm: Realm) -> Checked:
    """Prove shape and signatures of an order; balances are the book's business.

    errors   OrderError malformed, signature, delivery_signature, vote_signature
    """
    name, account = prove(order, realm)
    return Checked(order, account, name, encode(order))


def prove(order: Order, realm: Realm) -> tuple[bytes, str]:
    """Prove shape and signatures of an order; returns its id (32 bytes) and the account that it is signed by.

    errors   OrderError malformed, signature, delivery_signature, vote_signature
    """
    shape(order)
    said = payload(order, realm)
    name = hashlib.sha256(said).digest()
    public = bytes.fromhex(order.public)
    account = id_of(public)
    if not verify(public, ORDER, said, bytes.fromhex(order.signature)):
        raise OrderError("signature", f"signature: is not {account}'s for this order, network and ledger; sign it anew", name.hex())
    if isinstance(order.terms, Settle) and order.terms.delivery is not None:
        _check_delivery(order.terms, order.terms.delivery, realm, name.hex())
    if isinstance(order.terms, Duel):
        for vote in order.terms.judges:
            _check_vote(vote, realm, order.terms, name.hex())
    return name, account


def _check_delivery(settle: Settle, delivery: Delivery, realm: Realm, name: str) -> None:
    receipt = Claim(
        settle.hold_id, delivery.tokens, bytes.fromhex(delivery.digest), bytes.fromhex(delivery.signature)
    )  # fmt: skip
    if not is_signed(receipt, realm.network, bytes.fromhex(delivery.public)):
        raise OrderError(
            "delivery_signature", f"delivery: is not signed for hold {settle.hold_id} and these tokens and digest", name
        )


def _check_vote(vote: Vote, realm: Realm, duel: Duel, name: str) -> None:
    if vote.verdict == ABSENT:
        if vote.public or vote.signature:
            raise OrderError("malformed", f"judges: {vote.judge} is absent, and can have neither key nor signature here", name)
        return
    public = bytes.fromhex(vote.public)
    signed = SignedVote(duel.duel_id, public, CAST[vote.verdict], bytes.fromhex(vote.signature))
    if id_of(public) != vote.judge or not is_cast(signed, realm.network, duel.executor_a, duel.executor_b):
        raise OrderError("vote_signature", f"judges: the vote of {vote.judge} in duel {duel.duel_id} is not signed by it", name)


def encode(order: Order) -> bytes:
    """Write an order as JSON: one form for one order."""
    return orjson.dumps(order)


def decode(value: Any) -> Order:
    """Make an order of parsed JSON: every key there, and no other. Values are proved by `check`.

    errors   OrderError malformed
    """
    _keys(value, ("kind", "public", "sequence", "terms", "signature"), "order")
    kind = value["kind"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise OrderError("malformed", f"kind: must be one of {', '.join(KINDS)}, got {str(kind)[:40]!r}")
    terms = value["terms"]
    _keys(terms, _PARTS[KINDS[kind]], kind)
    parts = dict(terms)
    if parts.get("delivery") is not None:
        _keys(parts["delivery"], _PARTS[Delivery], "delivery")
        parts["delivery"] = Delivery(**parts["delivery"])
    if "judges" in parts:
        parts["judges"] = _votes(parts["judges"])
    return Order(kind, value["public"], value["sequence"], KINDS[kind](**parts), value["signature"])


def _votes(value: Any) -> tuple[Vote, ...]:
    if not isinstance(value, list):
        raise OrderError("malformed", "judges: must be a list")
    for vote in value:
        _keys(vote, _PARTS[Vote], "judges")
    return tuple(Vote(**vote) for vote in value)


def _keys(value: Any, names: tuple[str, ...], place: str) -> None:
    if not isinstance(value, dict) or set(value) != set(names):
        found = ", ".join(sorted(map(str, value)))[:200] if isinstance(value, dict) else type(value).__name__
        raise OrderError("malformed", f"{place}: must hold {', '.join(names) or 'nothing'}, found {found or 'nothing'}")


def _flat_settle(terms: Settle) -> tuple[str | int, ...]:
    said = terms.delivery
    proof = (0,) if said is None else (1, said.public, said.tokens, said.digest, said.signature)
    return terms.hold_id, terms.amount_micro, terms.tokens, *proof


def _flat_duel(terms: Duel) -> tuple[str | int, ...]:
    votes = [part for vote in terms.judges for part in (vote.judge, vote.verdict, vote.public, vote.signature)]
    head = terms.duel_id, terms.executor_a, terms.executor_b, terms.hold_a, terms.hold_b
    return *head, len(terms.judges), *votes


_FLAT: dict[type, Callable[[Any], tuple[str | int, ...]]] = {
    Open: lambda _: (),
    Pay: lambda terms: (terms.payee, terms.amount_micro),
    Hold: attrgetter("hold_id", "payee", "amount_micro", "ttl_us", "purpose", "request"),
    Settle: _flat_settle,
    Stake: lambda terms: (terms.amount_micro,),
    Unstake: lambda terms: (terms.amount_micro,),
    Duel: _flat_duel,
}
"""What of an order's terms is signed: all, in one order."""


def _text(pattern: str, rule: str) -> tuple[Callable[[Any], bool], str]:
    whole = re.compile(pattern)
    return lambda value: isinstance(value, str) and whole.fullmatch(value) is not None, rule


def _whole(low: int, high: int = LARGEST) -> tuple[Callable[[Any], bool], str]:
    return lambda value: type(value) is int and low <= value <= high, f"a whole number in [{low}, {high}]"


_ID = _text("[0-9a-f]{40}", "40 hexadecimal characters")
_TAG = _text("[A-Za-z0-9._:-]{1,64}", "1 to 64 of A-Z a-z 0-9 . _ : -")
_KEY = _text("[0-9a-f]{64}", "64 hexadecimal characters")
_SIGNATURE = _text("[0-9a-f]{128}", "128 hexadecimal characters")
_NUMBER = _whole(0)
_SHAPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "public": _KEY, "signature": _SIGNATURE, "sequence": _NUMBER, "payee": _ID, "amount_micro": _whole(1), "hold_id": _TAG,
    "ttl_us": _whole(1, LONGEST_TTL_US), "purpose": _TAG, "request": _TAG, "tokens": _NUMBER, "digest": _KEY, "duel_id": _ID,
    "executor_a": _ID, "executor_b": _ID, "hold_a": _TAG, "hold_b": _TAG, "judge": _ID,
    "verdict": (lambda value: value in VERDICTS, f"one of {', '.join(VERDICTS)}"),
}  # fmt: skip
_OR_NOTHING = {
    (Settle, "amount_micro"): _NUMBER,
    (Vote, "public"): _text("([0-9a-f]{64})?", "64 hexadecimal characters or nothing"),
    (Vote, "signature"): _text("([0-9a-f]{128})?", "128 hexadecimal characters or nothing"),
}
_CHECKS = {
    kind: tuple((name, *_OR_NOTHING.get((kind, name), _SHAPES[name])) for name in names if name not in ("delivery", "judges"))
    for kind, names in _PARTS.items()
}
_HEAD = tuple((name, *_SHAPES[name]) for name in ("public", "sequence", "signature"))


def shape(order: Order) -> None:
    """Prove the shape of an order.

    errors   OrderError malformed
    """
    if KINDS.get(order.kind) is not type(order.terms):
        raise OrderError("malformed", f"kind: {order.kind!r} does not go with {type(order.terms).__name__}")
    _prove(order, _HEAD)
    if (order.sequence == 0) != (order.kind == "open"):
        raise OrderError("malformed", f"sequence: 0 is for open, and open has no other; got {order.sequence} for {order.kind}")
    _prove(order.terms, _CHECKS[type(order.terms)])
    if isinstance(order.terms, Settle) and order.terms.delivery is not None:
        _prove(order.terms.delivery, _CHECKS[Delivery])
    if isinstance(order.terms, Duel):
        if not 1 <= len(order.terms.judges) <= MOST_JUDGES:
            raise OrderError("malformed", f"judges: must be 1 to {MOST_JUDGES}, got {len(order.terms.judges)}")
        for vote in order.terms.judges:
            _prove(vote, _CHECKS[Vote])


def _prove(value: Any, checks: tuple[tuple[str, Callable[[Any], bool], str], ...]) -> None:
    for name, good, rule in checks:
        if not good(getattr(value, name)):
            raise OrderError("malformed", f"{name}: must be {rule}, got {str(getattr(value, name))[:80]!r}")
