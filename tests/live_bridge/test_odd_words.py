"""What a stranger says nearly right is read as nothing, or refused by the error that its reader names: nothing else comes of it.

Each reader is given a good message in which every part in turn is left out, or is one of ODD instead.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from live_bridge.backends.question import Refused, question_of
from live_bridge.bench import asked_of
from live_bridge.desk import answer_text, delivery_of, question_text, vote_of
from live_bridge.facts import BadRequestError, read
from live_bridge.host import offer_of, work_of
from live_bridge.http.message import Request
from live_bridge.ledger.orders import OrderError, check, decode
from live_bridge.peers import rows
from live_bridge.peers.envelope import Message
from live_bridge.purse import duel_won, proof_of, proven
from live_bridge.relay import answer_tokens
from tests.live_bridge.test_desk import JUDGE, SIDES, cast
from tests.live_bridge.test_purse import ANN, ME, Scene, fought, play

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 1e308, 2**63, 2**64 - 1, "", "x", "é", "0" * 64, "\0", "\n"),
    *([], [None], [[]], {}, {"a": 1}),
)
SENDER = "5" * 40


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All parts of a message, itself first."""
    yield above
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*above, key))


def replaced(value: Any, place: tuple[Any, ...], part: Any) -> Any:
    if not place:
        return part
    out = copy.copy(value)
    out[place[0]] = replaced(value[place[0]], place[1:], part)
    return out


def without(value: Any, place: tuple[Any, ...]) -> Any:
    out = copy.deepcopy(value)
    above = out
    for key in place[:-1]:
        above = above[key]
    del above[place[-1]]
    return out


def nearly(message: Any) -> Iterator[Any]:
    """Everything that is one slip away from a message."""
    for place in places(message):
        yield from (replaced(message, place, odd) for odd in ODD)
        if place:
            yield without(message, place)


def letter(value: Any) -> Message:
    return Message(SENDER, b"", b"", orjson.dumps(value), b"")


def request(value: Any) -> Request:
    return Request("POST", "/v1/completions", "", [], orjson.dumps(value), "")


def work(value: Any) -> object:
    head = orjson.dumps(value)
    return work_of(len(head).to_bytes(4, "big") + head + b"{}")


def text_of_stream(value: Any) -> str:
    return answer_text(b"data: " + orjson.dumps(value) + b"\n\ndata: [DONE]\n\n")


def question(value: Any) -> str:
    """A question is only asked for where the front has taken the body, which is an object then."""
    return question_text(orjson.dumps(value)) if isinstance(value, dict) else ""


ANSWERS = (
    {"choices": [{"text": "yes"}]},
    {"choices": [{"message": {"content": "yes"}}]},
    {"choices": [{"delta": {"content": [{"type": "text", "text": "yes"}]}}]},
)
ASKED = (
    {"messages": [{"role": "user", "content": "why?"}], "stream": True, "stream_options": {"include_usage": True}},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "why?"}]}], "max_tokens": 3, "n": 2, "model": "m"},
    {"prompt": "why?", "max_completion_tokens": 3},
    {"prompt": [1, 2]},
    {"prompt": [[1], [2]]},
)
DELIVERY = {"delivery": {"public": "00" * 32, "tokens": 1, "digest": "11" * 32, "signature": "22" * 64}}
DUEL = {"duel": "d", "executors": ["a", "b"], "question": "q", "a": "x", "b": "y", "proof": {}}
OFFER = {"id": f"{SENDER[:12]}.1", "prompt_tokens": 1, "forecast_tokens": 2, "remaining_s": 1.0}
READERS: list[tuple[Callable[[Any], object], Any]] = [
    *((lambda value: answer_text(orjson.dumps(value)), answer) for answer in ANSWERS),
    *((text_of_stream, answer) for answer in ANSWERS),
    (lambda value: answer_tokens(orjson.dumps(value)), {"usage": {"completion_tokens": 3}}),
    *((question, asked) for asked in ASKED),
    (lambda value: asked_of(letter(value)), DUEL),
    (lambda value: offer_of(letter(value)), OFFER),
    (work, {"id": "i", "path": "/v1/completions", "headers": [["a", "b"]], "proof": {}}),
    (delivery_of, DELIVERY),
]


@pytest.mark.parametrize("at", range(len(READERS)))
def test_nothing_that_a_peer_says_raises(at: int) -> None:
    reader, good = READERS[at]
    assert reader(good), "the message that the others are close to is read"
    for said in nearly(good):
        reader(said)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("asked", ASKED)
def test_a_users_body_is_read_or_refused_with_a_status(asked: Any, chat: bool) -> None:
    read(request(asked), 16)
    for said in nearly(asked):
        try:
            assert read(request(said), 16).forecast > 0
        except BadRequestError as error:
            assert error.status == 400
        try:
            assert question_of(orjson.dumps(said), chat=chat).choices > 0
        except Refused as refusal:
            assert refusal.status == 400


def same(a: Any, b: Any) -> bool:
    """Equal to the last byte: in Python, True is 1."""
    return orjson.dumps(a) == orjson.dumps(b)


def test_no_part_of_a_proof_of_payment_can_be_another() -> None:
    async def act(made: Scene) -> None:
        proof, founding = proof_of(await made.held()), made.far.founding
        for said in nearly(proof):
            assert said == proof or isinstance(proven(said, founding, ME.id, ANN.id), str), said

    play(act)


def test_no_part_of_the_proof_of_a_duel_can_be_another() -> None:
    async def act(made: Scene) -> None:
        proof, _ = await fought(made)
        for said in nearly(proof):
            assert said == proof or duel_won(said, made.far.founding, ANN.id) is None, said

    play(act)


def test_no_part_of_a_signed_order_can_be_another() -> None:
    async def act(made: Scene) -> None:
        await fought(made)
        kinds = {order.kind: orjson.loads(orjson.dumps(order)) for order in made.far.sent}
        assert set(kinds) >= {"hold", "settle", "duel"}
        for order in kinds.values():
            check(decode(order), made.far.founding.realm)
            for said in nearly(order):
                if not same(said, order):
                    with pytest.raises(OrderError):
                        check(decode(said), made.far.founding.realm)

    play(act)


def test_no_part_of_a_vote_can_be_another() -> None:
    for said in nearly(cast()):
        assert same(said, cast()) or vote_of(said, JUDGE.id, "test", "ab" * 20, SIDES) is None, said


def test_no_part_of_a_row_is_of_another_kind() -> None:
    row = rows.Row(JUDGE.public, "http://10.0.0.5:9000", "node", ("qwen3-8b",), 7, 1.5, 0.25, 1.0, 3, 1, leaving=False)
    text = rows.write(row)
    for said in nearly(orjson.loads(text)):
        found = rows.read(orjson.dumps(said).decode())
        assert found is None or same(orjson.loads(rows.write(found)), said | floats(said)), said


def floats(said: Any) -> dict[str, float]:
    """Numbers of a row that are written with a point, however they came."""
    return {name: float(said[name]) for name in ("wait_s", "usage", "accepts")}
