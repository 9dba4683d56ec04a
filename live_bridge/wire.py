"""Canonical bytes: what is signed or hashed is packed here, so that no two different messages have the same bytes."""

from struct import Struct

_LENGTH = Struct(">I").pack


def pack(*fields: bytes | str | int) -> bytes:
    """Join fields, each behind its length (4 bytes, big-endian); an integer is written in decimal, text in UTF-8.

    errors   TypeError for any other kind: a float has more than one decimal form
    """
    out: list[bytes] = []
    for field in fields:
        kind = type(field)
        if kind is str:
            raw = field.encode()  # type: ignore[union-attr]
        elif kind is bytes:
            raw = field
        elif kind is int:
            raw = b"%d" % field  # type: ignore[str-format]
        else:
            raise TypeError(f"pack: a field must be bytes, str or int, got {kind.__name__}")
        out.append(_LENGTH(len(raw)))
        out.append(raw)
    return b"".join(out)
