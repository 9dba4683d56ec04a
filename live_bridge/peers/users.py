"""Who may ask this node: API keys of users, of which only the SHA-256 is known, each with a rate and an end.

Keys are neither logged nor sent on: `passed_on` takes them, and all that names the user, out of a request's headers.
"""

import hmac
import math
import os
import re
from collections import deque
from datetime import UTC, date, datetime
from hashlib import blake2b, sha256
from pathlib import Path
from typing import NamedTuple

import orjson

from live_bridge.http.message import Headers

WINDOW_S = 60.0
LONGEST_KEY = 512
MOST_PER_MINUTE = 1_000_000
NAME = re.compile(r"[A-Za-z0-9._@+-]{1,64}")
DIGEST = re.compile(r"[0-9a-f]{64}")
REVOKED = "revoked"
NEVER = "-"
PRIVATE = frozenset(
    {
        *(b"authorization", b"proxy-authorization", b"x-api-key", b"api-key", b"cookie", b"openai-organization", b"openai-project"),
        *(b"forwarded", b"x-forwarded-for", b"x-real-ip", b"true-client-ip", b"cf-connecting-ip", b"via", b"user-agent"),
        *(b"referer", b"origin"),
    }
)
"""Headers that stay here: they hold a key, or say who the user is."""
REASONS = ("key_missing", "key_wrong", "key_revoked", "key_expired", "key_rate")
"""Why a user is turned away, for metrics that are bound beforehand."""


class UsersError(ValueError):
    """A file of keys cannot be used; the text names file, line, rule and the way out, and never a key."""


class User(NamedTuple):
    """A line of the file."""

    digest: bytes
    name: str
    per_minute: int  # requests; 0 = no bound
    ends: date | None  # last day (UTC) on which the key is good
    revoked: bool


class Denied(NamedTuple):
    """What to answer a user who may not ask."""

    reason: str
    status: int
    headers: Headers
    body: bytes


class Rate:
    """At most so many requests in any 60 s: exact, since each is remembered for as long."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._taken: deque[float] = deque()

    def take(self, now_s: float) -> float:
        """Take one request now, or refuse.

        now_s     seconds that never run back
        returns   0 when it was taken, else s until one can be
        """
        if not self.per_minute:
            return 0.0
        taken = self._taken
        while taken and now_s - taken[0] >= WINDOW_S:
            taken.popleft()
        if len(taken) < self.per_minute:
            taken.append(now_s)
            return 0.0
        return taken[len(taken) - self.per_minute] + WINDOW_S - now_s


class Users:
    """The users of a node, from a file that can change while it runs."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        errors   UsersError
        """
        self._path = path
        self._secret = os.urandom(32)
        self._users: dict[bytes, User] = {}
        self._rates: dict[bytes, Rate] = {}
        self._seen: tuple[int, int, int] | None = None
        self.reload()

    def __len__(self) -> int:
        return len(self._users)

    def reload(self) -> bool:
        """Read the file again when it has changed; requests already counted stay counted. Returns whether it had changed.

        errors   UsersError, and the former users stay
        """
        try:
            facts = self._path.stat()
            seen = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
            if seen == self._seen:
                return False
            text = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsersError(f"{self._path}: cannot be read: {error}") from None
        found = read(text, str(self._path))
        rates = {user.digest: self._rate_of(user) for user in found}
        self._users = {self._place(user.digest): user for user in found}
        self._rates = rates
        self._seen = seen
        return True

    def admit(self, headers: Headers, now_s: float, unix_s: float) -> User | Denied:
        """Let a user in and count the request, or say what to answer.

        now_s    seconds that never run back, for the rate
        unix_s   seconds since 1970, for the end of a key
        """
        key = _bearer(headers)
        if key is None:
            return _denied("key_missing", 401, "send an API key: Authorization: Bearer KEY", 0.0)
        digest = sha256(key).digest()
        user = self._users.get(self._place(digest))
        if not hmac.compare_digest(digest, user.digest if user else bytes(32)) or user is None:
            return _denied("key_wrong", 401, "this API key is not known here", 0.0)
        if user.revoked:
            return _denied("key_revoked", 403, "this API key was revoked", 0.0)
        if user.ends is not None and datetime.fromtimestamp(unix_s, UTC).date() > user.ends:
            return _denied("key_expired", 403, f"this API key was good until {user.ends.isoformat()}", 0.0)
        wait_s = self._rates[user.digest].take(now_s)
        if wait_s > 0.0:
            return _denied("key_rate", 429, f"more than {user.per_minute} requests in 60 s", wait_s)
        return user

    def _place(self, digest: bytes) -> bytes:
        """Where to look a key up: keyed with a secret, so that the time of the look-up tells nothing about stored digests."""
        return blake2b(digest, key=self._secret, digest_size=16).digest()

    def _rate_of(self, user: User) -> Rate:
        rate = self._rates.get(user.digest) or Rate(user.per_minute)
        rate.per_minute = user.per_minute
        return rate


def read(text: str, place: str) -> list[User]:
    """Read lines of `SHA-256 name requests-per-minute expiry`; # begins a comment.

    errors   UsersError naming place and line
    """
    users: list[User] = []
    lines: dict[bytes, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        user = _user(words, f"{place}, line {number}")
        if user.digest in lines:
            raise UsersError(f"{place}, line {number}: the key of line {lines[user.digest]} stands again; keep one of them")
        lines[user.digest] = number
        users.append(user)
    return users


def _user(words: list[str], place: str) -> User:
    if len(words) != 4:
        raise UsersError(f"{place}: must be SHA-256 of the key, name, requests per minute, expiry (YYYY-MM-DD, - or revoked)")
    digest, name, rate, ends = words
    if not DIGEST.fullmatch(digest):
        raise UsersError(f"{place}: must begin with the SHA-256 of the key in 64 lower-case hexadecimal characters")
    if not NAME.fullmatch(name):
        raise UsersError(f"{place}: the name must be 1 to 64 letters, digits or . _ @ + -")
    if rate != NEVER and not (rate.isascii() and rate.isdecimal() and 1 <= int(rate) <= MOST_PER_MINUTE):
        raise UsersError(f"{place}: requests per minute must be 1 to {MOST_PER_MINUTE}, or - for no bound, got {rate!r}")
    return User(bytes.fromhex(digest), name, 0 if rate == NEVER else int(rate), _ends(ends, place), ends == REVOKED)


def _ends(text: str, place: str) -> date | None:
    if text in {NEVER, REVOKED}:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsersError(f"{place}: the expiry must be YYYY-MM-DD, - or {REVOKED}, got {text!r}") from None


def passed_on(headers: Headers) -> Headers:
    """Take out of a user's headers what no backend and no peer may see."""
    return [(name, value) for name, value in headers if name not in PRIVATE]


def _bearer(headers: Headers) -> bytes | None:
    found = [value for name, value in headers if name == b"authorization"]
    if len(found) != 1 or found[0][:7].lower() != b"bearer ":
        return None
    key = found[0][7:].strip()
    return key if 0 < len(key) <= LONGEST_KEY else None


def _denied(reason: str, status: int, text: str, wait_s: float) -> Denied:
    kind = "rate_limit_error" if status == 429 else "authentication_error" if status == 401 else "permission_error"
    body = orjson.dumps({"error": {"message": text, "type": kind, "code": reason}})
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 429:
        headers.append((b"retry-after", str(max(math.ceil(wait_s), 1)).encode()))
    return Denied(reason, status, headers, body)
