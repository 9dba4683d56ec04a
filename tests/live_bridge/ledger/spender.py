"""A process with a ledger of its own on an engine that it shares: `python -m ...ledger.spender STORE NUMBER PAYERS EACH`.

When told to go, it has every payer pay EACH times 1 credit, all at once; it prints how many payments of each payer were accepted.
"""

import asyncio
import sys
from pathlib import Path

from live_bridge.ledger.orders import Author, Pay
from live_bridge.ledger.postgres import PostgresStore
from live_bridge.ledger.sqlite import SqliteStore
from market.terms import MICRO

from .stage import REALM, ledger_on, person, terms_with

POOR = terms_with(initial_credit=1, initial_stake=0)
PAYEE = 1000


async def main(where: str, number: int, payers: int, each: int) -> None:
    if where.startswith("postgresql:"):
        dsn, _, schema = where.rpartition("#")
        store = await PostgresStore.connect(dsn, schema)
    else:
        store = SqliteStore(Path(where))
    orders = []
    for payer in range(payers):
        author = Author(person(payer), REALM, number * each)
        orders += [author.write(Pay(person(PAYEE).id, MICRO)) for _ in range(each)]
    async with ledger_on(store, terms=POOR) as ledger:
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        receipts = await asyncio.gather(*map(ledger.submit, orders))
    for payer in range(payers):
        own = receipts[payer * each : (payer + 1) * each]
        assert {receipt.reason for receipt in own} <= {"", "insufficient_credit"}
        print(sum(receipt.accepted for receipt in own), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:5])))
