"""What a node reads off a request for an answer: how long it is, how long the answer may get, whether it is streamed.

The body itself is passed on as it came, byte for byte.
"""

from typing import Any, NamedTuple

import orjson

from live_bridge.http.message import Request

PATHS = ("/v1/chat/completions", "/v1/completions")
FORECAST_HEADER = b"market-forecast-tokens"
"""A client that knows how long the answer will be may say so; the engine never sees it."""
BYTES_PER_TOKEN = 4
"""Of English text under usual tokenisers; a forecast needs no more."""
MOST_TOKENS = 10_000_000


class BadRequestError(ValueError):
    """A request that no engine need see; `status` is its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Facts(NamedTuple):
    """Sizes in tokens; `forecast` is an upper bound unless the client has said better."""

    prompt: int
    forecast: int
    stream: bool
    model: str


def read(request: Request, default_max_tokens: int) -> Facts:
    """Read the facts off a request for an answer.

    errors   BadRequestError for a body that is no JSON object or has a field of the wrong kind
    """
    try:
        body = orjson.loads(request.body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(400, f"body: must be JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequestError(400, f"body: must be a JSON object, got {type(body).__name__}")
    stream = body.get("stream", False)
    if not isinstance(stream, bool) and stream is not None:
        raise BadRequestError(400, f"stream: must be true or false, got {type(stream).__name__}")
    return Facts(
        _prompt(body, len(request.body)), _forecast(request, body, default_max_tokens), bool(stream), str(body.get("model", ""))
    )


def _prompt(body: dict[str, Any], size: int) -> int:
    """Tokens of the prompt: counted where they are given as ids, else by the size of the body."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        return len(prompt)
    return max(size // BYTES_PER_TOKEN, 1)


def _forecast(request: Request, body: dict[str, Any], default_max_tokens: int) -> int:
    """Tokens of the answer, of all its choices."""
    hint = request.header(FORECAST_HEADER)
    if hint is not None:
        return _whole(FORECAST_HEADER.decode(), int(hint) if hint.isdigit() and len(hint) < 9 else hint.decode("latin-1"))
    most = body.get("max_completion_tokens")
    if most is None:
        most = body.get("max_tokens")
    # 0 asks for the prompt alone, with `echo`: the engine knows whether it gives that, which takes one step
    tokens = default_max_tokens if most is None else max(_whole("max_tokens", most, 0), 1)
    return tokens * _whole("n", body.get("n") or 1)


def _whole(name: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST_TOKENS:
        raise BadRequestError(400, f"{name}: must be an integer in [{least}, {MOST_TOKENS}], got {value!r:.40}")
    return value
