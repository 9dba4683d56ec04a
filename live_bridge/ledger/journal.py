"""The journal: every order with what came of it, each entry sealed by the hash of the one before."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from live_bridge.identity import Identity, id_of, verify
from live_bridge.ledger.orders import Realm
from live_bridge.wire import pack
from market.terms import MICRO, Terms, to_record

RECEIPT = "wwwserve/1/ledger-receipt"
FOUNDING = "wwwserve/1/ledger-founding"
HEAD = "wwwserve/1/ledger-head"
MICROSECONDS = 1_000_000
NOWHERE = -1
"""Place of a receipt whose order is not in the journal: nothing has happened, and nothing is remembered."""
EMPTY = bytes(32)


class JournalError(ValueError):
    """A journal that this ledger cannot go on with; the text names key, value and way out."""


class Balances(NamedTuple):
    """An account, in micro-credits."""

    credit_micro: int
    stake_micro: int
    unbonding_micro: int
    escrow_micro: int


NOTHING = Balances(0, 0, 0, 0)


class Entry(NamedTuple):
    """One line of the journal."""

    place: int  # 0 is the founding
    at_us: int  # market microseconds since the founding; never runs back
    account: str  # whose order; empty for the ledger's own entries
    sequence: int
    order_id: bytes
    body: bytes  # the order as JSON
    accepted: bool
    reason: str  # why not, or what came of it
    after: Balances  # of the account
    digest: bytes  # seals this entry and, through it, all before


def sealed(before: bytes, entry: Entry) -> Entry:
    """Give an entry its digest; `before` is that of the entry before."""
    credit, stake, unbonding, escrow = entry.after
    words = (  # none of them can hold a blank
        f"{entry.place} {entry.at_us} {entry.account} {entry.sequence} {int(entry.accepted)} {entry.reason} "
        f"{credit} {stake} {unbonding} {escrow}"
    )
    digest = hashlib.sha256(pack(before, words, entry.order_id, entry.body)).digest()
    place, at_us, account, sequence, order_id, body, accepted, reason, after, _ = entry
    return Entry(place, at_us, account, sequence, order_id, body, accepted, reason, after, digest)


class Receipt(NamedTuple):
    """A ledger's word on what came of an order. The same order again has the same receipt, and no further effect."""

    order_id: str
    account: str
    place: int  # in the journal; NOWHERE when the order is not in it
    at_us: int
    accepted: bool
    reason: str  # `code` is a key of `book.REASONS`; empty when there is nothing to say
    credit_micro: int  # of the account, after the order
    stake_micro: int
    unbonding_micro: int
    escrow_micro: int
    digest: str  # of the entry: whoever has this receipt can prove that a journal was rewritten
    signature: str  # of the ledger, RECEIPT over `receipt_payload`; empty inside the ledger's own process

    @property
    def code(self) -> str:
        """The reason without its explanation."""
        return self.reason.partition(":")[0]


def receipt_of(entry: Entry) -> Receipt:
    """Say what came of an order that is in the journal."""
    head = entry.order_id.hex(), entry.account, entry.place, entry.at_us, entry.accepted, entry.reason
    return Receipt(*head, *entry.after, entry.digest.hex(), "")


def refusal(order_id: str, account: str, reason: str) -> Receipt:
    """Say that an order is not looked at, and is not in the journal."""
    return Receipt(order_id, account, NOWHERE, 0, False, reason, *NOTHING, "", "")


def receipt_payload(realm: Realm, receipt: Receipt) -> bytes:
    """Bytes that a ledger signs to stand by a receipt."""
    return pack(*realm, *(int(part) if isinstance(part, bool) else part for part in receipt[:-1]))


def sign_receipt(identity: Identity, network: str, receipt: Receipt) -> Receipt:
    """Sign as the ledger; the same receipt always gets the same signature."""
    said = receipt_payload(Realm(network, identity.id), receipt)
    return receipt._replace(signature=identity.sign(RECEIPT, said).hex())


def is_signed(receipt: Receipt, network: str, ledger: bytes) -> bool:
    """Whether the ledger with this public key stands by the receipt; whatever is malformed has no signature."""
    try:
        return verify(ledger, RECEIPT, receipt_payload(Realm(network, id_of(ledger)), receipt), bytes.fromhex(receipt.signature))
    except (TypeError, ValueError):
        return False


def view_payload(realm: Realm, head: Entry, at_us: int, accounts: Mapping[str, Balances]) -> bytes:
    """Bytes that a ledger signs to stand by the balances that it shows, domain HEAD."""
    flat = [part for name in sorted(accounts) for part in (name, *accounts[name])]
    return pack(*realm, head.place, head.digest, at_us, *flat)


class Founding(NamedTuple):
    """Entry 0: what a ledger was founded with. Its terms hold for as long as it lives, since its journal is replayed by them."""

    network: str
    public: str  # of the ledger
    founded_us: int  # microseconds since 1970, by the clock on the wall
    speed_micro: int  # millionths of a market second per second on the wall
    initial_credit_micro: int
    initial_stake_micro: int
    unbond_us: int
    duel_ttl_us: int
    judges: int
    slash_per_mille: int
    bond_micro: int
    minority_per_mille: int
    absent_per_mille: int
    signature: str

    @property
    def realm(self) -> Realm:
        """Where orders to this ledger count."""
        return Realm(self.network, id_of(bytes.fromhex(self.public)))

    @property
    def endowment_micro(self) -> int:
        """What is minted for each account that is opened: the only money there is."""
        return self.initial_credit_micro + self.initial_stake_micro

    def at_us(self, unix_s: float) -> int:
        """Market microseconds since the founding, never below 0."""
        return max(int((unix_s * MICROSECONDS - self.founded_us) * self.speed_micro / MICRO), 0)


def found(identity: Identity, network: str, terms: Terms, unix_s: float, speed: float) -> Founding:
    """Write and sign the founding of a ledger.

    speed   market seconds per second on the wall, > 0
    """
    record = to_record(terms, 1)[0]
    unsigned = Founding(
        network,
        identity.public.hex(),
        round(unix_s * MICROSECONDS),
        round(speed * MICRO),
        record.initial_credit_micro,
        record.initial_stake_micro,
        round(terms.unbond_s * MICROSECONDS),
        round(terms.duel_ttl_s * MICROSECONDS),
        terms.judges,
        terms.slash_per_mille,
        record.bond_micro,
        terms.minority_per_mille,
        terms.absent_per_mille,
        "",
    )
    return unsigned._replace(signature=identity.sign(FOUNDING, pack(*unsigned[:-1])).hex())


def founding_entry(founding: Founding) -> Entry:
    """Write a founding as entry 0."""
    body = orjson.dumps(founding._asdict())
    order_id = hashlib.sha256(pack(*founding[:-1])).digest()
    return sealed(EMPTY, Entry(0, 0, "", 0, order_id, body, True, "", NOTHING, EMPTY))


def read_founding(body: bytes) -> Founding:
    """Read entry 0.

    errors   JournalError when it is no founding, or its signature is not the ledger's
    """
    try:
        value = orjson.loads(body)
        founding = Founding(**value)
        good = verify(bytes.fromhex(founding.public), FOUNDING, pack(*founding[:-1]), bytes.fromhex(founding.signature))
    except (ValueError, TypeError, AttributeError) as error:
        raise JournalError(f"entry 0: is not the founding of a ledger ({error}); is this a journal of live_bridge?") from None
    if not good:
        raise JournalError("entry 0: the founding is not signed by the ledger that it names; the journal is forged")
    return founding


def same_ledger(found_there: Founding, wanted: Founding, place: str) -> None:
    """Refuse to go on with a ledger that was founded otherwise than the settings say.

    errors   JournalError naming every key that differs
    """
    free = {"founded_us", "signature"}
    there, here = found_there._asdict(), wanted._asdict()
    slips = [f"{key} {there[key]} (now {here[key]})" for key in there if key not in free and there[key] != here[key]]
    if slips:
        raise JournalError(f"{place}: was founded with {', '.join(slips)}; set them back, or found a ledger in another place")


def to_json(entry: Entry) -> dict[str, Any]:
    """Write an entry for the wire."""
    return {
        "place": entry.place,
        "at_us": entry.at_us,
        "account": entry.account,
        "sequence": entry.sequence,
        "order_id": entry.order_id.hex(),
        "body": entry.body.decode(),
        "accepted": entry.accepted,
        "reason": entry.reason,
        "after": list(entry.after),
        "digest": entry.digest.hex(),
    }


def from_json(value: Any) -> Entry:
    """Read an entry from the wire.

    errors   JournalError
    """
    try:
        body = value["body"].encode()
        order_id, digest = bytes.fromhex(value["order_id"]), bytes.fromhex(value["digest"])
        head = value["place"], value["at_us"], value["account"], value["sequence"]
        return Entry(*head, order_id, body, value["accepted"], value["reason"], Balances(*value["after"]), digest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise JournalError(f"journal: an entry cannot be read: {error!r}") from None
