"""Read a request of OpenAI's API as far as an engine's timing depends on it, and refuse what vLLM refuses."""

import math
from typing import Any, NamedTuple

import orjson

COMPLETION_TOKENS = 16
"""Tokens that a completion may have when it states no limit (OpenAI's and vLLM's default)."""
MOST_CHOICES = 128
BYTES_PER_TOKEN = 4
"""Length of text in tokens: a common rule of thumb for English."""
MIMICKED_NOT = ("echo", "suffix", "logprobs", "top_logprobs", "prompt_logprobs", "use_beam_search")
"""Fields that would change an answer in a way that is not emulated."""


class Refused(ValueError):  # noqa: N818 - a refusal is an answer to the client
    """A request that vLLM would refuse, too."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param

    def body(self) -> bytes:
        """Write it in OpenAI's form."""
        kind = {400: "BadRequestError", 404: "NotFoundError", 405: "MethodNotAllowedError"}[self.status]
        return orjson.dumps({"error": {"message": str(self), "type": kind, "param": self.param, "code": self.status}})


class Question(NamedTuple):
    """What decides how long an answer takes."""

    chat: bool
    model: str | None
    prompts: list[int]  # tokens of each prompt
    choices: int  # answers to each prompt
    limit: int | None  # most tokens of an answer; None: what is left of the context
    least: int  # tokens
    ignore_eos: bool
    stream: bool
    usage: bool  # whether a stream ends with the count of tokens


def question_of(body: bytes, *, chat: bool) -> Question:
    """Read the body of /v1/chat/completions or /v1/completions.

    errors   Refused
    """
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"body must be JSON: {error}") from None
    if not isinstance(asked, dict):
        raise Refused(400, f"body must be a JSON object, got {type(asked).__name__}")
    for name in MIMICKED_NOT:
        if _asks(asked.get(name), name):
            raise Refused(400, f"{name} is not emulated; leave it out, or ask a real engine", name)
    model = asked.get("model")
    if model is not None and not isinstance(model, str):
        raise Refused(400, "model must be text", "model")
    stream = _flag(asked, "stream")
    options = asked.get("stream_options")
    if options is not None and not (isinstance(options, dict) and stream):
        raise Refused(400, "stream_options must be an object, and only with stream", "stream_options")
    limit = _count(asked, "max_tokens", 1)
    if chat:
        newer = _count(asked, "max_completion_tokens", 1)
        limit = newer if newer is not None else limit
    elif limit is None:
        limit = COMPLETION_TOKENS
    return Question(
        chat=chat,
        model=model,
        prompts=_messages(asked) if chat else _prompts(asked.get("prompt")),
        choices=_choices(asked),
        limit=limit,
        least=_count(asked, "min_tokens", 0) or 0,
        ignore_eos=_flag(asked, "ignore_eos"),
        stream=stream,
        usage=bool(options and options.get("include_usage")),
    )


def _asks(value: Any, name: str) -> bool:
    """Whether a field asks for anything: completions are asked for the tokens' own probabilities by logprobs=0."""
    return bool(value) or (name == "logprobs" and value is not None and value is not False)


def tokens_of(text: str) -> int:
    """Guess the length of text in tokens, at least one."""
    return max(math.ceil(len(text.encode(errors="replace")) / BYTES_PER_TOKEN), 1)


def _flag(asked: dict[str, Any], name: str) -> bool:
    value = asked.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refused(400, f"{name} must be true or false, got {value!r}", name)
    return bool(value)


def _count(asked: dict[str, Any], name: str, least: int) -> int | None:
    value = asked.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise Refused(400, f"{name} must be a whole number of at least {least}, got {value!r}", name)
    return value


def _choices(asked: dict[str, Any]) -> int:
    choices = _count(asked, "n", 1) or 1
    if choices > MOST_CHOICES:
        raise Refused(400, f"n must be at most {MOST_CHOICES}, got {choices}", "n")
    return choices


def _prompts(prompt: Any) -> list[int]:
    """Tokens of each prompt: text, token ids, or a list of either."""
    if isinstance(prompt, str):
        return [tokens_of(prompt)]
    if isinstance(prompt, list) and prompt:
        if all(type(token) is int for token in prompt):
            return [len(prompt)]
        if all(isinstance(one, str) or (isinstance(one, list) and one and all(type(t) is int for t in one)) for one in prompt):
            return [_prompts(one)[0] for one in prompt]
    raise Refused(400, "prompt must be text, a list of token ids, or a list of either, and not empty", "prompt")


def _messages(asked: dict[str, Any]) -> list[int]:
    """Tokens of a conversation: all its text together."""
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "messages must be a list of messages, and not empty", "messages")
    return [tokens_of("".join(_content(message) for message in messages))]


def _content(message: Any) -> str:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Refused(400, "messages must each be an object with a role", "messages")
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    raise Refused(400, "content of a message must be text or a list of parts", "messages")
