"""Canonical bytes: what is signed or hashed is packed here, so that no two different messages have the same bytes."""


def pack(*fields: bytes | str | int) -> bytes:
    """Join fields, each behind its length; an integer is written in decimal, text in UTF-8.

    errors   TypeError for any other kind: a float has more than one decimal form
    """
    out = bytearray()
    for field in fields:
        if isinstance(field, bool) or not isinstance(field, (bytes, str, int)):
            raise TypeError(f"pack: a field must be bytes, str or int, got {type(field).__name__}")
        raw = field if isinstance(field, bytes) else str(field).encode()
        out += len(raw).to_bytes(4, "big")
        out += raw
    return bytes(out)
