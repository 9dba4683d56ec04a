"""Signed roster rows: what a provider says about itself, passed on by others word for word, and a bounded directory of them.

Only the subject can write its row, and only a newer row counts. A row that is not newer is dropped before its signature is checked.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from live_bridge.identity import KEY_BYTES, SIGNATURE_BYTES, Identity, id_of, verify
from live_bridge.peers.addresses import AddressError
from live_bridge.wire import json_of, pack

DOMAIN = "wwwserve/1/row"
LONGEST_TEXT = 4096
LONGEST_NAME = 64
LONGEST_ADDRESS = 200
LONGEST_MODEL = 200
MOST_MODELS = 32
ENTRY_FIELDS = 5
ENTRY_BYTES = 6144  # of one entry in a payload, at most: the text escaped, and what stands beside it
MOST_VERSION = (1 << 63) - 1
MOST_AGE_S = 1e9
MOST_DUELS = (1 << 31) - 1
CHECKS = 64
"""Signatures checked for one exchange, at most: some 4 ms in which nothing else runs. The other rows come with the next one."""
PAST = 4  # times the greatest number of rows: so many versions of rows that are out are remembered
REASONS = ("row_form", "row_oversize", "row_address", "row_signature", "row_full", "row_early", "row_later")
"""Why rows are dropped, for metrics that are bound beforehand."""


class Row(NamedTuple):
    """What a provider says about itself."""

    public: bytes
    address: str  # URL
    name: str
    models: tuple[str, ...]
    version: int  # incarnation << 32, and one more with every beat (market/gossip.py)
    wait_s: float  # market s
    usage: float  # share of KV blocks, [0, 1]
    accepts: float  # [0, 1]
    duels_won: int
    duels_lost: int
    leaving: bool  # takes no more work, and will be gone

    @property
    def id(self) -> str:
        """Whose row it is."""
        return id_of(self.public)


class Heard(NamedTuple):
    """A row that is news."""

    row: Row
    age_s: float  # market s since its subject wrote it, as others say


class News(NamedTuple):
    """What one payload has brought."""

    rows: list[Heard]
    known: dict[str, int]  # id -> version that the sender says it has


class Bounds(NamedTuple):
    """How much a directory takes in."""

    most: int  # rows
    silence_s: float  # market s after which a row without news is out
    beat_s: float  # market s before which another row of the same subject is not looked at


class _Held(NamedTuple):
    row: Row
    text: str
    signature: str
    heard_s: float
    age_s: float


def write(row: Row) -> str:
    """Write a row in the form that is signed."""
    fields = row._asdict() | {"public": row.public.hex()}
    return orjson.dumps(fields).decode()


def sign(identity: Identity, network: str, text: str) -> str:
    """Sign the text of a row; returns hexadecimal."""
    return identity.sign(DOMAIN, pack(network, text)).hex()


def read(text: str) -> Row | None:
    """Read the text of a row, or nothing when a field is missing, unknown, of another kind or out of range."""
    fields = json_of(text)
    if not isinstance(fields, dict) or set(fields) != set(Row._fields):
        return None
    public = _unhex(fields["public"], KEY_BYTES)
    models = fields["models"]
    texts = _is_text(fields["address"], LONGEST_ADDRESS) and _is_text(fields["name"], LONGEST_NAME)
    listed = isinstance(models, list) and len(models) <= MOST_MODELS and all(_is_text(name, LONGEST_MODEL) for name in models)
    counts = _is_count(fields["version"], MOST_VERSION) and all(
        _is_count(fields[k], MOST_DUELS) for k in ("duels_won", "duels_lost")
    )
    shares = all(_is_number(fields[name], 1.0) for name in ("usage", "accepts")) and _is_number(fields["wait_s"], MOST_AGE_S)
    if public is None or not (texts and listed and counts and shares and isinstance(fields["leaving"], bool)):
        return None
    floats = {name: float(fields[name]) for name in ("wait_s", "usage", "accepts")}
    return Row(**(fields | floats | {"public": public, "models": tuple(models)}))


class Directory:
    """The newest row of each provider, at most so many, none from one who has been silent for long."""

    def __init__(
        self,
        me: str,
        network: str,
        bounds: Bounds,
        check: Callable[[str], object],
        member: Callable[[str], bool],
        count: Callable[[str], None],
    ) -> None:
        """Begin empty.

        me       own id: others' rows about it are never taken
        check    raises AddressError for an address that this node does not connect to
        member   whether an id has an account at the ledger: when the directory is full, members push strangers out
        count    told the reason (REASONS) of each row that is dropped unread
        """
        self._me = me
        self._network = network
        self._bounds = bounds
        self._check = check
        self._member = member
        self._count = count
        self._rows: dict[str, _Held] = {}
        self._past: dict[str, int] = {}  # versions of rows that are out: they do not come back as news
        self._strangers: dict[str, None] = {}  # of those that are in, who had no account when they came
        self._newcomers = float(bounds.most)
        self._refilled_s = -math.inf
        self._checks = CHECKS
        self._begin = 0  # where in the next exchange to begin, so that no row is always among those left for later
        self.outranked = -1
        """Greatest version of a row that is signed with one's own key and newer than one's own: of a former life."""

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, peer: str) -> Row | None:
        """The newest row of a provider."""
        held = self._rows.get(peer)
        return None if held is None else held.row

    def post(self, identity: Identity, row: Row, now_s: float) -> None:
        """Sign one's own row and show it from now on.

        now_s    market s
        errors   ValueError when others would not take it
        """
        text = write(row)
        if row.id != self._me or read(text) is None:
            raise ValueError(f"own row: a field is out of its range, or it is not of {self._me}: {text}")
        self._rows[self._me] = _Held(row, text, sign(identity, self._network, text), now_s, 0.0)

    def export(self, now_s: float, known: dict[str, int]) -> bytes:
        """Write all rows that are newer than what the receiver has, as signed, with their age in market s.

        known   id -> version, from its own payload; empty for everything
        """
        return orjson.dumps(
            [
                (peer, held.row.version, held.age_s + now_s - held.heard_s, held.text, held.signature)
                for peer, held in self._rows.items()
                if held.row.version > known.get(peer, -1)
            ]
        )

    def heard(self, payload: bytes, now_s: float) -> News:
        """Take in what a peer has sent; returns the rows that are news.

        The first forged row ends it: whoever passes rows on has checked them.
        """
        news = News([], {})
        if len(payload) > (self._bounds.most + 1) * ENTRY_BYTES:
            self._count("row_oversize")
            return news
        entries = _entries(payload)
        if entries is None or len(entries) > self._bounds.most + 1:
            self._count("row_form" if entries is None else "row_oversize")
            return news
        self._refill(now_s)
        self._checks = CHECKS
        begin = self._begin % max(len(entries), 1)
        for entry in entries[begin:] + entries[:begin]:
            reason = self._take(entry, now_s, news)
            if reason:
                self._count(reason)
            if reason in {"row_form", "row_signature"}:
                break
        if not self._checks:
            self._begin = begin + CHECKS
        return news

    def silent(self, now_s: float) -> list[str]:
        """Put out those of whom there was no news for `silence_s`; returns their ids."""
        late = [peer for peer, held in self._rows.items() if peer != self._me and now_s - held.heard_s > self._bounds.silence_s]
        for peer in late:
            self.forget(peer)
        return late

    def forget(self, peer: str) -> None:
        """Put a provider out until it writes a newer row."""
        held = self._rows.pop(peer, None)
        self._strangers.pop(peer, None)
        if held is None:
            return
        self._past.pop(peer, None)
        self._past[peer] = held.row.version
        while len(self._past) > PAST * self._bounds.most:
            del self._past[next(iter(self._past))]

    def _take(self, entry: Any, now_s: float, news: News) -> str:
        """Take one entry; returns why not, or nothing."""
        if not _is_entry(entry) or entry[0] in news.known:
            return "row_form"
        peer, version, age_s, text, signature = entry
        news.known[peer] = version
        held = self._rows.get(peer)
        if held is not None:
            if version <= held.row.version:
                return ""
            if peer != self._me and now_s - held.heard_s < self._bounds.beat_s:
                return "row_early"
            age_s = min(age_s, held.age_s + now_s - held.heard_s)  # it was written after the one before
        elif version <= self._past.get(peer, -1) or age_s > self._bounds.silence_s:
            return ""
        elif peer != self._me and not self._has_room(peer):
            return "row_full"
        if not self._checks:
            return "row_later"
        self._checks -= 1
        row = self._verified(peer, version, text, signature)
        if row is None:
            return "row_signature"
        if peer == self._me:
            self.outranked = max(self.outranked, version)
            return ""
        return self._store(_Held(row, text, signature, now_s, age_s), news)

    def _verified(self, peer: str, version: int, text: Any, signature: Any) -> Row | None:
        raw = _unhex(signature, SIGNATURE_BYTES)
        row = read(text) if raw is not None and _is_text(text, LONGEST_TEXT) else None
        if raw is None or row is None or row.version != version or row.id != peer:
            return None
        return row if verify(row.public, DOMAIN, pack(self._network, text), raw) else None

    def _store(self, held: _Held, news: News) -> str:
        try:
            self._check(held.row.address)
        except AddressError:
            return "row_address"
        peer = held.row.id
        if peer not in self._rows:
            self._newcomers -= 1.0
            if self._others() >= self._bounds.most:
                self.forget(self._least())
            if not self._member(peer):
                self._strangers[peer] = None
        self._rows[peer] = held
        news.rows.append(Heard(held.row, held.age_s))
        return ""

    def _others(self) -> int:
        return len(self._rows) - (self._me in self._rows)

    def _has_room(self, peer: str) -> bool:
        """Whether a newcomer may come in: as many as there are places at once, then a trickle; a member finds a place."""
        full = self._others() >= self._bounds.most
        if self._newcomers >= 1.0 and not full:
            return True
        return self._member(peer) and not (full and not self._least())

    def _least(self) -> str:
        """The stranger of whom there was no news for longest, or nothing when all are members."""
        for peer in [peer for peer in self._strangers if self._member(peer)]:
            del self._strangers[peer]
        return min(self._strangers, key=lambda peer: self._rows[peer].heard_s, default="")

    def _refill(self, now_s: float) -> None:
        passed_s = max(now_s - self._refilled_s, 0.0)
        most = float(self._bounds.most)
        self._newcomers = min(self._newcomers + passed_s * most / self._bounds.silence_s, most)
        self._refilled_s = now_s


def _entries(payload: bytes) -> list[Any] | None:
    entries = json_of(payload)
    return entries if isinstance(entries, list) else None


def _is_entry(entry: Any) -> bool:
    """Whether an entry is (id, version, age_s, text, signature), as far as that is looked at before the signature is checked."""
    if not isinstance(entry, list) or len(entry) != ENTRY_FIELDS:
        return False
    return isinstance(entry[0], str) and _is_count(entry[1], MOST_VERSION) and _is_number(entry[2], MOST_AGE_S)


def _is_text(value: Any, longest: int) -> bool:
    return isinstance(value, str) and len(value) <= longest


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _is_number(value: Any, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0.0 <= value <= most


def _unhex(value: Any, size: int) -> bytes | None:
    if not isinstance(value, str) or len(value) != 2 * size:
        return None
    try:
        return bytes.fromhex(value)
    except ValueError:
        return None
