"""Keys and ids: a file that only its owner can read, an id that nobody else can claim, signatures that count for one purpose."""

import multiprocessing
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from live_bridge.identity import Identity, IdentityError, id_of, load, verify

ME, OTHER = Identity(bytes(range(32))), Identity(bytes(32))
PAYLOAD = b"what was said"
SIGNED = ME.sign("test/1", PAYLOAD)


def test_an_id_is_forty_characters_that_follow_from_the_public_key() -> None:
    assert (len(ME.id), len(ME.public)) == (40, 32)
    assert ME.id == id_of(ME.public) != OTHER.id
    assert set(ME.id) <= set("0123456789abcdef")


def test_an_id_is_the_beginning_of_a_sha256_that_anyone_can_work_out() -> None:
    assert id_of(b"\x00" * 32) == "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925"[:40]


def test_the_same_seed_is_the_same_identity() -> None:
    assert Identity(bytes(range(32))).sign("test/1", PAYLOAD) == SIGNED


def test_a_signature_is_believed() -> None:
    assert len(SIGNED) == 64
    assert verify(ME.public, "test/1", PAYLOAD, SIGNED)


@pytest.mark.parametrize(
    ("public", "domain", "payload", "signature"),
    [
        (OTHER.public, "test/1", PAYLOAD, SIGNED),
        (ME.public, "test/2", PAYLOAD, SIGNED),
        (ME.public, "", PAYLOAD, SIGNED),
        (ME.public, "test/1", PAYLOAD + b" ", SIGNED),
        (ME.public, "test/1", b"", SIGNED),
        (ME.public, "test/1", PAYLOAD, SIGNED[:-1]),
        (ME.public, "test/1", PAYLOAD, SIGNED + b"\x00"),
        (ME.public, "test/1", PAYLOAD, b""),
        (ME.public, "test/1", PAYLOAD, bytes(64)),
        (ME.public[:-1], "test/1", PAYLOAD, SIGNED),
        (b"", "test/1", PAYLOAD, SIGNED),
        (bytes(32), "test/1", PAYLOAD, SIGNED),
        (b"\xff" * 32, "test/1", PAYLOAD, SIGNED),
    ],
)
def test_a_signature_of_another_or_for_another_purpose_is_not_believed(
    public: bytes, domain: str, payload: bytes, signature: bytes
) -> None:
    assert not verify(public, domain, payload, signature)


def test_what_is_signed_cannot_be_moved_between_domain_and_payload() -> None:
    assert not verify(ME.public, "test", b"/1" + PAYLOAD, SIGNED)
    assert not verify(ME.public, "test/1w", PAYLOAD[1:], SIGNED)


@settings(max_examples=200)
@given(st.integers(0, 64 * 8 - 1))
def test_no_bit_of_a_signature_can_be_changed(bit: int) -> None:
    forged = bytearray(SIGNED)
    forged[bit // 8] ^= 1 << bit % 8
    assert not verify(ME.public, "test/1", PAYLOAD, bytes(forged))


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "node.key"
    made = load(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load(path).id == made.id
    assert path.read_text().strip() not in (made.id, made.public.hex())


def test_a_key_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        load(tmp_path / "node.key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "node.key").stat().st_mode) == 0o600


def test_two_keys_are_never_the_same(tmp_path: Path) -> None:
    assert len({load(tmp_path / f"{k}.key").id for k in range(20)}) == 20


def _id(path: Path) -> str:
    return load(path).id


def test_processes_that_start_at_once_have_one_key_or_are_told(tmp_path: Path) -> None:
    """The file is made by one of them; another sees it whole, or sees that it is not a key yet."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = [pool.apply_async(_id, (tmp_path / "node.key",)) for _ in range(8)]
        ids = set()
        for one in found:
            try:
                ids.add(one.get(30.0))
            except IdentityError as error:
                assert "must hold 64 hexadecimal characters" in str(error)
    assert ids == {load(tmp_path / "node.key").id}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o666])
def test_a_key_that_others_can_read_is_refused_with_the_way_out(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "node.key"
    load(path)
    path.chmod(mode)
    with pytest.raises(IdentityError, match=f"its mode is {mode:04o}; chmod 600 {path}"):
        load(path)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"00" * 31, b"00" * 33, b"zz" * 32, b"\xff" * 64, b"-----BEGIN PRIVATE KEY-----\n"]
)
def test_a_file_that_holds_no_key_is_refused_and_never_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match=r"node\.key: must hold 64 hexadecimal characters, found \d+ of another kind; restore"):
        load(path)
    assert path.read_bytes() == content


def test_an_error_about_a_key_does_not_show_it(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    path.write_text("5ec2e7" * 11)
    path.chmod(0o600)
    with pytest.raises(IdentityError) as refused:
        load(path)
    assert "5ec2e7" not in str(refused.value)
