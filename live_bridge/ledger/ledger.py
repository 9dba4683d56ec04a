"""A ledger, in this process or behind a URL: orders in, receipts out. Here: the one in this process, which commits in groups."""

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, Self

from live_bridge.identity import Identity
from live_bridge.ledger.book import Book
from live_bridge.ledger.journal import (
    MICROSECONDS,
    Balances,
    Entry,
    Founding,
    JournalError,
    Receipt,
    found,
    founding_entry,
    read_founding,
    same_ledger,
    sign_receipt,
)  # fmt: skip
from live_bridge.ledger.orders import Checked, Order, Realm
from live_bridge.ledger.provers import Prover, check_each, seats
from live_bridge.ledger.sheet import Row, balances, record_of
from live_bridge.ledger.store import Store, StoreError
from market.ledger import mature
from market.terms import Terms

MOST = 512
"""Orders in one transaction."""
ALONE = 16
"""Fewer orders than this are checked by one thread of this process, so that a small market needs no other."""
AHEAD = 2
"""Groups that are checked while one is being written."""
AccountView = Balances
"""An account as its ledger shows it: credit_micro, stake_micro, unbonding_micro, escrow_micro."""


class Ledger(Protocol):
    """What a node needs of a ledger."""

    @property
    def founding(self) -> Founding:
        """Network, key and terms of the ledger."""

    async def submit(self, order: Order) -> Receipt:
        """Have one order done; returns when its effect is durable. Safe to repeat: the same order has the same receipt."""

    async def submit_all(self, orders: Sequence[Order]) -> list[Receipt]:
        """Have orders done, in this order."""

    async def accounts(self) -> dict[str, AccountView]:
        """Read all accounts."""

    def signed(self, receipt: Receipt) -> Receipt:
        """Give a receipt the ledger's signature, so that others believe it."""

    async def close(self) -> None:
        """Let go of files, threads and connections."""


class View(NamedTuple):
    """All accounts at one moment."""

    head: Entry
    at_us: int
    accounts: dict[str, AccountView]


def matured(rows: Iterable[Row], at_us: int) -> dict[str, AccountView]:
    """Show accounts with the stake that has become free by `at_us` (market microseconds since the founding)."""
    out = {}
    for row in rows:
        record = record_of(row)
        mature(record, at_us / MICROSECONDS)
        out[row.account] = balances(record)
    return out


class _Batch(NamedTuple):
    orders: Sequence[Order]
    done: asyncio.Future[list[Receipt]]


class _Ready(NamedTuple):
    done: asyncio.Future[list[Receipt]]
    checked: list[Checked | Receipt]


class LocalLedger:
    """A ledger on an engine of this process. Orders that arrive while a transaction is under way share the next one."""

    def __init__(
        self,
        store: Store,
        identity: Identity,
        founding: Founding,
        unix_s: Callable[[], float],
        count: Callable[[str], None],
        tick_s: float,
    ) -> None:
        """Use `start` instead."""
        self.store = store
        self.founding = founding
        self.identity = identity
        self._book = Book(founding)
        self._unix_s = unix_s
        self._count = count
        self._waiting: asyncio.Queue[_Batch] = asyncio.Queue()
        self._ready: asyncio.Queue[list[_Ready]] = asyncio.Queue(AHEAD)
        self._open: set[asyncio.Future[list[Receipt]]] = set()
        self._provers = [Prover(founding.realm) for _ in range(seats())]
        self._threads = ThreadPoolExecutor(max(len(self._provers), 1), "ledger-check")
        loops = self._check_forever(), self._write_forever(), self._tick_forever(tick_s)
        self._tasks = tuple(asyncio.create_task(loop) for loop in loops)
        for task in self._tasks:
            task.add_done_callback(self._ended)

    @classmethod
    async def start(
        cls, store: Store, identity: Identity, network: str, terms: Terms, *,
        speed: float, unix_s: Callable[[], float], count: Callable[[str], None], tick_s: float,
    ) -> Self:  # fmt: skip
        """Found a ledger in a store, or go on with the one that is there. It closes the store in the end, and when it cannot start.

        identity   of the ledger
        speed      market seconds per second on the wall; fixed when the ledger is founded
        unix_s     clock on the wall (s)
        count      told the reason of every order that is not looked at, `tick_failed`, and `prover_lost` for a process that died
                   or hung while it checked orders
        tick_s     seconds on the wall between looks for holds whose time is over; infinity = never without an order
        errors     JournalError when it was founded by another key, network or terms; StoreError
        """
        wanted = found(identity, network, terms, unix_s(), speed)
        try:
            entry = await store.found(founding_entry(wanted))
            founding = read_founding(entry.body)
            same_ledger(founding, wanted, "ledger")
        except (JournalError, StoreError):
            await store.close()
            raise
        return cls(store, identity, founding, unix_s, count, tick_s)

    def provers(self) -> list[int]:
        """Name the processes that check orders by now; none before many orders came at once."""
        return [prover.pid for prover in self._provers if prover.pid is not None]

    @property
    def realm(self) -> Realm:
        """Where orders to this ledger count."""
        return self.founding.realm

    def now_us(self) -> int:
        """Market microseconds since the founding."""
        return self.founding.at_us(self._unix_s())

    async def submit(self, order: Order) -> Receipt:
        """See Ledger."""
        return (await self.submit_all((order,)))[0]

    async def submit_all(self, orders: Sequence[Order]) -> list[Receipt]:
        """See Ledger.

        errors   StoreError: whether it was done is not known; ask again
        """
        if any(task.done() for task in self._tasks[:2]):
            raise StoreError("ledger: is closed; orders come too late")
        done: asyncio.Future[list[Receipt]] = asyncio.get_running_loop().create_future()
        self._open.add(done)
        self._waiting.put_nowait(_Batch(orders, done))
        try:
            return await done
        finally:
            self._open.discard(done)

    async def tick(self) -> None:
        """Give back what is held beyond its time."""
        await self.store.write((), self.now_us, self._book.apply)

    async def accounts(self) -> dict[str, AccountView]:
        """See Ledger."""
        return (await self.view()).accounts

    async def view(self) -> View:
        """Read all accounts, and how far the journal had come."""
        at_us = self.now_us()
        holdings = await self.store.holdings(at_us)
        if holdings.due:
            await self.tick()
            holdings = await self.store.holdings(at_us)
        at_us = max(at_us, holdings.head.at_us)
        return View(holdings.head, at_us, matured(holdings.rows, at_us))

    def signed(self, receipt: Receipt) -> Receipt:
        """See Ledger."""
        return sign_receipt(self.identity, self.founding.network, receipt)

    async def close(self) -> None:
        """End. Whoever waits for an order is told that it is not known whether it was done."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for prover in self._provers:
            prover.close()
        self._threads.shutdown()
        await self.store.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        fault = None if task.cancelled() else task.exception()
        if fault is None and not task.cancelled():
            return  # no ticks were asked for
        for done in tuple(self._open):
            if not done.done():
                done.set_exception(fault or StoreError("ledger: was closed before the order was done; ask again"))

    async def _check_forever(self) -> None:
        while True:
            taken = [await self._waiting.get()]
            count = len(taken[0].orders)
            while not self._waiting.empty() and count < MOST:
                taken.append(self._waiting.get_nowait())
                count += len(taken[-1].orders)
            checked = await self._check([order for batch in taken for order in batch.orders])
            group, at = [], 0
            for batch in taken:
                group.append(_Ready(batch.done, checked[at : at + len(batch.orders)]))
                at += len(batch.orders)
            await self._ready.put(group)

    async def _check(self, orders: Sequence[Order]) -> list[Checked | Receipt]:
        run = asyncio.get_running_loop().run_in_executor
        if len(orders) < ALONE or not self._provers:
            out = await run(self._threads, check_each, orders, self.realm)
        else:
            size = -(-len(orders) // len(self._provers))
            parts = [orders[at : at + size] for at in range(0, len(orders), size)]
            asked = (run(self._threads, prover.prove, part) for prover, part in zip(self._provers, parts, strict=True))
            out = [each for part in await asyncio.gather(*asked) for each in part]
            self._count_losses()
        for each in out:
            if isinstance(each, Receipt):
                self._count(each.code)
        return out

    def _count_losses(self) -> None:
        for prover in self._provers:
            for _ in range(prover.losses):
                self._count("prover_lost")
            prover.losses = 0

    async def _tick_forever(self, tick_s: float) -> None:
        while math.isfinite(tick_s):
            await asyncio.sleep(tick_s)
            try:
                await self.tick()
            except StoreError:
                self._count("tick_failed")

    async def _write_forever(self) -> None:
        while True:
            group = await self._ready.get()
            count = sum(len(ready.checked) for ready in group)
            while not self._ready.empty() and count < MOST:
                more = self._ready.get_nowait()
                count += sum(len(ready.checked) for ready in more)
                group += more
            orders = [each for ready in group for each in ready.checked if isinstance(each, Checked)]
            try:
                receipts = iter(await self.store.write(orders, self.now_us, self._book.apply) if orders else ())
            except StoreError as error:
                for ready in group:
                    if not ready.done.done():
                        ready.done.set_exception(StoreError(f"{error}; whether the order was done is not known: send it again"))
                continue
            for ready in group:
                answer = [next(receipts) if isinstance(each, Checked) else each for each in ready.checked]
                if not ready.done.done():
                    ready.done.set_result(answer)
