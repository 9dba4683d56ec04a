"""The ledger's HTTP routes: orders in, signed receipts out; accounts, head and journal for whoever wants to see them.

POST orders    {"orders": [ORDER, ...]} or one ORDER  ->  {"receipts": [RECEIPT, ...]}, in the same order, refusals included
GET  accounts  balances of all, signed, with the head of the journal that they follow from
GET  head      the founding (network, key, terms) and the last entry
GET  journal   ?from=PLACE&most=N: entries
"""

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import orjson

from live_bridge.http.message import Request, Response
from live_bridge.identity import Identity
from live_bridge.ledger.journal import HEAD, Receipt, founding_entry, refusal, to_json, view_payload
from live_bridge.ledger.ledger import LocalLedger
from live_bridge.ledger.orders import Order, OrderError, decode
from live_bridge.ledger.remote import PREFIX
from live_bridge.ledger.store import StoreError

MOST_ORDERS = 1000
MOST_ENTRIES = 1000
_JSON = [(b"content-type", b"application/json")]


class Refused(ValueError):  # noqa: N818 - it says what happened
    """A request that is not the ledger's to answer."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.code = code


class LedgerRoutes:
    """Answers for one ledger of this process."""

    def __init__(self, ledger: LocalLedger, count: Callable[[str], None]) -> None:
        """Take the ledger; `count` is told the reason of every order that cannot be read."""
        self._ledger = ledger
        self._identity: Identity = ledger.identity
        self._count = count
        self._answers = {
            ("POST", "orders"): self._orders,
            ("GET", "accounts"): self._accounts,
            ("GET", "head"): self._head,
            ("GET", "journal"): self._journal,
        }

    async def handle(self, request: Request, response: Response) -> None:
        """Answer a request whose path begins with PREFIX."""
        name = request.path.removeprefix(PREFIX)
        answer = self._answers.get((request.method, name))
        try:
            if answer is None:
                raise _no_route(request.method, name, {known for _, known in self._answers})
            value = await answer(request)
        except Refused as refused:
            _fail(response, refused.status, refused.code, str(refused), [])
        except StoreError as error:
            _fail(response, 503, "ledger_unavailable", str(error), [(b"retry-after", b"1")])
        else:
            response.send(200, _JSON, orjson.dumps(value))

    async def _orders(self, request: Request) -> dict[str, Any]:
        try:
            value = orjson.loads(request.body)
        except orjson.JSONDecodeError as error:
            raise Refused(400, "not_json", f"body: is not JSON: {error}") from None
        many = value.get("orders") if isinstance(value, dict) and "orders" in value else [value]
        if not isinstance(many, list) or not 1 <= len(many) <= MOST_ORDERS:
            raise Refused(400, "orders", f"orders: must be a list of 1 to {MOST_ORDERS} orders")
        read = [self._read(each) for each in many]
        done = iter(await self._ledger.submit_all([each for each in read if isinstance(each, Order)]))
        receipts = [each if isinstance(each, Receipt) else next(done) for each in read]
        return {"receipts": [self._ledger.signed(receipt)._asdict() for receipt in receipts]}

    def _read(self, value: Any) -> Order | Receipt:
        try:
            return decode(value)
        except OrderError as error:
            self._count(error.code)
            return refusal("", "", f"{error.code}: {error}")

    async def _accounts(self, request: Request) -> dict[str, Any]:
        view = await self._ledger.view()
        said = view_payload(self._ledger.realm, view.head, view.at_us, view.accounts)
        accounts = {name: list(row) for name, row in view.accounts.items()}
        signature = self._identity.sign(HEAD, said).hex()
        return {"head": to_json(view.head), "at_us": view.at_us, "accounts": accounts, "signature": signature}

    async def _head(self, request: Request) -> dict[str, Any]:
        founding = founding_entry(self._ledger.founding).body.decode()
        return {"founding": founding, "head": to_json(await self._ledger.store.head())}

    async def _journal(self, request: Request) -> dict[str, Any]:
        asked = parse_qs(request.query)
        first = _number(asked, "from", 0, 2**62)
        most = _number(asked, "most", MOST_ENTRIES, MOST_ENTRIES)
        return {"entries": [to_json(entry) for entry in await self._ledger.store.journal(first, most)]}


def _number(asked: dict[str, list[str]], name: str, usual: int, most: int) -> int:
    text = asked.get(name, [str(usual)])[-1]
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= most):
        raise Refused(400, "query", f"{name}: must be a whole number in [0, {most}], got {text[:40]!r}")
    return int(text)


def _no_route(method: str, name: str, known: set[str]) -> Refused:
    if name in known:
        return Refused(405, "method", f"{PREFIX}{name}: does not answer {method}")
    return Refused(404, "not_found", f"{PREFIX}{name[:40]}: there is only {', '.join(sorted(known))}")


def _fail(response: Response, status: int, code: str, text: str, more: list[tuple[bytes, bytes]]) -> None:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"error": {"message": text, "type": kind, "param": None, "code": code}}
    response.send(status, [*_JSON, *more], orjson.dumps(error))
