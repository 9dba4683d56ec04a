"""Canonical bytes: no two different messages are packed alike."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live_bridge.wire import pack

FIELDS = st.lists(st.one_of(st.binary(max_size=8), st.text(max_size=8), st.integers()), max_size=5)


def plain(field: bytes | str | int) -> bytes:
    """What a field is worth: text and numbers are what they are written as."""
    return field if isinstance(field, bytes) else str(field).encode()


@given(FIELDS, FIELDS)
def test_different_fields_have_different_bytes(a: list[Any], b: list[Any]) -> None:
    assert (pack(*a) == pack(*b)) == ([plain(field) for field in a] == [plain(field) for field in b])


@given(FIELDS)
def test_fields_can_be_read_back(fields: list[Any]) -> None:
    raw, found = pack(*fields), []
    while raw:
        size = int.from_bytes(raw[:4], "big")
        found.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    assert found == [plain(field) for field in fields]


def test_the_border_between_two_fields_counts() -> None:
    assert len({pack("ab", "c"), pack("a", "bc"), pack("abc"), pack("abc", ""), pack("", "abc")}) == 5


def test_the_form_is_fixed() -> None:
    assert pack("é", b"\x00", 17) == b"\x00\x00\x00\x02\xc3\xa9\x00\x00\x00\x01\x00\x00\x00\x00\x0217"
    assert pack() == b""


@pytest.mark.parametrize("field", [1.0, None, True, ["a"], {"a": 1}, bytearray(b"a")])
def test_what_has_more_than_one_form_is_refused(field: Any) -> None:
    with pytest.raises(TypeError, match=f"pack: a field must be bytes, str or int, got {type(field).__name__}"):
        pack("a", field)
