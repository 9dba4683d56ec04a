"""Users: an open-loop load generator. Requests leave when they are due, whatever became of those before, and none is forgotten.

Latencies count from the moment that a request was due, not from when it could be sent.
"""

import asyncio
import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from live_bridge.clock import Clock
from live_bridge.episode import FAILED, FINISHED, UNFINISHED, Ask
from live_bridge.http.message import Headers, HttpClient, HttpError, Reply

TOKEN_IDS = range(10, 210)
"""Ids that prompts are made of: every vocabulary has them."""
TAIL_BYTES = 4096
"""Of an answer's end, where its usage, an error and [DONE] stand."""
ERROR_BYTES = 65536
PROBE_S = 0.02
"""Time on the wall between two looks how late this process is."""
USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')


class Target(NamedTuple):
    """Where the users of one provider ask."""

    url: str
    model: str | None  # None: whatever who executes it serves


class Outcome(NamedTuple):
    """What became of one request; times are market seconds from when it was due."""

    status: int  # UNFINISHED, FINISHED, FAILED
    latency_s: float  # inf: no whole answer
    ttft_s: float  # inf: no token
    tokens: int  # of the answer, as the engine counted them; -1: it did not say
    executor: str  # who answered, by its own word; empty: nobody said
    http_status: int  # 0: no answer
    late_s: float  # how late it was sent
    why: str  # of a failure; empty else


SENT = Outcome(UNFINISHED, math.inf, math.inf, -1, "", 0, 0.0, "")


class Punctuality(NamedTuple):
    """How late this process was, in ms on the wall: a busy host spoils what it measures."""

    p99_ms: float
    max_ms: float


class Stream:
    """Reads an answer as it streams past: its first token, its end, its usage; keeps no text."""

    def __init__(self) -> None:
        self.begun = False
        self._tail = b""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self._tail = (self._tail + chunk)[-(TAIL_BYTES if self.begun else ERROR_BYTES) :]
        if not self.begun:
            whole, _, _ = self._tail.replace(b"\r", b"").rpartition(b"\n\n")
            self.begun = b'"choices"' in whole

    @property
    def error(self) -> str:
        """What an error event says; empty when there is none."""
        lines = self._tail.decode("utf-8", "replace").splitlines()
        found = [line for line in lines if line.startswith("data:") and '"error"' in line]
        return found[-1].removeprefix("data:").strip()[:200] if found else ""

    @property
    def done(self) -> bool:
        """Whether the end of the stream has been announced."""
        return self._tail.rstrip().endswith(b"[DONE]")

    @property
    def tokens(self) -> int:
        """Tokens of the answer by the engine's own count, -1 when it has not said."""
        found = USAGE.findall(self._tail)
        return int(found[-1]) if found else -1


def body_of(ask: Ask, model: str | None, number: int) -> bytes:
    """Write a request for exactly `output_tokens` tokens; its prompt is like no other, so that no cache answers."""
    draw = random.Random(number)  # noqa: S311  the prompt need not be secret
    prompt = draw.choices(TOKEN_IDS, k=ask.prompt_tokens)
    length = {"max_tokens": ask.output_tokens, "min_tokens": ask.output_tokens, "ignore_eos": True}
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    named = {} if model is None else {"model": model}
    return orjson.dumps(named | {"prompt": prompt, "temperature": 1.0, "seed": number} | length | stream)


class Load:
    """All users of an episode; `outcomes` has one entry for each request sent, in the order of sending, also while it plays.

    targets   of each provider
    clock     market seconds
    on_done   called with each outcome that is final
    """

    def __init__(
        self, targets: Sequence[Target], client: HttpClient, clock: Clock, on_done: Callable[[Outcome], None] = lambda _: None
    ) -> None:
        self._targets, self._client, self._clock, self._on_done = targets, client, clock, on_done
        self._delays_ms: list[float] = []
        self.outcomes: list[Outcome] = []

    async def play(self, asks: Iterable[Ask], until_s: float) -> list[Outcome]:
        """Send every request when it is due, and wait for answers until the end.

        asks      by rising arrival_s, counted from now
        until_s   when this ends; what has no answer by then is left and stays UNFINISHED; inf: with the last answer
        returns   `outcomes`
        """
        zero_s = self._clock.now()
        probe = asyncio.create_task(self._probe())
        end_s = None if math.isinf(until_s) else self._clock.wall_s(until_s)
        try:
            async with asyncio.timeout(end_s), asyncio.TaskGroup() as users:
                for number, ask in enumerate(asks):
                    body = body_of(ask, self._targets[ask.provider].model, number)
                    await self._clock.sleep(zero_s + ask.arrival_s - self._clock.now())
                    self.outcomes.append(SENT)
                    users.create_task(self._ask(number, ask, body, zero_s + ask.arrival_s))
        except TimeoutError:
            pass
        finally:
            probe.cancel()
        return self.outcomes

    def _note(self, number: int, **values: Any) -> None:
        self.outcomes[number] = self.outcomes[number]._replace(**values)

    async def _ask(self, number: int, ask: Ask, body: bytes, due_s: float) -> None:
        """Ask, and listen to the end; whatever goes wrong is an outcome."""
        self._note(number, late_s=self._clock.now() - due_s)
        headers: Headers = [(b"content-type", b"application/json"), (b"market-forecast-tokens", b"%d" % ask.forecast_tokens)]
        url = f"{self._targets[ask.provider].url}/v1/completions"
        try:
            with await self._client.request("POST", url, headers, body) as reply:
                executor = (reply.header(b"market-executor") or b"").decode("latin-1")
                self._note(number, http_status=reply.status, executor=executor)
                why = await self._listen(number, ask, reply, due_s)
        except HttpError as error:
            why = f"{type(error).__name__}: {error}"
        if why:
            self._note(number, status=FAILED, why=why)
        else:
            self._note(number, status=FINISHED, latency_s=self._clock.now() - due_s)
        self._on_done(self.outcomes[number])

    async def _listen(self, number: int, ask: Ask, reply: Reply, due_s: float) -> str:
        """Read an answer to its end; returns what is wrong with it, empty when nothing is."""
        if reply.status != 200:
            said = await reply.body(ERROR_BYTES)
            return f"status {reply.status}: {said[:200].decode('utf-8', 'replace')}"
        stream = Stream()
        async for chunk in reply:
            stream.feed(chunk)
            if stream.begun and math.isinf(self.outcomes[number].ttft_s):
                self._note(number, ttft_s=self._clock.now() - due_s)
        self._note(number, tokens=stream.tokens)
        if stream.error:
            return f"the stream ended with an error: {stream.error}"
        if not stream.done:
            return "the stream ended without [DONE]"
        if stream.tokens not in {-1, ask.output_tokens}:
            return f"the answer has {stream.tokens} tokens, {ask.output_tokens} were asked for"
        return ""

    async def _probe(self) -> None:
        """Note how late this process wakes up."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + PROBE_S
            await asyncio.sleep(PROBE_S)
            self._delays_ms.append(1e3 * (loop.time() - due))

    @property
    def punctuality(self) -> Punctuality:
        """How late this process was while it played."""
        delays = sorted(self._delays_ms) or [0.0]
        return Punctuality(max(delays[int(0.99 * (len(delays) - 1))], 0.0), max(delays[-1], 0.0))


def repeated(asks: Sequence[Ask], period_s: float) -> Iterator[Ask]:
    """Give the demand of an episode again and again, each time `period_s` later; without end, unless there is none."""
    for turn in itertools.count() if asks else ():
        for ask in asks:
            yield ask._replace(arrival_s=ask.arrival_s + turn * period_s)
