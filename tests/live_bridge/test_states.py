"""What nodes and their ledger say is read whole, or refused with the URL that said it."""

from typing import Any

import orjson
import pytest
import uvloop

from live_bridge.http.client import Client
from live_bridge.http.message import ConnectFailed, Limits, Request, Response
from live_bridge.http.server import Server
from live_bridge.slip import Slipped
from live_bridge.states import State, state_of, states_of, wealth_of

SAID: dict[str, Any] = {
    "id": "ab",
    "name": "n",
    "balances": {"credit": 97.5, "stake": 4, "escrow": 0.5, "unbonding": 0},
    "counters": {"offers_made": 3},
    "totals": {"arrived": 9},
    "actions": {"4-3-2": 5, "paper": 2},
    "more": "than is read",
}


def asked(answers: dict[str, tuple[int, bytes]], ask: Any) -> Any:
    async def main() -> Any:
        async def answer(request: Request, response: Response) -> None:
            status, body = answers.get(request.path, (404, b"{}"))
            response.send(status, [], body)

        server, client = Server(answer, Limits(), lambda _: None), Client()
        try:
            return await ask(client, f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}")
        finally:
            await client.close()
            server.close()

    return uvloop.run(main())


def test_a_state_is_read_as_a_node_says_it() -> None:
    found: State = asked({"/market/v1/state": (200, orjson.dumps(SAID))}, state_of)
    assert (found.id, found.name, found.balances["credit"], found.counters) == ("ab", "n", 97.5, {"offers_made": 3})
    assert found.levels({"4-3-2": 1}).tolist() == [[0, 0, 0, 0, 4], [0, 0, 0, 4, 0], [0, 0, 4, 0, 0]]
    assert found.ruled({}) == 2 and found.totals == {"arrived": 9}


def test_several_nodes_answer_in_the_order_in_which_they_were_asked() -> None:
    async def both(client: Client, url: str) -> list[State]:
        return await states_of(client, [url, url])

    assert [one.id for one in asked({"/market/v1/state": (200, orjson.dumps(SAID))}, both)] == ["ab", "ab"]


@pytest.mark.parametrize("name", ["id", "name", "balances", "counters", "totals", "actions"])
def test_a_state_without_an_entry_is_refused_by_name(name: str) -> None:
    body = orjson.dumps({key: value for key, value in SAID.items() if key != name})
    with pytest.raises(Slipped, match=rf"http://127.0.0.1:\d+/market/v1/state: has no '{name}'; is this a node of this version?"):
        asked({"/market/v1/state": (200, body)}, state_of)


@pytest.mark.parametrize(("status", "body", "text"), [(503, b"{}", "status must be 200, got 503"), (200, b"<html>", "has no ")])
def test_something_else_than_a_node_is_refused(status: int, body: bytes, text: str) -> None:
    with pytest.raises(Slipped, match=text):
        asked({"/market/v1/state": (status, body)}, state_of)


def test_a_node_that_is_gone_is_an_error_of_http() -> None:
    async def gone(client: Client, _: str) -> State:
        return await state_of(client, "http://127.0.0.1:1")

    with pytest.raises(ConnectFailed):
        asked({}, gone)


def test_wealth_is_all_that_the_ledger_keeps_for_an_account() -> None:
    said = {"accounts": {"ab": [97_500_000, 4_000_000, 250_000, 250_001], "cd": [0, 0, 0, 0]}}
    found = asked({"/market/v1/ledger/accounts": (200, orjson.dumps(said))}, wealth_of)
    assert found == {"ab": pytest.approx(102.000001), "cd": 0.0}


def test_a_ledger_that_is_none_is_refused() -> None:
    with pytest.raises(Slipped, match=r"/market/v1/ledger/accounts: has no 'accounts'"):
        asked({"/market/v1/ledger/accounts": (200, b"{}")}, wealth_of)
