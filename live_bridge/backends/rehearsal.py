"""Load an engine, play the same requests through `market.serving`, and make the one explain the other."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from live_bridge.backends.fitting import simplex
from live_bridge.backends.probe import Probe, Timing
from live_bridge.backends.sweep import Coefficients, Limits
from market import serving
from market.rule import records

FITTED = ("a_s", "b_s", "c_s", "d_s", "e_s", "h_s")
EVALUATIONS = 500
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75)
NEARNESS = 0.005
"""Loss for each coefficient that leaves its idle value by a factor of e: what a run does not tell stays where it was."""


class Ask(NamedTuple):
    """One request of a run."""

    at_s: float
    prompt: int
    output: int


class Figures(NamedTuple):
    """What users see (s)."""

    latency_mean_s: float
    latency_p50_s: float
    latency_p99_s: float
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    makespan_s: float


def poisson(rate: float, span_s: float, mean_prompt: float, mean_output: float, limits: Limits, seed: int) -> list[Ask]:
    """Draw requests at `rate` a second for `span_s`; lengths are exponential about their means, within the context."""
    rng = np.random.default_rng(seed)
    asks = []
    at_s = float(rng.exponential(1.0 / rate))
    while at_s < span_s:
        prompt = min(4 + int(rng.exponential(mean_prompt - 4.0)), limits.context // 2)
        output = min(2 + int(rng.exponential(mean_output - 2.0)), limits.context // 2 - 2)
        asks.append(Ask(at_s, prompt, output))
        at_s += float(rng.exponential(1.0 / rate))
    return asks


def capacity_rps(cost: Coefficients, limits: Limits, mean_prompt: float, mean_output: float) -> float:
    """Requests a second that the engine can just sustain, by its coefficients."""
    size = mean_prompt + mean_output
    places = max(min(float(limits.max_num_seqs), 16.0 * limits.kv_blocks / size), 1.0)
    profile = record_of(cost, limits)
    step_s = serving.decode_s(profile, places, places * (mean_prompt + 0.5 * mean_output))
    return float(1.0 / (mean_output * step_s / places + cost.b_s * mean_prompt + cost.e_s))


async def load(probe: Probe, asks: Sequence[Ask]) -> list[Timing]:
    """Send each request at its time, whatever has become of the others."""
    begin_s = probe.clock.now()

    async def one(ask: Ask) -> Timing:
        await probe.clock.sleep(begin_s + ask.at_s - probe.clock.now())
        return await probe.ask(ask.prompt, ask.output)

    return list(await asyncio.gather(*(one(ask) for ask in asks)))


def record_of(cost: Coefficients, limits: Limits) -> Any:
    """The PROFILE record of coefficients and limits."""
    record = records(serving.PROFILE, 1)[0]
    for name, value in {**cost._asdict(), **limits._asdict()}.items():
        if name != "context":
            setattr(record, name, value)
    return record


def predict(cost: Coefficients, limits: Limits, run: Sequence[Timing]) -> tuple[np.ndarray, np.ndarray]:
    """Time to first token and latency (s) of each request of a run, by the rules."""
    order = sorted(range(len(run)), key=lambda at: run[at].sent_s)
    requests = records(serving.REQUEST, len(run))
    engine = records(serving.ENGINE, 1)[0]
    profile = record_of(cost, limits)
    serving.open_engine(engine, 0.0)
    for at in order:
        timing, request = run[at], requests[at]
        request.prompt_tokens, request.output_tokens, request.forecast_tokens = timing.prompt, timing.output, timing.output
        serving.advance(engine, profile, requests, timing.sent_s)
        serving.enqueue(engine, requests, at, timing.sent_s)
    serving.advance(engine, profile, requests, serving.NEVER)
    sent = np.array([timing.sent_s for timing in run])
    first = np.array([request.first_token_s for request in requests])
    last = np.array([request.finish_s for request in requests])
    return first - sent + cost.h_s, last - sent + cost.h_s


def fit(cost: Coefficients, limits: Limits, run: Sequence[Timing]) -> tuple[Coefficients, float]:
    """Move coefficients until the rules explain a loaded run; returns them and the loss that is left.

    method   simplex on logarithms; loss = mean |log| error of latency, and half of that of the time to first token. A lone request
             cannot tell what its prefill adds for itself (h_s) from what it adds for all (e_s): several shares are tried first
    """
    latency = np.log([timing.latency_s for timing in run])
    ttft = np.log([timing.ttft_s for timing in run])
    idle = _logarithms(cost)

    def loss(point: np.ndarray) -> float:
        first, last = predict(_moved(cost, point), limits, run)
        error = np.mean(np.abs(np.log(last) - latency)) + 0.5 * np.mean(np.abs(np.log(first) - ttft))
        return float(error + NEARNESS * np.mean(np.abs(point - idle)))

    starts = [_logarithms(cost._replace(e_s=share * cost.h_s, h_s=(1.0 - share) * cost.h_s)) for share in SHARES]
    found = simplex(loss, min(starts, key=loss), 0.2, EVALUATIONS)
    found = simplex(loss, found.at, 0.1, EVALUATIONS)  # a fresh simplex where the first one has shrunk to nothing
    return _moved(cost, found.at), found.value


def _logarithms(cost: Coefficients) -> np.ndarray:
    found: np.ndarray = np.log(np.maximum([getattr(cost, name) for name in FITTED], floors(cost)))
    return found


def _moved(cost: Coefficients, point: np.ndarray) -> Coefficients:
    """Put the fitted coefficients at `point`; the fixed part of a compute-bound iteration goes with the floor."""
    values = dict(zip(FITTED, np.exp(np.minimum(point, 2.0)).tolist(), strict=True))
    return cost._replace(**values, a2_s=values["a_s"] * cost.a2_s / cost.a_s)


def floors(cost: Coefficients) -> np.ndarray:
    """Where a coefficient that idle measurements put at 0 begins: too small to matter, and free to grow."""
    least = {"a_s": 1e-6, "b_s": 1e-9, "c_s": 0.002 * cost.a_s, "d_s": 1e-6 * cost.a_s, "e_s": 0.02 * cost.a_s, "h_s": 1e-4}
    return np.array([least[name] for name in FITTED])


def figures(sent_s: np.ndarray, ttft_s: np.ndarray, latency_s: np.ndarray) -> Figures:
    """Sum up a run, measured or predicted."""
    p50, p99 = np.quantile(latency_s, (0.5, 0.99)).tolist()
    first_p50, first_p99 = np.quantile(ttft_s, (0.5, 0.99)).tolist()
    makespan_s = float((sent_s + latency_s).max() - sent_s.min())
    return Figures(float(latency_s.mean()), p50, p99, float(ttft_s.mean()), first_p50, first_p99, makespan_s)


def compare(cost: Coefficients, limits: Limits, run: Sequence[Timing]) -> tuple[Figures, Figures, Figures]:
    """Measured figures of a run, those that the rules predict, and the relative error of each."""
    sent = np.array([timing.sent_s for timing in run])
    measured = figures(sent, np.array([t.ttft_s for t in run]), np.array([t.latency_s for t in run]))
    predicted = figures(sent, *predict(cost, limits, run))
    error = Figures(
        *((guess - truth) / truth if truth > 0.0 else math.inf for guess, truth in zip(predicted, measured, strict=True))
    )
    return measured, predicted, error
