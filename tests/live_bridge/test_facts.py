"""What a node reads off a request: sizes, whether it is streamed; and which requests no engine need see."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from live_bridge.facts import FORECAST_HEADER, MOST_TOKENS, BadRequestError, Facts, read
from live_bridge.http.message import Headers, Request

DEFAULT = 1024


def request(body: Any, headers: Headers | None = None) -> Request:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return Request("POST", "/v1/completions", "", headers or [], raw, "127.0.0.1")


def facts(body: Any, headers: Headers | None = None) -> Facts:
    return read(request(body, headers), DEFAULT)


def test_a_request_that_says_nothing_is_forecast_by_the_default() -> None:
    assert facts({}) == Facts(1, DEFAULT, stream=False, model="")


def test_a_prompt_of_token_ids_is_counted() -> None:
    assert facts({"prompt": list(range(77))}).prompt == 77


@pytest.mark.parametrize("prompt", ["x" * 400, ["x" * 200, "y" * 197]])
def test_a_prompt_of_text_is_a_token_for_each_four_bytes(prompt: Any) -> None:
    assert facts({"prompt": prompt}).prompt == len(orjson.dumps({"prompt": prompt})) // 4


def test_a_chat_is_counted_with_all_its_messages() -> None:
    messages = [{"role": "user", "content": "x" * 1000}, {"role": "assistant", "content": "y" * 1000}]
    assert 500 < facts({"messages": messages}).prompt < 520


@pytest.mark.parametrize(
    ("body", "forecast"),
    [
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 9}, 9),
        ({"max_completion_tokens": 9, "max_tokens": 7}, 9),
        ({"max_tokens": None}, DEFAULT),
        ({"max_tokens": 7, "n": 3}, 21),
        ({"n": 3}, 3 * DEFAULT),
        ({"max_tokens": 7, "n": None}, 7),
        ({"max_tokens": 0, "echo": True}, 1),  # the prompt alone: what an engine makes of that is its own business
        ({"max_completion_tokens": 0, "max_tokens": 9}, 1),
        ({"max_tokens": MOST_TOKENS}, MOST_TOKENS),
    ],
)
def test_the_forecast_is_what_may_come_at_most(body: Any, forecast: int) -> None:
    assert facts(body).forecast == forecast


def test_a_client_that_knows_better_is_believed() -> None:
    assert facts({"max_tokens": 500}, [(FORECAST_HEADER, b"33")]).forecast == 33


@pytest.mark.parametrize("hint", [b"", b"0", b"-1", b"3.5", b"many", b"1" * 9, b"\xb2", b"1e3", b" 7"])
def test_a_forecast_that_is_no_number_of_tokens_is_refused(hint: bytes) -> None:
    with pytest.raises(BadRequestError, match=r"market-forecast-tokens: must be an integer in \[1, 10000000\]"):
        facts({}, [(FORECAST_HEADER, hint)])


@pytest.mark.parametrize(("said", "stream"), [(True, True), (False, False), (None, False)])
def test_a_stream_is_one_when_it_is_asked_for(said: Any, stream: bool) -> None:
    assert facts({"stream": said}).stream is stream


def test_the_model_is_named() -> None:
    assert facts({"model": "a/b"}).model == "a/b"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body: must be JSON"),
        (b"{", "body: must be JSON"),
        (b"NaN", "body: must be JSON"),
        (b'{"a": NaN}', "body: must be JSON"),
        (b"\xff", "body: must be JSON"),
        (b"[]", "body: must be a JSON object, got list"),
        (b"null", "body: must be a JSON object, got NoneType"),
        (b'"x"', "body: must be a JSON object, got str"),
        ({"stream": "yes"}, "stream: must be true or false, got str"),
        ({"stream": 1}, "stream: must be true or false, got int"),
        ({"max_tokens": -1}, "max_tokens: must be an integer in "),
        ({"max_tokens": True}, "max_tokens: must be an integer in .*, got True"),
        ({"max_tokens": "7"}, "max_tokens: must be an integer in .*, got '7'"),
        ({"max_tokens": 7.5}, "max_tokens: must be an integer in .*, got 7.5"),
        ({"max_tokens": MOST_TOKENS + 1}, "max_tokens: must be an integer in "),
        ({"max_tokens": [1] * 1000}, r"max_tokens: .*got \[1, 1, .{0,40}$"),
        ({"n": -1}, "n: must be an integer in "),
        ({"n": {}, "max_tokens": 1}, None),
        ({"n": [2]}, "n: must be an integer in "),
    ],
)
def test_a_request_that_no_engine_need_see_is_a_400_with_the_reason(body: Any, message: str | None) -> None:
    if message is None:
        assert facts(body).forecast == 1  # empty, as if it were not there
        return
    with pytest.raises(BadRequestError, match=message) as refused:
        facts(body)
    assert refused.value.status == 400 and len(str(refused.value)) < 200


def test_depth_is_refused_and_not_a_crash() -> None:
    with pytest.raises(BadRequestError, match="body: must be JSON"):
        facts(b"[" * 100_000)


@given(st.binary(max_size=64) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda x: str(x).encode()))
def test_whatever_is_sent_is_read_or_refused(body: bytes) -> None:
    try:
        found = facts(body)
    except BadRequestError:
        return
    assert found.prompt >= 1 and found.forecast >= 1
