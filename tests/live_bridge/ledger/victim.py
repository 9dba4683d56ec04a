"""A process that holds and settles until it is killed: `python -m tests.live_bridge.ledger.victim FILE [MOMENT]`.

It prints every receipt that it was given, as PLACE DIGEST. With a moment it kills itself there: `held` between a hold and its
settlement, `apply` inside a transaction, `commit` at the commit, `answer` after the commit and before anybody was told.
"""

import asyncio
import os
import secrets
import signal
import sys
import time
from pathlib import Path

from live_bridge.ledger.journal import Receipt
from live_bridge.ledger.ledger import LocalLedger
from live_bridge.ledger.orders import Author, Open, Order
from live_bridge.ledger.sqlite import SqliteStore

from .stage import hold, ledger_on, paid, person

PEOPLE, TTL_S = 4, 5.0
AFTER = 20
"""Orders that go well before the moment."""


def die() -> None:
    """End as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


class Victim:
    """Counts down to its moment."""

    def __init__(self, ledger: LocalLedger, moment: str) -> None:
        self.ledger = ledger
        self.moment = moment
        self.done = 0
        store = ledger.store
        assert isinstance(store, SqliteStore)
        write, apply = store._write, ledger._book.apply

        def late_write(orders, now_us, apply):
            out = write(orders, now_us, apply)
            self.at("answer")
            return out

        def late_apply(sheet, orders):
            out = apply(sheet, orders)
            self.at("apply")
            return out

        store._write = late_write
        ledger._book.apply = late_apply
        store._db.set_trace_callback(lambda statement: self.at("commit") if statement == "COMMIT" else None)

    def at(self, moment: str) -> None:
        """Die when it is time."""
        if moment == self.moment and self.done > AFTER:
            die()

    async def submit(self, order: Order) -> Receipt:
        """Submit and say what came of it."""
        receipt = await self.ledger.submit(order)
        assert receipt.accepted, receipt
        self.done += 1
        os.write(1, f"{receipt.place} {receipt.digest}\n".encode())
        return receipt

    async def live(self, origin: Author, payee: Author) -> None:
        """Work until the end."""
        while True:
            name = secrets.token_hex(16)
            await self.submit(origin.write(hold(payee, name, 1000, TTL_S)))
            self.at("held")
            await self.submit(origin.write(paid(payee, name, 700)))


async def main(path: Path, moment: str) -> None:
    async with ledger_on(SqliteStore(path), time.time) as ledger:
        people = [Author(person(k), ledger.realm) for k in range(PEOPLE)]
        victim = Victim(ledger, moment)
        for author in people:
            await victim.submit(author.write(Open()))
        os.write(1, b"ready\n")
        await asyncio.gather(*(victim.live(people[k], people[(k + 1) % PEOPLE]) for k in range(PEOPLE)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""))
