"""What a door remembers: as long as a message can be valid, no longer than that matters, in bounded room."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from live_bridge.peers.replays import Bounds, Full, Replays, Reply

NOW = 1_790_000_000.0
BOUNDS = Bounds(span_s=60.0, messages=10_000, of_one_sender=9_000, reply_bytes=4096, replies_bytes=1 << 20)
ALICE = b"a" * 20


def filled(replays: Replays, sender: bytes, messages: int, unix_s: float) -> None:
    for k in range(messages):
        replays.add(sender, sender + k.to_bytes(16, "big"), bytes(32), unix_s)


def test_room_is_bounded_and_comes_back_with_time() -> None:
    replays = Replays(None, BOUNDS._replace(messages=100, of_one_sender=100), NOW)
    filled(replays, ALICE, 100, NOW)
    with pytest.raises(Full):
        replays.add(b"b" * 20, b"b" * 36, bytes(32), NOW + 59)
    for k in range(1, 20):
        filled(replays, bytes([k]) * 20, 100, NOW + 60 * k)
        assert len(replays) <= 200


def test_a_message_is_remembered_for_at_least_as_long_as_it_can_be_valid() -> None:
    for age_s in range(0, 60, 7):
        replays = Replays(None, BOUNDS, NOW)
        replays.add(b"a" * 20, b"a" * 36, bytes(32), NOW + age_s)
        for later in range(1, 60):
            replays.add(b"b" * 20, b"b" * 20 + bytes([later]), bytes(32), NOW + age_s + later)
            assert replays.find(b"a" * 36) is not None


def test_replies_share_a_bounded_room() -> None:
    replays = Replays(None, BOUNDS._replace(replies_bytes=1000), NOW)
    filled(replays, b"a" * 20, 20, NOW)
    for k in range(20):
        replays.keep(b"a" * 20 + k.to_bytes(16, "big"), Reply(200, [], bytes(100)))
    kept = [replays.find(b"a" * 20 + k.to_bytes(16, "big")).reply for k in range(20)]
    assert sum(reply is not None for reply in kept) == 10


def test_the_first_reply_stays_the_first() -> None:
    replays = Replays(None, BOUNDS, NOW)
    filled(replays, b"a" * 20, 1, NOW)
    key = b"a" * 20 + bytes(16)
    replays.keep(key, Reply(200, [], b"first"))
    replays.keep(key, Reply(200, [], b"second"))
    replays.keep(b"unknown", Reply(200, [], b"third"))
    assert replays.find(key).reply.body == b"first"


def test_files_hold_two_generations_and_only_their_owner_reads_them(tmp_path: Path) -> None:
    replays = Replays(tmp_path / "seen", BOUNDS, NOW)
    for k in range(10):
        filled(replays, bytes([k]) * 20, 3, NOW + 70 * k)
        files = sorted((tmp_path / "seen").iterdir())
        assert len(files) <= 2 and all(file.stat().st_mode & 0o077 == 0 for file in files)
    replays.close()
    (tmp_path / "seen" / "messages-000000000000001.seen").write_text("stale\n")
    again = Replays(tmp_path / "seen", BOUNDS, NOW + 700)
    assert len(again) == 6 and len(list((tmp_path / "seen").iterdir())) == 2


def failing(luck: random.Random, real: Callable[[int, bytes], int]) -> Callable[[int, bytes], int]:
    """A disk that now and then is full in the middle of a line, or before it."""

    def write(file: int, line: bytes) -> int:
        chance = luck.random()
        if chance < 0.1:
            raise OSError("No space left on device")
        return real(file, line[: luck.randrange(len(line))]) if chance < 0.3 else real(file, line)

    return write


@pytest.mark.parametrize("seed", range(10))
def test_what_was_taken_is_known_in_the_next_life_whatever_the_disk_did_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    luck = random.Random(seed)
    monkeypatch.setattr(os, "write", failing(luck, os.write))
    replays, taken, refused = Replays(tmp_path, BOUNDS, NOW), dict[bytes, bytes](), 0
    for k in range(200):
        key = ALICE + k.to_bytes(16, "big")
        try:
            replays.add(ALICE, key, k.to_bytes(32, "big"), NOW + k / 100)
            taken[key] = k.to_bytes(32, "big")
        except OSError:
            refused += 1
            assert replays.find(key) is None, "a message that could not be written has no effect"
        if luck.random() < 0.1:
            replays.close()  # as a kill leaves it: nothing is written at the end
            replays = Replays(tmp_path, BOUNDS, NOW + k / 100)
            assert {key: entry.digest for key in taken if (entry := replays.find(key))} == taken
    assert refused > 20 and len(taken) > 100


def test_a_reply_that_could_not_be_written_takes_no_later_message_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replays = Replays(tmp_path, BOUNDS, NOW)
    filled(replays, ALICE, 2, NOW)
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, line: real(file, line[:20]))
    with pytest.raises(OSError, match="the disk is full"):
        replays.keep(ALICE + bytes(16), Reply(200, [], b"lost"))
    monkeypatch.setattr(os, "write", real)
    replays.add(b"b" * 20, b"b" * 36, bytes(32), NOW)
    replays.close()
    again = Replays(tmp_path, BOUNDS, NOW)
    assert again.find(b"b" * 36) is not None and again.find(ALICE + bytes(16)).reply is None
