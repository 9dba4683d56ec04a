"""API keys of users: who may ask, how often, until when; and that a key is seen by nobody else."""

import logging
import os
import random
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import orjson
import pytest

from live_bridge.http.message import Headers
from live_bridge.peers import users
from live_bridge.peers.users import PRIVATE, REASONS, Denied, Rate, User, Users, UsersError, passed_on, read

KEY, OLD, GONE, BUSY = "sk-alice-4f2a", "sk-old-7c11", "sk-gone-90de", "sk-busy-e3b0"
NOW = datetime(2026, 5, 10, 12, 0, tzinfo=UTC).timestamp()


def digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


FILE = f"""# keys of this node
{digest(KEY)} alice 60 -
{digest(OLD)} bob 60 2026-05-09   # was a guest
{digest(GONE)}\tcarol\t60\trevoked

{digest(BUSY)} dave@example.org - 2026-05-10
"""


def bearer(key: str) -> Headers:
    return [(b"host", b"node"), (b"authorization", b"Bearer " + key.encode())]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(FILE, encoding="utf-8")
    return path


def denied(found: User | Denied) -> Denied:
    assert isinstance(found, Denied)
    assert found.reason in REASONS
    error = orjson.loads(found.body)["error"]
    assert error["code"] == found.reason and error["message"] and (b"content-type", b"application/json") in found.headers
    return found


# S3: who may ask


def test_a_known_key_is_let_in_by_its_name(file: Path) -> None:
    known = Users(file)
    assert len(known) == 4
    found = known.admit(bearer(KEY), 0.0, NOW)
    assert isinstance(found, User) and (found.name, found.per_minute) == ("alice", 60)
    assert isinstance(known.admit([(b"authorization", b"bearer  " + KEY.encode() + b" ")], 0.0, NOW), User)


@pytest.mark.parametrize(
    "headers",
    [
        *(
            [],
            [(b"authorization", b"")],
            [(b"authorization", b"Bearer")],
            [(b"authorization", b"Bearer ")],
            [(b"authorization", b"Bearer \t ")],
        ),
        *([(b"authorization", b"Basic " + KEY.encode())], [(b"authorization", KEY.encode())], [(b"x-api-key", KEY.encode())]),
        *(
            [*bearer(KEY), *bearer(KEY)],
            [(b"authorization", b"Bearer " + b"k" * 513)],
            [(b"cookie", b"authorization=Bearer " + KEY.encode())],
        ),
    ],
)
def test_no_key_is_401(file: Path, headers: Headers) -> None:
    found = denied(Users(file).admit(headers, 0.0, NOW))
    assert (found.status, found.reason) == (401, "key_missing") and (b"www-authenticate", b"Bearer") in found.headers


def test_a_wrong_key_is_401(file: Path) -> None:
    known = Users(file)
    wrong = [KEY[:-1], KEY + "x", KEY.upper(), digest(KEY), "", "x", KEY + "\0", f"{KEY} {KEY}"]
    wrong += [KEY[:k] + chr(ord(KEY[k]) ^ 1) + KEY[k + 1 :] for k in range(len(KEY))]
    for key in filter(None, wrong):
        found = denied(known.admit(bearer(key), 0.0, NOW))
        assert (found.status, found.reason) == (401, "key_wrong")


def test_a_key_of_bytes_that_are_no_text_is_401(file: Path) -> None:
    assert denied(Users(file).admit([(b"authorization", b"Bearer \xff\xfe\x00")], 0.0, NOW)).status == 401


def test_a_revoked_key_is_403(file: Path) -> None:
    found = denied(Users(file).admit(bearer(GONE), 0.0, NOW))
    assert (found.status, found.reason) == (403, "key_revoked")


def test_an_expired_key_is_403_from_the_day_after_its_last(file: Path) -> None:
    known = Users(file)
    assert denied(known.admit(bearer(OLD), 0.0, NOW)).reason == "key_expired"
    midnight = datetime(2026, 5, 11, tzinfo=UTC).timestamp()
    assert isinstance(known.admit(bearer(BUSY), 0.0, midnight - 0.001), User)
    found = denied(known.admit(bearer(BUSY), 0.0, midnight))
    assert found.status == 403 and b"2026-05-10" in found.body


def test_digests_are_compared_in_constant_time_and_for_unknown_keys_too(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, compared = Users(file), []
    real = users.hmac.compare_digest
    monkeypatch.setattr(users.hmac, "compare_digest", lambda a, b: (compared.append((a, b)), real(a, b))[1])
    for key in (KEY, "sk-unknown"):
        known.admit(bearer(key), 0.0, NOW)
    assert compared == [(bytes.fromhex(digest(KEY)),) * 2, (bytes.fromhex(digest("sk-unknown")), bytes(32))]


def test_where_a_key_is_looked_up_depends_on_a_secret_of_the_process(file: Path) -> None:
    """The time of a look-up then tells nothing about the digests in the file."""
    raw = bytes.fromhex(digest(KEY))
    places = {Users(file)._place(raw) for _ in range(5)}
    assert len(places) == 5 and raw not in Users(file)._users


def test_a_key_that_digests_to_zeros_is_nobody(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison for unknown keys is with zeros; it must not let in who would have that digest."""

    class Zeros(NamedTuple):
        def digest(self) -> bytes:
            return bytes(32)

    known = Users(file)
    monkeypatch.setattr(users, "sha256", lambda key: Zeros())
    assert denied(known.admit(bearer(KEY), 0.0, NOW)).reason == "key_wrong"


# S3: the rate is exact


def test_no_more_than_the_rate_in_any_minute(file: Path) -> None:
    known, chance = Users(file), random.Random(1)
    taken, now = [], 0.0
    for _ in range(3000):
        now += chance.expovariate(4.0)
        found = known.admit(bearer(KEY), now, NOW)
        if isinstance(found, User):
            taken.append(now)
        else:
            assert denied(found).status == 429
    windows = [sum(begin <= other < begin + 60.0 for other in taken) for begin in taken]
    assert max(windows) == 60
    assert len(taken) >= 60 * int(now / 60.0), "and no fewer: 240 a minute were asked for"


def test_the_sixty_first_request_waits_until_the_first_is_a_minute_old(file: Path) -> None:
    known = Users(file)
    for k in range(60):
        assert isinstance(known.admit(bearer(KEY), 100.0 + k * 0.5, NOW), User)
    found = denied(known.admit(bearer(KEY), 130.0, NOW))
    assert found.status == 429 and (b"retry-after", b"30") in found.headers
    assert (b"retry-after", b"1") in denied(known.admit(bearer(KEY), 159.999, NOW)).headers
    assert isinstance(known.admit(bearer(KEY), 160.0, NOW), User)
    assert (b"retry-after", b"1") in denied(known.admit(bearer(KEY), 160.0, NOW)).headers
    assert isinstance(known.admit(bearer(KEY), 160.5, NOW), User)


def test_a_refused_request_does_not_count(file: Path) -> None:
    known = Users(file)
    for _ in range(60):
        known.admit(bearer(KEY), 0.0, NOW)
    for k in range(1000):
        denied(known.admit(bearer(KEY), k * 0.05, NOW))
    assert isinstance(known.admit(bearer(KEY), 60.0, NOW), User)


def test_one_users_requests_do_not_use_up_anothers(file: Path) -> None:
    known = Users(file)
    for _ in range(100):
        known.admit(bearer(KEY), 0.0, NOW)
        assert isinstance(known.admit(bearer(BUSY), 0.0, NOW), User), "who has no bound"
    file.write_text(f"{digest(KEY)} alice 60 -\n{digest('other')} alice 1 -\n")
    assert known.reload()
    assert isinstance(known.admit(bearer("other"), 0.0, NOW), User)


def test_retry_after_is_when_a_request_is_let_in() -> None:
    chance = random.Random(2)
    for _ in range(50):
        rate, now = Rate(chance.randint(1, 20)), 0.0
        for _ in range(100):
            now += chance.expovariate(1.0)
            wait_s = rate.take(now)
            if wait_s:
                assert 0.0 < wait_s <= 60.0 and rate.take(now + wait_s - 1e-6) > 0.0
                now += wait_s + 1e-9
                assert rate.take(now) == 0.0


def test_memory_of_a_rate_is_bounded_by_the_rate() -> None:
    rate = Rate(5)
    for k in range(10_000):
        rate.take(k * 0.01)
        assert len(rate._taken) <= 5


# the file


def test_a_changed_file_is_read_again_and_counted_requests_stay_counted(file: Path) -> None:
    known = Users(file)
    assert not known.reload()
    for _ in range(60):
        known.admit(bearer(KEY), 0.0, NOW)
    file.write_text(f"{digest(KEY)} alice 61 -\n{digest('new')} eve 1 -\n")
    assert known.reload() and len(known) == 2
    assert isinstance(known.admit(bearer(KEY), 1.0, NOW), User)
    assert denied(known.admit(bearer(KEY), 1.0, NOW)).status == 429
    assert isinstance(known.admit(bearer("new"), 1.0, NOW), User)
    assert denied(known.admit(bearer(BUSY), 1.0, NOW)).status == 401
    file.write_text(f"{digest(KEY)} alice 2 -\n")
    known.reload()
    assert (b"retry-after", b"59") in denied(known.admit(bearer(KEY), 1.0, NOW)).headers
    assert isinstance(known.admit(bearer(KEY), 60.0, NOW), User)


def test_a_key_is_revoked_while_the_node_runs(file: Path) -> None:
    known = Users(file)
    assert isinstance(known.admit(bearer(KEY), 0.0, NOW), User)
    file.write_text(FILE.replace("alice 60 -", "alice 60 revoked"))
    known.reload()
    assert denied(known.admit(bearer(KEY), 0.0, NOW)).status == 403


def test_a_bad_file_is_refused_and_the_former_users_stay(file: Path) -> None:
    known = Users(file)
    for text in ("nonsense\n", FILE + "x\n"):
        file.write_text(text)
        for _ in range(2):
            with pytest.raises(UsersError):
                known.reload()
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsersError, match="cannot be read"):
        known.reload()
    file.unlink()
    with pytest.raises(UsersError, match="cannot be read"):
        known.reload()
    assert isinstance(known.admit(bearer(KEY), 0.0, NOW), User)
    file.write_text(FILE)
    assert known.reload()


def test_a_file_that_is_replaced_by_one_of_the_same_size_and_time_is_read_again(file: Path, tmp_path: Path) -> None:
    known = Users(file)
    other = tmp_path / "other"
    other.write_text(FILE.replace(digest(KEY), digest("another")))
    facts = file.stat()
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    other.replace(file)
    assert known.reload() and denied(known.admit(bearer(KEY), 0.0, NOW)).status == 401


@pytest.mark.parametrize(
    ("line", "text"),
    [
        *(
            (" ".join(words), "must be SHA-256 of the key, name, requests per minute, expiry")
            for words in (["a"], ["a"] * 3, ["a"] * 5)
        ),
        *((f"{key} alice 60 -", "64 lower-case hexadecimal characters") for key in (KEY, "a" * 63, "A" * 64, "g" * 64)),
        *((f"{digest(KEY)} {name} 60 -", "the name must be") for name in ("al/ice", "a" * 65, "älice", "<b>")),
        *(
            (f"{digest(KEY)} alice {rate} -", "requests per minute must be")
            for rate in ("0", "-1", "1.5", "1e3", "1000001", "many", "\u0661")
        ),
        *(
            (f"{digest(KEY)} alice 60 {day}", "the expiry must be YYYY-MM-DD")
            for day in ("2026-02-30", "tomorrow", "2026", "Revoked", "10.5.2026")
        ),
        (f"{digest(KEY)} alice 60 -\n{digest(KEY)} bob 60 -", "the key of line 3 stands again"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_never_with_a_key(line: str, text: str) -> None:
    with pytest.raises(UsersError, match=text) as caught:
        read(f"# first\n\n{line}\n", "keys")
    assert str(caught.value).startswith(f"keys, line {3 + line.count(chr(10))}: ")
    assert KEY not in str(caught.value) and digest(KEY) not in str(caught.value)


def test_an_empty_file_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# none yet\n")
    assert denied(Users(path).admit(bearer(KEY), 0.0, NOW)).status == 401


# S3, S7: a key stays here


def test_no_key_is_logged_or_told(file: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    known = Users(file)
    said = [repr(known), str(known)]
    for key in (KEY, OLD, GONE, BUSY, "sk-unknown-77"):
        for _ in range(61):
            found = known.admit(bearer(key), 0.0, NOW)
            said += [repr(found.headers), found.body.decode()] if isinstance(found, Denied) else [found.name]
    said += [caplog.text, *capsys.readouterr()]
    for key in (KEY, OLD, GONE, BUSY, "sk-unknown-77"):
        assert not any(key in text or digest(key) in text for text in said)


def test_what_is_passed_on_names_no_user() -> None:
    kept = [
        (b"content-type", b"application/json"),
        (b"accept", b"text/event-stream"),
        (b"x-request-id", b"7"),
        (b"market-forecast-tokens", b"9"),
    ]
    private = [(name, b"secret") for name in sorted(PRIVATE)]
    mixed = [pair for pairs in zip(private, kept * 5, strict=False) for pair in pairs]
    assert b"secret" not in b"".join(value for _, value in passed_on(mixed))
    assert passed_on([*private, *kept]) == kept and passed_on([]) == []
    assert {b"authorization", b"x-api-key", b"api-key", b"cookie", b"x-forwarded-for", b"forwarded"} <= PRIVATE
