"""An engine behind OpenAI's API that needs no GPU: timing by `market.serving`, words without a meaning, metrics by vLLM's names."""

import itertools
import math
import time
from collections.abc import Coroutine
from typing import Any

import numpy as np
import orjson

from live_bridge.backends.answer import DONE, Form, usage_of, words
from live_bridge.backends.engine import Engine, Job, Size, Ticket
from live_bridge.backends.metrics import Load
from live_bridge.backends.question import Question, Refused, question_of
from live_bridge.backends.verdict import letter, mark
from live_bridge.clock import Clock
from live_bridge.http.message import Headers, Request, Response
from market.profile import Profile
from market.serving import BLOCK_TOKENS

JSON: Headers = [(b"content-type", b"application/json")]
EVENTS: Headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
TEXT: Headers = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
SPREAD = 0.8
"""Standard deviation of the logarithm of an answer's length: between chats (about 1) and summaries (about 0.5); a guess."""


class Emulated:
    """One engine's API: `handle` answers a request, `load` tells how busy it is."""

    def __init__(
        self, profile: Profile, clock: Clock, model: str, seed: int = 0, answer_tokens: float = 256.0, stream_interval: int = 1
    ) -> None:
        """Begin idle.

        model            the name it serves
        seed             of the lengths of answers that end by themselves
        answer_tokens    their mean length
        stream_interval  tokens in an event of a stream, as vLLM's --stream-interval
        """
        self.engine = Engine(profile, clock)
        self.model = model
        self.context_tokens = BLOCK_TOKENS * profile.kv_blocks
        self._mark = mark(profile.quality)
        self._seed = seed
        self._draw = np.random.default_rng(seed)
        self._log_mean = math.log(answer_tokens) - SPREAD * SPREAD / 2.0
        self._interval = stream_interval
        self._answers = itertools.count()
        self._began_s = int(time.time())
        self._routes = {
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._complete,
            ("GET", "/v1/models"): self._models,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/health"): self._health,
            ("GET", "/ping"): self._health,
        }

    def load(self) -> Load:
        """How busy the engine is, without the way through HTTP."""
        return self.engine.load()

    def handle(self, request: Request, response: Response) -> Coroutine[Any, Any, None]:
        """Answer one request; cancelled when the client leaves, and the engine then drops its work."""
        return self._handle(request, response)

    async def _handle(self, request: Request, response: Response) -> None:
        try:
            route = self._routes.get((request.method, request.path))
            if route is None:
                known = any(path == request.path for _, path in self._routes)
                raise Refused(405, "Method Not Allowed") if known else Refused(404, "Not Found")
            await route(request, response)
        except Refused as refused:
            response.send(refused.status, JSON, refused.body())

    async def _health(self, request: Request, response: Response) -> None:
        response.send(200, [], b"")

    async def _models(self, request: Request, response: Response) -> None:
        card = {"id": self.model, "object": "model", "created": self._began_s, "owned_by": "vllm", "root": self.model}
        card |= {"parent": None, "max_model_len": self.context_tokens, "permission": []}
        response.send(200, JSON, orjson.dumps({"object": "list", "data": [card]}))

    async def _metrics(self, request: Request, response: Response) -> None:
        response.send(200, TEXT, exposition(self.load(), self.engine, self.model))

    async def _chat(self, request: Request, response: Response) -> None:
        await self._answer(question_of(request.body, chat=True), request, response)

    async def _complete(self, request: Request, response: Response) -> None:
        await self._answer(question_of(request.body, chat=False), request, response)

    async def _answer(self, asked: Question, request: Request, response: Response) -> None:
        if asked.model is not None and asked.model != self.model:
            raise Refused(404, f"The model `{asked.model}` does not exist.", "model")
        sizes = [self._size(asked, prompt) for prompt in asked.prompts for _ in range(asked.choices)]
        number = next(self._answers)
        told = (request.header(b"x-request-id") or b"%d-%d" % (self._began_s, number)).decode("latin-1")
        form = Form(f"{'chatcmpl' if asked.chat else 'cmpl'}-{told}", int(time.time()), self.model, chat=asked.chat)
        verdict = letter(request.body, self._seed) if asked.chat else None
        if verdict is not None:
            sizes = [Size(size.prompt, 1, size.limit) for size in sizes]
        ticket = self.engine.submit(sizes, watched=asked.stream)
        usage = usage_of(sum(asked.prompts), sum(size.output for size in sizes))
        try:
            if asked.stream:
                response.start(200, EVENTS)
                await self._stream(ticket, form, number, response, verdict or self._mark)
                await response.write((form.usage_event(usage) if asked.usage else b"") + DONE)
                response.end()
            else:
                while ticket.left:
                    await ticket.change()
                last = verdict or self._mark
                texts = [
                    b"".join([*words(number + index, job.size.output - 1), last]).decode() for index, job in enumerate(ticket.jobs)
                ]
                response.send(200, JSON, form.whole(texts, [reason_of(job) for job in ticket.jobs], usage))
        finally:
            self.engine.abort(ticket)

    def _size(self, asked: Question, prompt: int) -> Size:
        """How long an answer to a prompt of so many tokens will be."""
        room = self.context_tokens - prompt
        if room < max(asked.limit or 1, asked.least):
            raise Refused(
                400,
                f"This model's maximum context length is {self.context_tokens} tokens. However, you requested "
                f"{asked.limit or 1} output tokens and your prompt contains {prompt} input tokens.",
                "max_tokens",
            )
        limit = room if asked.limit is None else asked.limit
        if asked.least > limit:
            raise Refused(400, f"min_tokens must be at most max_tokens={limit}, got {asked.least}", "min_tokens")
        if asked.ignore_eos:
            return Size(prompt, limit, limit)
        drawn = math.ceil(self._draw.lognormal(self._log_mean, SPREAD))
        return Size(prompt, min(max(drawn, asked.least, 1), limit), limit)

    async def _stream(self, ticket: Ticket, form: Form, number: int, response: Response, last: bytes) -> None:
        """Write each token as an event, and all that have come out together at once; `last` is an answer's last word."""
        sent = [0] * len(ticket.jobs)
        pieces = [form.pieces(index) for index in range(len(ticket.jobs))]
        while True:
            out = []
            for index, job in enumerate(ticket.jobs):
                ready = self._ready(job)
                if ready == sent[index]:
                    continue
                if sent[index] == 0:
                    out.append(form.first(index))
                said = words(number + index + sent[index], ready - sent[index])
                if ready == job.size.output:
                    said = [*said[:-1], last]
                out += self._events(form, pieces[index], job, index, said)
                sent[index] = ready
            if out:
                await response.write(b"".join(out))
            elif ticket.left == 0:
                return
            else:
                await ticket.change()

    def _ready(self, job: Job) -> int:
        """Tokens that may be sent: the first at once, the others by the interval, all at the end."""
        if job.visible in {0, job.size.output}:
            return job.visible
        return 1 + (job.visible - 1) // self._interval * self._interval

    def _events(self, form: Form, pieces: tuple[bytes, bytes], job: Job, index: int, said: list[bytes]) -> list[bytes]:
        """Write the next words of a choice."""
        if job.finish_s < math.inf:
            keep = max(len(said) - self._interval, 0) if self._interval > 1 else len(said) - 1
            last = [form.last(index, b"".join(said[keep:]).decode(), reason_of(job))]
            said = said[:keep]
        else:
            last = []
        if not said:
            return last
        head, tail = pieces
        step = self._interval
        texts = said if step == 1 else [b"".join(said[at : at + step]) for at in range(0, len(said), step)]
        return [head, (tail + head).join(texts), tail, *last]


def reason_of(job: Job) -> str:
    """Why an answer ended."""
    return "length" if job.size.output == job.size.limit else "stop"


def exposition(load: Load, engine: Engine, model: str) -> bytes:
    """Write metrics as vLLM names them."""
    json_text = orjson.dumps(model)[1:-1].decode()  # escapes as Prometheus does
    label = f'{{engine="0",model_name="{json_text}"}}'
    totals = engine.totals
    gauges = [
        ("vllm:num_requests_running", load.running),
        ("vllm:num_requests_waiting", load.waiting),
        ("vllm:kv_cache_usage_perc", load.usage),
    ]
    counters = [
        ("vllm:prompt_tokens_total", totals.prompt),
        ("vllm:generation_tokens_total", totals.generated),
        ("vllm:num_preemptions_total", totals.preemptions),
        ("vllm:e2e_request_latency_seconds_sum", totals.latency_s),
        ("vllm:e2e_request_latency_seconds_count", totals.finished),
        ("vllm:time_to_first_token_seconds_sum", totals.ttft_s),
        ("vllm:time_to_first_token_seconds_count", totals.finished),
    ]
    lines = [f"# TYPE {name} gauge\n{name}{label} {float(value)}" for name, value in gauges]
    lines += [f"{name}{label} {float(value)}" for name, value in counters]
    lines.append("# TYPE vllm:cache_config_info gauge")
    lines.append(
        f'vllm:cache_config_info{{block_size="{BLOCK_TOKENS}",engine="0",num_gpu_blocks="{load.kv_blocks}"}} 1.0',
    )
    return ("\n".join(lines) + "\n").encode()
