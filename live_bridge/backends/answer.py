"""Write answers in the JSON of OpenAI's API as vLLM writes it. What an emulated engine says is words without a meaning."""

import re
from typing import Any

import orjson

WORDS = re.findall(
    rb" [a-z]+", b" the market of many small engines answers as fast as one large engine would answer had it the room"
)
"""What is said, again and again; nothing in it has to be escaped in JSON."""
DONE = b"data: [DONE]\n\n"
_LONG = WORDS * 32
_MARK = "\x00"


def words(start: int, count: int) -> list[bytes]:
    """The words of an answer from the `start`-th on, one a token; the same start gives the same words."""
    start %= len(WORDS)
    if start + count <= len(_LONG):
        return _LONG[start : start + count]
    return (WORDS * ((start + count) // len(WORDS) + 1))[start : start + count]


class Form:
    """The form of one answer: chat or completion."""

    def __init__(self, answer_id: str, created: int, model: str, *, chat: bool) -> None:
        """Name the answer.

        created   s since 1970
        """
        self.chat = chat
        self._kind = "chat.completion" if chat else "text_completion"
        self._head = {"id": answer_id, "created": created, "model": model}

    def whole(self, texts: list[str], reasons: list[str], usage: dict[str, int]) -> bytes:
        """Write an answer that is not streamed."""
        choices = [self._choice(index, text, reason) for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))]
        counts = {**usage, "prompt_tokens_details": None, "completion_tokens_details": None}
        rest = {"service_tier": None, "system_fingerprint": None, "usage": counts}
        absent = dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics"))
        if self.chat:
            absent |= dict.fromkeys(("prompt_logprobs", "prompt_token_ids", "prompt_text"))
        return orjson.dumps({**self._opening(""), "choices": choices, **rest, **absent})

    def _opening(self, suffix: str) -> dict[str, Any]:
        kind = self._kind + suffix if self.chat else self._kind
        return {"id": self._head["id"], "object": kind, "created": self._head["created"], "model": self._head["model"]}

    def _choice(self, index: int, text: str, reason: str) -> dict[str, Any]:
        said: dict[str, Any] = {"text": text}
        absent = dict.fromkeys(("token_ids", "routed_experts"))
        if self.chat:
            silent = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
            said = {"message": {"role": "assistant", "content": text, **silent}}
        else:
            absent |= dict.fromkeys(("prompt_logprobs", "prompt_token_ids"))
        return {"index": index, **said, "logprobs": None, "finish_reason": reason, "stop_reason": None, **absent}

    def first(self, index: int) -> bytes:
        """Write what a chat's stream begins with."""
        if not self.chat:
            return b""
        choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        absent = {"prompt_token_ids": None, "prompt_text": None}
        return b"data: %b\n\n" % orjson.dumps({**self._opening(".chunk"), "choices": [choice], **absent})

    def pieces(self, index: int) -> tuple[bytes, bytes]:
        """Write an event in two halves: a plain word stands between them."""
        head, tail = self.last(index, _MARK, None).split(orjson.dumps(_MARK)[1:-1])
        return head, tail

    def last(self, index: int, text: str, reason: str | None) -> bytes:
        """Write the event with the last words of a choice."""
        return self._event(index, {"content": text} if self.chat else {"text": text}, reason)

    def _event(self, index: int, said: dict[str, str], reason: str | None) -> bytes:
        if self.chat:
            choice: dict[str, Any] = {"index": index, "delta": said, "logprobs": None, "finish_reason": reason, "token_ids": None}
            if reason is not None:
                choice["stop_reason"] = None
        else:
            choice = {"index": index, **said, "logprobs": None, "finish_reason": reason, "stop_reason": None}
            choice |= {"prompt_token_ids": None, "token_ids": None}
        return b"data: %b\n\n" % orjson.dumps({**self._opening(".chunk"), "choices": [choice]})

    def usage_event(self, usage: dict[str, int]) -> bytes:
        """Write the event that counts the tokens of a stream."""
        return b"data: %b\n\n" % orjson.dumps({**self._opening(".chunk"), "choices": [], "usage": usage})


def usage_of(prompt: int, completion: int) -> dict[str, int]:
    """Count tokens as OpenAI's API does."""
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
