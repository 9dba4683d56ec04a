"""Canonical bytes: what is signed or hashed is packed here, so that no two different messages have the same bytes."""

from struct import Struct

_LENGTH = Struct(">I").pack


def pack(*fields: bytes | str | int) -> bytes:
    """Join fields, each behind its length (4 bytes, big-endian); an integer is written in decimal, text in UTF-8.

    errors   TypeError for any other kind: a float has more than one decimal form
    """
    out: list[bytes] = []
    for field in fields:
        if isinstance(field, str):
            raw = field.encode()
        elif isinstance(field, bytes):
            raw = field
        elif type(field) is int:  # a bool is none
            raw = b"%d" % field
        else:
            raise TypeError(f"pack: a field must be bytes, str or int, got {type(field).__name__}")
        out.append(_LENGTH(len(raw)))
        out.append(raw)
    return b"".join(out)
