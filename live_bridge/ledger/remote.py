"""A ledger behind a URL, as a node sees it: signed orders out, signed receipts in, and nothing believed that is not signed."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import orjson

from live_bridge.http.message import HttpClient, HttpError
from live_bridge.identity import verify
from live_bridge.ledger.journal import (
    HEAD,
    Balances,
    Founding,
    JournalError,
    Receipt,
    from_json,
    is_signed,
    read_founding,
    refusal,
    view_payload,
)
from live_bridge.ledger.ledger import AccountView, View
from live_bridge.ledger.orders import Order, OrderError, encode, order_id, shape
from live_bridge.ledger.store import StoreError

PREFIX = "/market/v1/ledger/"
MOST_BYTES = 64 * 2**20
"""Of an answer."""
MOST = 200
"""Orders in one body."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
ANSWER_S = 10.0


class _Waiting(NamedTuple):
    order: Order
    done: asyncio.Future[Receipt]
    until_s: float


class RemoteLedger:
    """Sends the orders that wait in one body, one body at a time; asks again while the ledger is away, which is safe."""

    def __init__(self, client: HttpClient, url: str, founding: Founding, patience_s: float) -> None:
        """Use `connect` instead."""
        self.founding = founding
        self._client = client
        self._url = url.rstrip("/")
        self._patience_s = patience_s
        self._ledger = bytes.fromhex(founding.public)
        self._place = 0
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._open: set[asyncio.Future[Receipt]] = set()
        self._sender = asyncio.create_task(self._send_forever())
        self._sender.add_done_callback(self._ended)

    @classmethod
    async def connect(cls, client: HttpClient, url: str, *, network: str, patience_s: float) -> Self:
        """Learn who the ledger is.

        network      that it must be the ledger of
        patience_s   seconds on the wall for which an order is sent again while the ledger does not answer
        errors       StoreError when it does not answer, or as another network's
        """
        url = url.rstrip("/")
        try:
            value = await read_json(client, "GET", f"{url}{PREFIX}head", b"")
            founding = read_founding(value["founding"].encode())
        except (HttpError, JournalError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{url}: no ledger answers there: {error}") from error
        if founding.network != network:
            raise StoreError(
                f"{url}: is the ledger of network {founding.network!r}, not of {network!r}; set `network`, or ask another"
            )
        return cls(client, url, founding, patience_s)

    async def submit(self, order: Order) -> Receipt:
        """See Ledger.

        errors   StoreError: whether it was done is not known; ask again
        """
        try:
            shape(order)
        except OrderError as error:
            return refusal("", "", f"{error.code}: {error}")
        if self._sender.done():
            raise StoreError(f"{self._url}: the way to the ledger is closed; orders come too late")
        done: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self._open.add(done)
        done.add_done_callback(self._open.discard)
        self._waiting.put_nowait(_Waiting(order, done, time.monotonic() + self._patience_s))
        return await done

    async def submit_all(self, orders: Sequence[Order]) -> list[Receipt]:
        """See Ledger."""
        return list(await asyncio.gather(*(self.submit(order) for order in orders)))

    async def accounts(self) -> dict[str, AccountView]:
        """See Ledger.

        errors   StoreError
        """
        try:
            view = read_view(await read_json(self._client, "GET", f"{self._url}{PREFIX}accounts", b""), self.founding)
        except (HttpError, JournalError) as error:
            raise StoreError(f"{self._url}: {error}") from error
        if view.head.place < self._place:
            raise StoreError(f"{self._url}: shows accounts of entry {view.head.place}, and has shown entry {self._place} before")
        self._place = view.head.place
        return view.accounts

    def signed(self, receipt: Receipt) -> Receipt:
        """See Ledger: it has come with its signature."""
        return receipt

    async def close(self) -> None:
        """End. Whoever waits for an order is told that it is not known whether it was done."""
        self._sender.cancel()
        await asyncio.wait((self._sender,))

    def _ended(self, task: asyncio.Task[None]) -> None:
        fault = None if task.cancelled() else task.exception()
        for done in tuple(self._open):
            if not done.done():
                done.set_exception(fault or StoreError(f"{self._url}: closed before the order was done; ask again"))

    async def _send_forever(self) -> None:
        pause_s = FIRST_PAUSE_S
        kept: list[_Waiting] = []
        while True:
            group = kept or [await self._waiting.get()]
            while not self._waiting.empty() and len(group) < MOST:
                group.append(self._waiting.get_nowait())
            try:
                await self._send(group)
                kept, pause_s = [], FIRST_PAUSE_S
            except (HttpError, JournalError) as error:
                kept = self._patient(group, error)
                await asyncio.sleep(pause_s)
                pause_s = min(2.0 * pause_s, LONGEST_PAUSE_S)

    def _patient(self, group: Sequence[_Waiting], error: OSError | ValueError) -> list[_Waiting]:
        """Tell those who have waited long enough; returns the others."""
        now_s = time.monotonic()
        for each in group:
            if each.until_s <= now_s and not each.done.done():
                each.done.set_exception(StoreError(f"{self._url}: {error}; whether the order was done is not known: send it again"))
        return [each for each in group if not each.done.done()]

    async def _send(self, group: Sequence[_Waiting]) -> None:
        body = b'{"orders":[' + b",".join(encode(each.order) for each in group) + b"]}"
        value = await read_json(self._client, "POST", f"{self._url}{PREFIX}orders", body)
        receipts = value.get("receipts") if isinstance(value, dict) else None
        if not isinstance(receipts, list) or len(receipts) != len(group):
            raise JournalError("the ledger's answer has not one receipt for each order")
        for each, raw in zip(group, receipts, strict=True):
            receipt = self._believed(each.order, raw)
            if not each.done.done():
                each.done.set_result(receipt)

    def _believed(self, order: Order, raw: Any) -> Receipt:
        try:
            receipt = Receipt(**raw)
        except TypeError as error:
            raise JournalError(f"a receipt cannot be read: {error}") from None
        if not is_signed(receipt, self.founding.network, self._ledger):
            raise JournalError("a receipt is not signed by the ledger")
        if receipt.order_id != order_id(order, self.founding.realm).hex():
            raise JournalError(f"a receipt is for another order ({receipt.order_id or 'none'})")
        return receipt


async def read_json(client: HttpClient, method: str, url: str, body: bytes) -> Any:
    """Ask for JSON.

    errors   HttpError; JournalError when the answer is an error, or no JSON
    """
    headers = [(b"content-type", b"application/json")] if body else []
    reply = await client.request(method, url, headers, body, first_byte_s=ANSWER_S)
    with reply:
        whole = await reply.body(MOST_BYTES)
    if reply.status != 200:
        raise JournalError(f"{url}: answered {reply.status}: {whole[:200].decode(errors='replace')}")
    try:
        return orjson.loads(whole)
    except orjson.JSONDecodeError as error:
        raise JournalError(f"{url}: answered with what is no JSON: {error}") from None


def read_view(value: Any, founding: Founding) -> View:
    """Read accounts as the ledger has signed them.

    errors   JournalError
    """
    try:
        head, at_us = from_json(value["head"]), value["at_us"]
        accounts = {str(name): Balances(*row) for name, row in value["accounts"].items()}
        view = View(head, at_us, accounts)
        good = verify(
            bytes.fromhex(founding.public),
            HEAD,
            view_payload(founding.realm, head, at_us, accounts),
            bytes.fromhex(value["signature"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise JournalError(f"accounts cannot be read: {error!r}") from None
    if not good:
        raise JournalError("accounts are not signed by the ledger")
    return view
