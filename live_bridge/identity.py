"""Who a node is: an Ed25519 key in a file that only its owner can read, and an id that nobody else can claim."""

import hashlib
import os
from pathlib import Path

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from live_bridge.wire import pack

ID_BYTES = 20
KEY_BYTES = 32
SIGNATURE_BYTES = 64


class IdentityError(ValueError):
    """A key file cannot be used; the text names the file, the rule and the way out."""


class Identity:
    """A key pair and the id that follows from it."""

    def __init__(self, seed: bytes) -> None:
        """Take the 32 secret bytes of an Ed25519 key."""
        self._key = SigningKey(seed)
        self.public = bytes(self._key.verify_key)
        self.id = id_of(self.public)

    def sign(self, domain: str, payload: bytes) -> bytes:
        """Sign `payload` for one purpose: a signature for one domain means nothing in another. Returns 64 bytes."""
        return bytes(self._key.sign(pack(domain, payload)).signature)


def id_of(public: bytes) -> str:
    """Name the owner of a public key (32 bytes): 40 hexadecimal characters of its SHA-256."""
    return hashlib.sha256(public).digest()[:ID_BYTES].hex()


def verify(public: bytes, domain: str, payload: bytes, signature: bytes) -> bool:
    """Whether the owner of `public` has signed `payload` for `domain`; malformed keys and signatures are simply not valid."""
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        VerifyKey(public).verify(pack(domain, payload), signature)
    except BadSignatureError:
        return False
    return True


def load(path: Path) -> Identity:
    """Read a key file, or make it, with mode 0600.

    errors   IdentityError when others can read the file, or it holds no key
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(path)
    seed = bytes(SigningKey.generate())
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(seed.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    return Identity(seed)


def _read(path: Path) -> Identity:
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise IdentityError(f"{path}: a key must be readable by its owner alone, its mode is {mode:04o}; chmod 600 {path}")
    text = path.read_text(encoding="ascii", errors="replace").strip()
    try:
        seed = bytes.fromhex(text)
    except ValueError:
        seed = b""
    if len(seed) != KEY_BYTES:
        raise IdentityError(
            f"{path}: must hold {2 * KEY_BYTES} hexadecimal characters, found {len(text)} of another kind; restore the file"
        )
    return Identity(seed)
