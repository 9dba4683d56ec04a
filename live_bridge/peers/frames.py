"""How an executor's answer travels to its origin: head, bytes as they come, and a signed receipt over all of them at the end.

A frame is a kind (1 byte), a length (4 bytes, big-endian) and that many bytes. Bytes of the answer are given on as they arrive,
without waiting for the rest of their frame.
"""

import hashlib
import re
from struct import Struct
from typing import NamedTuple

import orjson

from live_bridge.http.message import Headers
from live_bridge.identity import Identity, verify
from live_bridge.wire import json_of, pack

RECEIPT_DOMAIN = "wwwserve/1/receipt"
HEAD, DATA, END, ERROR = 1, 2, 3, 4
PREFIX = Struct(">BI")
LONGEST = 65536
"""Bytes of a frame that is not DATA."""
MOST_TOKENS = (1 << 53) - 1
DIGEST = re.compile(r"[0-9a-f]{64}")
SIGNED = re.compile(r"[0-9a-f]{128}")
HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,256}")
HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]{0,8192}")
REASONS = ("type", "order", "oversize", "form", "truncated", "digest", "receipt")
"""What can be wrong with an answer."""


class FrameError(ValueError):
    """An answer is not what its executor has signed; `reason` is one of REASONS."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"answer of a peer: {text}")
        self.reason = reason


class Head(NamedTuple):
    """The beginning of an answer."""

    status: int
    headers: Headers


class Receipt(NamedTuple):
    """What an executor claims to have delivered, with its signature; hold ids are random, so it counts for one piece of work."""

    hold_id: str
    tokens: int
    digest: bytes  # SHA-256 of all bytes of the answer
    signature: bytes


class Failed(NamedTuple):
    """The executor could not go on."""

    code: str
    tokens: int  # that it claims to have delivered


Frame = Head | bytes | Receipt | Failed
"""bytes: a piece of the answer."""


def receipt_bytes(network: str, hold_id: str, tokens: int, digest: bytes) -> bytes:
    """Write what a receipt signs, in domain RECEIPT_DOMAIN."""
    return pack(network, hold_id, tokens, digest)


def is_signed(receipt: Receipt, network: str, public: bytes) -> bool:
    """Whether the owner of `public` has signed a receipt."""
    signed = receipt_bytes(network, receipt.hold_id, receipt.tokens, receipt.digest)
    return verify(public, RECEIPT_DOMAIN, signed, receipt.signature)


def payable(claimed: int, counted: int, tolerance: int) -> tuple[int, bool]:
    """Say for how many tokens to pay, and whether the claim is disputed.

    claimed     by the executor's receipt or error
    counted     by the origin in what has arrived
    tolerance   tokens by which the two may differ in good faith: tokenisers merge differently
    """
    disputed = claimed > counted + tolerance
    return (counted if disputed else claimed), disputed


class Encoder:
    """Writes one answer, on the executor's side."""

    def __init__(self, identity: Identity, network: str, hold_id: str) -> None:
        """Begin the answer that is paid from a hold."""
        self._identity = identity
        self._network = network
        self._hold_id = hold_id
        self._digest = hashlib.sha256()

    def head(self, status: int, headers: Headers) -> bytes:
        """Write status and headers; first."""
        pairs = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
        return _frame(HEAD, orjson.dumps((status, pairs)))

    def data(self, piece: bytes) -> bytes:
        """Write a piece of the answer."""
        self._digest.update(piece)
        return PREFIX.pack(DATA, len(piece)) + piece

    def end(self, tokens: int) -> bytes:
        """Write the receipt; last."""
        digest = self._digest.digest()
        signature = self._identity.sign(RECEIPT_DOMAIN, receipt_bytes(self._network, self._hold_id, tokens, digest))
        return _frame(END, orjson.dumps((self._hold_id, tokens, digest.hex(), signature.hex())))

    def error(self, code: str, tokens: int) -> bytes:
        """Say that there is no more; last."""
        return _frame(ERROR, orjson.dumps((code, tokens)))


class Decoder:
    """Reads one answer, on the origin's side, in whatever pieces it arrives."""

    def __init__(self, network: str, hold_id: str, executor: bytes, most_bytes: int) -> None:
        """Expect the answer that is paid from a hold.

        executor     public key of the node that was asked
        most_bytes   of the whole answer
        """
        self._network = network
        self._hold_id = hold_id
        self._executor = executor
        self._room = most_bytes
        self._digest = hashlib.sha256()
        self._begun = False
        self._ended = False
        self._left = 0  # bytes of a DATA frame that are still to come
        self._kept = bytearray()  # a prefix or a small frame that is not whole yet

    def feed(self, chunk: bytes) -> list[Frame]:
        """Read on; returns what has become known by it.

        errors   FrameError: nothing more can be believed
        """
        out: list[Frame] = []
        at, size = 0, len(chunk)
        while at < size:
            if self._ended:
                raise FrameError("order", "goes on after its end")
            if self._left:
                piece = chunk[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                self._digest.update(piece)
                out.append(piece)
            else:
                at = self._gather(chunk, at, out)
        return out

    def finish(self) -> None:
        """Note that the connection has ended.

        errors   FrameError when the answer has not
        """
        if not self._ended:
            raise FrameError("truncated", "breaks off without a receipt")

    def _gather(self, chunk: bytes, at: int, out: list[Frame]) -> int:
        """Read a prefix, and a small frame behind it, from `at`; returns how far that went."""
        kept = self._kept
        if not kept and len(chunk) - at >= PREFIX.size:
            kind, length = _prefix(chunk, at)
            if kind == DATA:
                self._open_data(length)
                return at + PREFIX.size
        if len(kept) < PREFIX.size:
            want = PREFIX.size - len(kept)
            kept += chunk[at : at + want]
            at = min(at + want, len(chunk))
        if len(kept) < PREFIX.size:
            return at
        kind, length = _prefix(kept)
        if kind == DATA:
            self._kept = bytearray()
            self._open_data(length)
            return at
        if not HEAD <= kind <= ERROR:
            raise FrameError("type", f"has a frame of kind {kind}")
        if length > LONGEST:
            raise FrameError("oversize", f"has a frame of {length} bytes; at most {LONGEST} unless it is DATA")
        want = PREFIX.size + length - len(kept)
        kept += chunk[at : at + want]
        if len(kept) == PREFIX.size + length:
            self._kept = bytearray()
            out.append(self._read(kind, bytes(kept[PREFIX.size :])))
        return min(at + want, len(chunk))

    def _open_data(self, length: int) -> None:
        if not self._begun:
            raise FrameError("order", "begins without its head")
        self._room -= length
        if self._room < 0:
            raise FrameError("oversize", "is longer than this node accepts")
        self._left = length

    def _read(self, kind: int, content: bytes) -> Frame:
        if self._begun == (kind == HEAD) and kind != ERROR:
            raise FrameError("order", "has not one head, at its beginning")
        self._begun = True
        self._ended = kind != HEAD
        fields = json_of(content)
        if kind == HEAD:
            return _head(fields)
        if kind == ERROR:
            return _failed(fields)
        return self._receipt(fields)

    def _receipt(self, fields: object) -> Receipt:
        receipt = _receipt(fields)
        if receipt.hold_id != self._hold_id or not is_signed(receipt, self._network, self._executor):
            raise FrameError("receipt", "has a receipt that the executor has not signed for this work")
        if receipt.digest != self._digest.digest():
            raise FrameError("digest", "has a receipt for other bytes than those that arrived")
        return receipt


def _prefix(of: bytes | bytearray, at: int = 0) -> tuple[int, int]:
    kind, length = PREFIX.unpack_from(of, at)
    return kind, length


def _frame(kind: int, content: bytes) -> bytes:
    return PREFIX.pack(kind, len(content)) + content


def _head(fields: object) -> Head:
    match fields:
        case [int(status), list(pairs)] if 100 <= status <= 599 and all(_is_pair(pair) for pair in pairs):
            return Head(status, [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs])
    raise FrameError("form", "has a head that is not [status, [[name, value], ...]]")


def _is_pair(pair: object) -> bool:
    """Whether a header can be written as it is: nothing that would end its line."""
    match pair:
        case [str(name), str(value)]:
            return HEADER_NAME.fullmatch(name) is not None and HEADER_VALUE.fullmatch(value) is not None
    return False


def _failed(fields: object) -> Failed:
    match fields:
        case [str(code), int(tokens)] if len(code) <= 64 and _is_count(tokens):
            return Failed(code, tokens)
    raise FrameError("form", "has an error that is not [code, tokens]")


def _is_count(tokens: int) -> bool:
    return 0 <= tokens <= MOST_TOKENS and not isinstance(tokens, bool)


def _receipt(fields: object) -> Receipt:
    match fields:
        case [str(hold_id), int(tokens), str(digest), str(signature)] if _is_count(tokens):
            if DIGEST.fullmatch(digest) and SIGNED.fullmatch(signature):
                return Receipt(hold_id, tokens, bytes.fromhex(digest), bytes.fromhex(signature))
    raise FrameError("form", "has a receipt that is not [hold, tokens, digest, signature]")
