"""What nodes say to each other: canonical bytes, of which no two different messages have the same, and JSON that may be none."""

from struct import Struct
from typing import Any

import orjson

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


def json_of(raw: bytes | str) -> Any:
    """Read what a stranger says is JSON; None where it is none, or null."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
