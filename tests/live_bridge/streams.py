"""Event streams of every kind that engines send, cut as networks cut them; made from a seed, so that both ends know the bytes."""

import asyncio
import json
import random
from typing import NamedTuple

from live_bridge.http.message import Request, Response
from tests.live_bridge.towns import EVENTS

WORDS = ("plain", "naïve", "日本語", "🙂🙃", "Ω≈ç√", "data: 7", "\u2028", "\x7f", '"quoted"', "a\nb", "", "עברית")
COMMENTS = (": keep-alive", ":", ": data: not an event", "event: delta", "id: 7", "retry: 3000")
LONG = 64 * 1024


class Stream(NamedTuple):
    """An answer as an engine writes it, piece by piece."""

    pieces: list[bytes]
    tokens: int  # events that carry a piece of the answer

    @property
    def whole(self) -> bytes:
        return b"".join(self.pieces)


def made(seed: int) -> Stream:
    """Make the stream that stands for `seed`: one in 50 is some 100 kB long, the others are short."""
    draw = random.Random(seed)
    long = seed % 50 == 0
    end = draw.choice(("\n", "\n", "\r\n"))
    tokens = draw.randint(1, 12)
    lines = []
    for _ in range(tokens):
        if draw.random() < 0.2:
            lines += [draw.choice(COMMENTS), *([""] if draw.random() < 0.5 else [])]
        text = draw.choice(WORDS) * (LONG // 8 if long else draw.randint(1, 3))
        lines += [draw.choice(("data: ", "data: ", "data:")) + _event(draw, text), ""]
    lines += [draw.choice(("data: [DONE]", "data:[DONE]")), "", ""]
    return Stream(_cut(draw, end.join(lines).encode(), long), tokens)


def _event(draw: random.Random, text: str) -> str:
    kind = draw.randrange(3)
    if kind == 0:
        choice = {"index": 0, "text": text, "logprobs": None}
    elif kind == 1:
        choice = {"index": draw.randrange(3), "delta": {"content": text}, "finish_reason": None}
    else:
        call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"x": text})}}
        choice = {"index": 0, "delta": {"tool_calls": [call]}}
    return json.dumps({"id": "c-1", "choices": [choice]}, ensure_ascii=draw.random() < 0.3)


def _cut(draw: random.Random, raw: bytes, long: bool) -> list[bytes]:
    """Cut into pieces without a regard for events or characters: of 64 kB, of 1 byte, or of any length."""
    sizes = [LONG] if long else draw.choice(([1], [7], [len(raw)], [draw.randint(1, 400) for _ in range(9)]))
    out, at = [], 0
    while at < len(raw):
        size = sizes[len(out) % len(sizes)]
        out.append(raw[at : at + size])
        at += size
    return out


async def by_seed(request: Request, response: Response) -> None:
    """Answer with the stream whose seed is the prompt, each piece in a packet of its own where the loop allows."""
    response.start(200, EVENTS)
    for piece in made(int(json.loads(request.body)["prompt"])).pieces:
        await response.write(piece)
        await asyncio.sleep(0)
    response.end()


class Event(NamedTuple):
    """An event as a client of server-sent events gets it."""

    name: str
    data: str


def events_of(raw: bytes) -> list[Event]:
    """Read a stream as its standard says: fields by line, an event at each blank line, comments and unfinished events dropped."""
    found, name, lines = [], "message", []
    for line in raw.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        field, _, value = line.partition(":")
        if not line:
            if lines:
                found.append(Event(name, "\n".join(lines)))
            name, lines = "message", []
        elif field == "data":
            lines.append(value.removeprefix(" "))
        elif field == "event":
            name = value.removeprefix(" ")
    return found
