"""Signed messages between nodes: who says what to whom, in which network, until when, and once only.

The signature covers method, path and body; other headers of a message are not signed, and mean nothing. Replies are signed too.
Knows no sockets: a request is whatever has a method, a path, a query, headers and a body.
"""

import hashlib
import os
from collections.abc import Callable
from typing import NamedTuple, Protocol

import orjson

from live_bridge.http.message import Headers
from live_bridge.identity import ID_BYTES, KEY_BYTES, SIGNATURE_BYTES, Identity, id_of, verify
from live_bridge.peers.replays import Full, Replays, Reply
from live_bridge.wire import pack

DOMAIN = "wwwserve/1/message"
REPLY_DOMAIN = "wwwserve/1/reply"
FROM = b"market-from"  # public key, hex
TO = b"market-to"  # id of the receiver
NETWORK = b"market-network"
NONCE = b"market-nonce"  # hex
EXPIRES = b"market-expires"  # unix ms
SIGNATURE = b"market-signature"  # hex
STAMP = frozenset({FROM, TO, NETWORK, NONCE, EXPIRES, SIGNATURE})
REPLY_STAMP = frozenset({FROM, NONCE, SIGNATURE})
NONCE_BYTES = 16

STATUS = {
    "unsigned": 401,
    "form": 400,
    "query": 400,
    "receiver": 403,
    "network": 403,
    "own": 403,
    "expired": 401,
    "early": 401,
    "signature": 401,
    "duplicate": 409,
    "nonce": 409,
    "full": 503,
}
"""Why a message is refused -> HTTP status. `duplicate` with a kept reply gets that reply instead."""
MEANING = {
    "unsigned": "a message of a peer needs all of " + ", ".join(sorted(name.decode() for name in STAMP)),
    "form": "a market- header stands twice or is not in its one form",
    "query": "a signed message has no query: it would not be covered by the signature",
    "receiver": "the message is for another node",
    "network": "the message is for another network",
    "own": "the message bears this node's own name",
    "expired": "the message is void: its market-expires lies in the past; compare the clocks",
    "early": "market-expires lies too far in the future; compare the clocks",
    "signature": "the signature does not fit the message",
    "duplicate": "the message was taken before; its first reply is not at hand",
    "nonce": "the nonce was used for another message",
    "full": "too many messages of late; try again",
}
REPLY_REASONS = ("reply_unsigned", "reply_form", "reply_stranger", "reply_other", "reply_signature")
"""Why a reply is not believed."""
REASONS = (*STATUS, *REPLY_REASONS)
"""All that a door counts, for metrics that are bound beforehand."""


class Asked(Protocol):
    """What a door reads of a request."""

    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def path(self) -> str: ...  # noqa: D102
    @property
    def query(self) -> str: ...  # noqa: D102
    @property
    def headers(self) -> Headers: ...  # noqa: D102
    @property
    def body(self) -> bytes: ...  # noqa: D102


class Message(NamedTuple):
    """A message that its sender has signed for this node, new, in time."""

    sender: str  # id
    public: bytes
    nonce: bytes
    body: bytes
    key: bytes


class Refusal(NamedTuple):
    """What to send instead of acting: an error, or the first reply to a message that comes again."""

    reason: str
    status: int
    headers: Headers
    body: bytes


class _Stamp(NamedTuple):
    public: bytes
    to: bytes
    network: bytes
    nonce: bytes
    expires_ms: int
    signature: bytes


def seal(identity: Identity, network: str, to: str, method: str, path: str, body: bytes, unix_s: float, ttl_s: float) -> Headers:
    """Sign a message; returns the headers to send with it.

    to       id of the receiver
    path     without a query
    unix_s   seconds since 1970
    ttl_s    s on the wall after which the message is void
    """
    nonce = os.urandom(NONCE_BYTES)
    expires_ms = int((unix_s + ttl_s) * 1000)
    signature = identity.sign(DOMAIN, _payload(network, to, identity.id, method, path, nonce, expires_ms, body))
    return [
        (FROM, identity.public.hex().encode()),
        (TO, to.encode()),
        (NETWORK, network.encode()),
        (NONCE, nonce.hex().encode()),
        (EXPIRES, str(expires_ms).encode()),
        (SIGNATURE, signature.hex().encode()),
    ]


class Door:
    """Where messages of peers come in, and replies of peers that were asked."""

    def __init__(self, identity: Identity, network: str, ttl_s: float, replays: Replays, count: Callable[[str], None]) -> None:
        """Take one's own key and the memory of what was taken already.

        ttl_s     s on the wall for which a sender's message is valid; clocks may differ by as much, so one can be valid here for
                  twice that: the span of `replays`
        count     told the reason (REASONS) of each refusal
        """
        self._identity = identity
        self._me = identity.id.encode()
        self._name = network
        self._network = network.encode()
        self._ttl_ms = int(ttl_s * 1000)
        self._replays = replays
        self._count = count

    def seal(self, to: str, method: str, path: str, body: bytes, unix_s: float) -> Headers:
        """Sign a message to the node of id `to`."""
        return seal(self._identity, self._name, to, method, path, body, unix_s, self._ttl_ms / 1000)

    def open(self, request: Asked, unix_s: float) -> Message | Refusal:
        """Take a message once, or say what to answer instead.

        unix_s   seconds since 1970; one that runs back revives nothing
        errors   OSError when the message cannot be written down: it must have no effect then
        """
        stamp = _stamp(request.headers)
        if isinstance(stamp, str):
            return self._refuse(stamp)
        now_s = max(unix_s, self._replays.floor_s)
        reason = self._stale(stamp, request.path, request.query, now_s)
        if reason:
            return self._refuse(reason)
        sender = id_of(stamp.public)
        if sender == self._identity.id:
            return self._refuse("own")
        payload = _payload(
            self._name, self._identity.id, sender, request.method, request.path, stamp.nonce, stamp.expires_ms, request.body
        )
        digest = hashlib.sha256(payload + stamp.signature).digest()
        sender_bytes = bytes.fromhex(sender)
        key = sender_bytes + stamp.nonce
        known = self._replays.find(key)
        if known is not None and known.digest == digest:
            return self._again(known.reply)
        if not verify(stamp.public, DOMAIN, payload, stamp.signature):
            return self._refuse("signature")
        if known is not None:
            return self._refuse("nonce")
        try:
            self._replays.add(sender_bytes, key, digest, now_s)
        except Full:
            return self._refuse("full")
        return Message(sender, stamp.public, stamp.nonce, request.body, key)

    def reply(self, message: Message, status: int, body: bytes) -> Headers:
        """Sign the reply to a message and keep it for a duplicate; returns the headers to send with it."""
        payload = _reply_payload(self._name, self._identity.id, message.sender, message.nonce, status, body)
        headers = [
            (b"content-type", b"application/json"),
            (FROM, self._identity.public.hex().encode()),
            (NONCE, message.nonce.hex().encode()),
            (SIGNATURE, self._identity.sign(REPLY_DOMAIN, payload).hex().encode()),
        ]
        self._replays.keep(message.key, Reply(status, headers, body))
        return headers

    def believes(self, sent: Headers, to: str, status: int, headers: Headers, body: bytes) -> bool:
        """Whether a reply is by the node that was asked, to this very message; the reason why not is counted.

        sent   headers of the message, from `seal`
        to     id of the node that was asked
        """
        reason = self._doubt(dict(sent)[NONCE], to, status, headers, body)
        if reason:
            self._count(reason)
        return not reason

    def _doubt(self, asked: bytes, to: str, status: int, headers: Headers, body: bytes) -> str:
        found = _collect(headers, REPLY_STAMP)
        if isinstance(found, str):
            return f"reply_{found}"
        public, nonce = _unhex(found[FROM], KEY_BYTES), _unhex(found[NONCE], NONCE_BYTES)
        signature = _unhex(found[SIGNATURE], SIGNATURE_BYTES)
        if public is None or nonce is None or signature is None:
            return "reply_form"
        if id_of(public) != to:
            return "reply_stranger"
        if found[NONCE] != asked:
            return "reply_other"
        payload = _reply_payload(self._name, to, self._identity.id, nonce, status, body)
        return "" if verify(public, REPLY_DOMAIN, payload, signature) else "reply_signature"

    def _stale(self, stamp: _Stamp, path: str, query: str, now_s: float) -> str:
        if query or not path.isascii():
            return "query" if query else "form"
        if stamp.to != self._me:
            return "receiver"
        if stamp.network != self._network:
            return "network"
        left_ms = stamp.expires_ms - now_s * 1000
        if left_ms <= 0:
            return "expired"
        return "early" if left_ms > 2 * self._ttl_ms else ""

    def _again(self, first: Reply | None) -> Refusal:
        if first is None:
            return self._refuse("duplicate")
        self._count("duplicate")
        return Refusal("duplicate", *first)

    def _refuse(self, reason: str) -> Refusal:
        self._count(reason)
        body = orjson.dumps({"error": {"message": MEANING[reason], "type": "peer_message", "code": reason}})
        return Refusal(reason, STATUS[reason], [(b"content-type", b"application/json")], body)


def _payload(network: str, to: str, sender: str, method: str, path: str, nonce: bytes, expires_ms: int, body: bytes) -> bytes:
    return pack(network, to, sender, method, path, nonce, expires_ms, hashlib.sha256(body).digest())


def _reply_payload(network: str, sender: str, to: str, nonce: bytes, status: int, body: bytes) -> bytes:
    return pack(network, sender, to, nonce, status, hashlib.sha256(body).digest())


def _collect(headers: Headers, wanted: frozenset[bytes]) -> dict[bytes, bytes] | str:
    """Gather headers that must each stand exactly once, or say what is wrong."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in wanted:
            if name in found:
                return "form"
            found[name] = value
    return found if len(found) == len(wanted) else "unsigned"


def _stamp(headers: Headers) -> _Stamp | str:
    found = _collect(headers, STAMP)
    if isinstance(found, str):
        return found
    public, nonce = _unhex(found[FROM], KEY_BYTES), _unhex(found[NONCE], NONCE_BYTES)
    signature, expires = _unhex(found[SIGNATURE], SIGNATURE_BYTES), found[EXPIRES]
    if public is None or nonce is None or signature is None or len(found[TO]) != 2 * ID_BYTES:
        return "form"
    if not expires.isdigit() or len(expires) > 15 or expires.startswith(b"0"):
        return "form"
    return _Stamp(public, found[TO], found[NETWORK], nonce, int(expires), signature)


def _unhex(value: bytes, size: int) -> bytes | None:
    """Read lower-case hexadecimal of `size` bytes: a message has one form only, or a changed letter would pass."""
    try:
        raw = bytes.fromhex(value.decode("ascii"))
    except ValueError:
        return None
    return raw if len(raw) == size and raw.hex().encode() == value else None
