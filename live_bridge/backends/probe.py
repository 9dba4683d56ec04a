"""Ask an engine for so many tokens and note when each arrives: what a calibration measures with."""

import asyncio
import json
import random
from typing import NamedTuple, Protocol

import orjson

from live_bridge.backends.metrics import Load, read
from live_bridge.clock import Clock
from live_bridge.http.message import Headers, HttpClient

TOKENS = range(10, 250)
"""Ids of tokens that every tokenizer has. Prompts of random ones, never the same twice, share no prefix that an engine has kept: a
prompt that it knows from an earlier calibration would cost it next to nothing."""
ANSWER_BYTES = 16 * 2**20
LOOK_S = 0.02
MOST_PLACES = 256
"""More than these are no profile's (market.decoding.SLOTS)."""


class ProbeError(RuntimeError):
    """An engine cannot be measured; the text names the URL, the reason and the way out."""


class Timing(NamedTuple):
    """One request, measured. Times are those of the clock, s."""

    sent_s: float
    prompt: int  # tokens
    token_s: list[float]  # when each token arrived

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.token_s[0] - self.sent_s

    @property
    def latency_s(self) -> float:
        """Time to last token."""
        return self.token_s[-1] - self.sent_s

    @property
    def output(self) -> int:
        """Tokens of the answer."""
        return len(self.token_s)


class Probe(Protocol):
    """An engine that can be timed."""

    clock: Clock

    async def ask(self, prompt: int, output: int) -> Timing:
        """Ask for exactly `output` tokens after a prompt of `prompt` random tokens.

        errors   ProbeError
        """


class HttpProbe:
    """An engine behind OpenAI's API."""

    def __init__(self, client: HttpClient, url: str, model: str, clock: Clock, headers: Headers) -> None:
        """Know whom to ask.

        url      without a path
        headers  sent along, such as the engine's own key
        """
        self.clock = clock
        self._client, self._url, self._model = client, url.rstrip("/"), model
        self._headers = [*headers, (b"content-type", b"application/json")]
        self._chance = random.SystemRandom()

    async def ask(self, prompt: int, output: int) -> Timing:
        """As `Probe.ask`; needs an engine that honours ignore_eos, as vLLM and SGLang do."""
        asked = {"model": self._model, "prompt": self._chance.choices(TOKENS, k=prompt), "max_tokens": output, "ignore_eos": True}
        options = {"include_usage": True, "continuous_usage_stats": True}  # a busy server puts several tokens into one event
        body = json.dumps({**asked, "temperature": 0.0, "stream": True, "stream_options": options}).encode()
        sent_s = self.clock.now()
        token_s: list[float] = []
        url = f"{self._url}/v1/completions"
        try:
            with await self._client.request("POST", url, self._headers, body) as reply:
                if reply.status != 200:
                    text = (await reply.body(ANSWER_BYTES))[:300].decode(errors="replace")
                    raise ProbeError(f"{url}: answers {reply.status}: {text}")
                rest = b""
                async for chunk in reply:
                    now_s = self.clock.now()
                    *events, rest = (rest + chunk).split(b"\n\n")
                    for event in events:
                        token_s += [now_s] * tokens_in(event, len(token_s))
        except OSError as error:
            raise ProbeError(str(error)) from error
        if len(token_s) != output:
            raise ProbeError(
                f"{url}: sent {len(token_s)} tokens where {output} were asked for; it must honour max_tokens and ignore_eos, and "
                "count tokens by continuous_usage_stats or send one in an event"
            )
        return Timing(sent_s, prompt, token_s)


def tokens_in(event: bytes, before: int) -> int:
    """Count the tokens of an event of a stream: what its usage says has been made since `before`, or one."""
    if not event.startswith(b"data: {"):
        return 0
    said = orjson.loads(event[len(b"data: ") :])
    counts = said.get("usage")
    if counts is not None:
        return max(int(counts["completion_tokens"]) - before, 0)
    return 1 if said.get("choices") else 0


async def served_model(client: HttpClient, url: str, headers: Headers) -> tuple[str, int | None]:
    """The first model that an engine serves and its context (tokens; None: not told).

    errors   ProbeError
    """
    text = await _get(client, f"{url.rstrip('/')}/v1/models", headers)
    try:
        card = json.loads(text)["data"][0]
        return str(card["id"]), card.get("max_model_len")
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ProbeError(f"{url}/v1/models: is not a list of models: {error!r}") from None


async def served_load(client: HttpClient, url: str, headers: Headers, clock: Clock) -> Load:
    """The load of a vLLM server.

    errors   ProbeError, MetricsError
    """
    place = f"{url.rstrip('/')}/metrics"
    return read(await _get(client, place, headers), "vllm", place, clock.now())


async def served_places(client: HttpClient, url: str, headers: Headers, probe: Probe) -> int:
    """How many requests a vLLM server runs at once: ask for more and more until it lets some wait.

    errors   ProbeError, MetricsError
    """
    asked = 16
    while asked <= MOST_PLACES:
        under_way = [asyncio.ensure_future(probe.ask(16, 48)) for _ in range(asked)]
        most, waited = 0, False
        try:
            while not all(task.done() for task in under_way):
                load = await served_load(client, url, headers, probe.clock)
                most, waited = max(most, load.running), waited or (load.waiting > 0 and load.running < asked)
                await asyncio.wait(under_way, timeout=LOOK_S)
            await asyncio.gather(*under_way)
        finally:
            for task in under_way:
                task.cancel()
        if waited and most < asked:
            return most
        asked *= 2
    return MOST_PLACES


async def served_version(client: HttpClient, url: str, headers: Headers) -> str:
    """What the engine says it is."""
    try:
        said = json.loads(await _get(client, f"{url.rstrip('/')}/version", headers))
    except (ProbeError, ValueError):
        return "an engine that does not tell its version"
    return f"vLLM {said['version']}" if isinstance(said, dict) and "version" in said else f"version {said}"


async def _get(client: HttpClient, url: str, headers: Headers) -> str:
    try:
        with await client.request("GET", url, headers, connect_s=5.0, first_byte_s=30.0) as reply:
            if reply.status != 200:
                raise ProbeError(f"{url}: answers {reply.status}, must answer 200")
            return (await reply.body(ANSWER_BYTES)).decode(errors="replace")
    except OSError as error:
        raise ProbeError(str(error)) from error
