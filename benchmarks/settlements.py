"""Durable settlements: `python -m benchmarks.settlements [--quick] [--folder PATH] [--json PATH]`.

A settlement is a hold and its settlement: two signed orders and a signed proof of delivery, all three verified, each order
confirmed after a commit that was synced to the disk. Side by side: the ledger, which commits in groups; the same with one
transaction for each order; and the parts of the work alone, since on two processors the signatures are most of it.
"""

import asyncio
import hashlib
import itertools
import os
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import Meter, Rate, command_line, in_turn, report, seconds, show, spread
from live_bridge.config import terms_named
from live_bridge.identity import Identity
from live_bridge.ledger.ledger import ALONE, LocalLedger
from live_bridge.ledger.memory import MemoryStore
from live_bridge.ledger.orders import Author, Delivery, Hold, Open, Order, Realm, Settle, check
from live_bridge.ledger.provers import seats
from live_bridge.ledger.sqlite import SqliteStore
from live_bridge.ledger.store import Store
from live_bridge.peers.frames import RECEIPT_DOMAIN, Receipt, receipt_bytes

NETWORK = "benchmark"
NODES = 8
ASKING = 512
"""Settlements under way at once."""
TARGET = 5000
AMOUNT_MICRO, TTL_US, TOKENS = 1000, 900_000_000, 10
LEDGER = Identity(b"L" * 32)
PEOPLE = [Identity(bytes([number]) * 32) for number in range(1, NODES + 1)]


class Pair(NamedTuple):
    """The two orders of a settlement."""

    hold: Order
    settle: Order


def pairs(count: int) -> list[Pair]:
    """Write and sign the orders of `count` settlements between NODES accounts."""
    realm = Realm(NETWORK, LEDGER.id)
    authors = [Author(identity, realm) for identity in PEOPLE]
    digest = hashlib.sha256(b"an answer").digest()
    out = []
    for k in range(count):
        author, payee, name = authors[k % NODES], PEOPLE[(k + 1) % NODES], secrets.token_hex(16)
        signature = payee.sign(RECEIPT_DOMAIN, receipt_bytes(NETWORK, name, TOKENS, digest))
        proof = Delivery.of(payee.public, Receipt(name, TOKENS, digest, signature))
        hold = author.write(Hold(name, payee.id, AMOUNT_MICRO, TTL_US, "work", name))
        out.append(Pair(hold, author.write(Settle(name, AMOUNT_MICRO, TOKENS, proof))))
    return out


async def confirmed(
    submit: Callable[[Order], Awaitable[bool]], waiting: Sequence[Pair], asking: int, helpers: Sequence[int] = ()
) -> Rate:
    """Settle all, `asking` at once; returns settlements per second, with the CPU time of helping processes."""
    queue = iter(waiting)

    async def ask() -> None:
        for pair in queue:
            if not (await submit(pair.hold) and await submit(pair.settle)):
                raise SystemExit("settlements: the ledger has refused an order of the benchmark")

    with Meter(helpers) as meter:
        await asyncio.gather(*(ask() for _ in range(asking)))
    return Rate(len(waiting) / meter.wall_s, len(waiting) / meter.cpu_s)


def settled(store: Store, waiting: Sequence[Pair], asking: int) -> Rate:
    """Settle through a ledger of this process."""

    async def run() -> Rate:
        ledger = await LocalLedger.start(
            store, LEDGER, NETWORK, terms_named("paper"), speed=1.0, unix_s=time.time, count=print, tick_s=inf
        )  # fmt: skip
        openings = [Author(identity, ledger.realm).write(Open()) for identity in PEOPLE]
        await ledger.submit_all(openings)
        while asking >= ALONE and len(ledger.provers()) < seats():  # a ledger that has been busy has started them
            await ledger.submit_all(openings * ALONE)  # the same again: no further effect
            await asyncio.sleep(0.02)

        async def submit(order: Order) -> bool:
            return (await ledger.submit(order)).accepted

        try:
            return await confirmed(submit, waiting, asking, ledger.provers())
        finally:
            await ledger.close()

    return asyncio.run(run())


def verified(waiting: Sequence[Pair]) -> Rate:
    """Verify the three signatures of each settlement, on one processor, and do nothing else."""
    realm = Realm(NETWORK, LEDGER.id)
    with Meter() as meter:
        for order in itertools.chain.from_iterable(waiting):
            check(order, realm)
    return Rate(len(waiting) / meter.wall_s, len(waiting) / meter.cpu_s)


def sync_s(folder: Path) -> float:
    """Time one write and sync of 4 KiB on this disk (s, median)."""
    handle = os.open(folder / "sync", os.O_WRONLY | os.O_CREAT, 0o600)

    def write() -> None:
        os.pwrite(handle, bytes(4096), 0)
        os.fdatasync(handle)

    taken = spread(seconds(write, 100)).median
    os.close(handle)
    return taken


def measure(folder: Path, count: int, repeats: int) -> dict[str, list[Rate]]:
    """Measure all, in turn."""
    fresh = itertools.count()

    def file() -> SqliteStore:
        return SqliteStore(folder / f"{next(fresh)}.sqlite")

    few = count // 10
    runs = {
        "grouped": lambda: settled(file(), pairs(count), ASKING),
        "one by one": lambda: settled(file(), pairs(few), 1),
        "in memory": lambda: settled(MemoryStore(), pairs(count), ASKING),
        "signatures alone": lambda: verified(pairs(few)),
    }
    return in_turn(runs, repeats)


def main() -> None:
    """Measure and report."""
    parser = command_line("settlements", __doc__, "few and small repeats")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the system's folder for temporary files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        found = measure(folder, 2000 if args.quick else 10_000, 2 if args.quick else 5)
        disk_s = sync_s(folder)
    walls = {name: spread([rate.wall for rate in rates]) for name, rates in found.items()}
    processors = {name: spread([1e6 / rate.cpu for rate in rates]) for name, rates in found.items()}
    rows = [[name, walls[name].text(), processors[name].text(".0f")] for name in found]
    show(f"settlements (a sync of this disk takes {1e6 * disk_s:.0f} us)", ["", "a second", "us of CPU each"], rows)
    figures = {name.replace(" ", "_"): walls[name]._asdict() for name in found}
    cpu = {name.replace(" ", "_"): processors[name].median for name in found}
    ratio = walls["grouped"].median / walls["one by one"].median
    more = {"cpu_us": cpu, "sync_us": 1e6 * disk_s, "target_s": TARGET, "grouped_over_one_by_one": ratio}
    report("settlements", {"settlements_s": figures, **more}, args.json)


if __name__ == "__main__":
    main()
