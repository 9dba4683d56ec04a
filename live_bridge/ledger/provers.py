"""Processes that prove orders, so that signatures are checked on every processor.

`python -m live_bridge.ledger.provers NETWORK LEDGER` is one. It reads groups of orders from its standard input, a socket, and says
of each by what name it counts, or why it does not; it ends when the other end is closed, even by kill -9 of the ledger. It decides
nothing that the ledger's own process would not decide, and what it does not answer is proved there.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from struct import Struct

import orjson

from live_bridge.ledger.journal import Receipt, refusal
from live_bridge.ledger.orders import Checked, Order, OrderError, Realm, check, decode, encode, prove

MOST = 2
"""Provers of a ledger: two check as many signatures as one process can write settlements for."""
PATIENCE_S = 10.0
"""A prover that takes longer for a group hangs: a group takes milliseconds."""
AGAIN_S = 1.0
"""Time between two starts of a prover."""
WORTH = 1000
"""Orders that cost about as much time as to start a prover: it is started when it has missed that many, and seldom in vain."""
_LENGTH = Struct(">I")


def check_each(orders: Sequence[Order], realm: Realm) -> list[Checked | Receipt]:
    """Prove orders in this process; a refusal stands for each that does not count."""
    out: list[Checked | Receipt] = []
    for order in orders:
        try:
            out.append(check(order, realm))
        except OrderError as error:
            out.append(refusal(error.order_id, "", f"{error.code}: {error}"))
    return out


def seats() -> int:
    """Say how many provers are worth having: none on one processor, where they would only take its time."""
    processors = len(os.sched_getaffinity(0))
    return 0 if processors == 1 else min(processors, MOST)


class Prover:
    """One process, started when it has become worth it; used by one thread at a time."""

    def __init__(self, realm: Realm, worth: int = WORTH) -> None:
        """Prove the orders of one ledger, alone until `worth` of them have come."""
        self.losses = 0
        """Processes that died or hung."""
        self._realm = realm
        self._missing = worth
        self._process: subprocess.Popen[bytes] | None = None
        self._wire: socket.socket | None = None
        self._ready = False
        self._closed = False
        self._started_s = -AGAIN_S

    @property
    def pid(self) -> int | None:
        """Of the process, once it proves orders."""
        return self._process.pid if self._process is not None and self._ready else None

    def prove(self, orders: Sequence[Order]) -> list[Checked | Receipt]:
        """Prove orders there; here when the process is not up yet, has died or hangs."""
        self._missing -= len(orders)
        if self._is_up():
            try:
                bodies = [encode(order) for order in orders]
                said = self._ask(bodies)
            except orjson.JSONEncodeError:
                pass  # one of them has no shape that could be written; which one is found out here
            except OSError:
                self.losses += 1
                self._end()
            else:
                return [_read(*each) for each in zip(orders, bodies, said, strict=True)]
        return check_each(orders, self._realm)

    def close(self) -> None:
        """End the process; a thread that waits for it goes on by itself."""
        self._closed = True
        self._end()

    def _is_up(self) -> bool:
        """Look whether the process has said that it is ready; start it when it is not there."""
        if self._wire is None:
            self._start()
        elif not self._ready:
            with suppress(BlockingIOError):
                self._wire.setblocking(False)
                self._ready = self._wire.recv(1) == b"+"
                if not self._ready:  # it has ended before it was
                    self.losses += 1
                    self._end()
        return self._ready

    def _start(self) -> None:
        if self._closed or self._missing > 0 or time.monotonic() < self._started_s + AGAIN_S:
            return
        self._started_s = time.monotonic()
        ours, theirs = socket.socketpair()
        words = [sys.executable, "-m", "live_bridge.ledger.provers", self._realm.network, self._realm.ledger]
        environment = {**os.environ, "RULES": "python"}
        with theirs:
            self._process = subprocess.Popen(words, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=environment)
        self._wire = ours

    def _ask(self, bodies: Sequence[bytes]) -> list[list[str]]:
        assert self._wire is not None
        self._wire.settimeout(PATIENCE_S)
        send(self._wire, b"[" + b",".join(bodies) + b"]")
        said: list[list[str]] = orjson.loads(receive(self._wire))
        return said

    def _end(self) -> None:
        self._ready = False
        wire, self._wire = self._wire, None
        process, self._process = self._process, None
        if wire is not None:
            with suppress(OSError):  # the other end may be gone
                wire.shutdown(socket.SHUT_RDWR)
            wire.close()
        if process is not None:
            process.kill()
            process.wait()


def _read(order: Order, body: bytes, said: list[str]) -> Checked | Receipt:
    """Take a prover's word: a name and an account, or code, text and name of a refusal."""
    if len(said) == 2:
        return Checked(order, said[1], bytes.fromhex(said[0]), body)
    code, text, name = said
    return refusal(name, "", f"{code}: {text}")


def send(wire: socket.socket, content: bytes) -> None:
    """Send a message: its length (4 bytes, big-endian) and its bytes.

    errors   OSError
    """
    wire.sendall(_LENGTH.pack(len(content)))
    wire.sendall(content)


def receive(wire: socket.socket) -> bytearray:
    """Wait for a message.

    errors   OSError when the other end is closed, or the wire's time is over
    """
    (length,) = _LENGTH.unpack(_exactly(wire, _LENGTH.size))
    return _exactly(wire, length)


def _exactly(wire: socket.socket, size: int) -> bytearray:
    content = bytearray(size)
    rest = memoryview(content)
    while rest:
        taken = wire.recv_into(rest)
        if taken == 0:
            raise ConnectionResetError("the other end is closed")
        rest = rest[taken:]
    return content


def answer(value: list[object], realm: Realm) -> list[list[str]]:
    """Say of each order, as parsed JSON: its name and account, or code, text and name of a refusal."""
    out = []
    for each in value:
        try:
            name, account = prove(decode(each), realm)
            out.append([name.hex(), account])
        except OrderError as error:
            out.append([error.code, str(error), error.order_id])
    return out


def main(words: list[str]) -> int:
    """Prove what comes until the other end is closed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are meant for the ledger, whose end this waits for
    realm = Realm(*words)
    with socket.socket(fileno=0) as wire, suppress(ConnectionError):
        wire.sendall(b"+")
        while True:
            send(wire, orjson.dumps(answer(orjson.loads(receive(wire)), realm)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
