"""Measure an idle engine one batch at a time, and turn the measurements into the coefficients of `market.serving`."""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from live_bridge.backends.fitting import nnls
from live_bridge.backends.probe import Probe, Timing

REPEATS = 3
DECODE_TOKENS = 48
HINGES = (0, 16, 32, 64, 96, 128, 192, 256, 384, 512)
"""Tokens up to which an iteration may cost the same whatever it computes (memory bound), tried in turn."""


class Prefill(NamedTuple):
    """A lone prompt on an idle engine."""

    prompt: int
    ttft_s: float  # median


class Decode(NamedTuple):
    """A batch that does nothing but decode."""

    batch: int
    kv_tokens: float  # mean, of the whole batch
    step_s: float  # median


class Coefficients(NamedTuple):
    """What iterations cost (s), named as in market.decoding.PROFILE."""

    a_s: float
    a2_s: float
    b_s: float
    c_s: float
    d_s: float
    e_s: float
    q_s: float
    h_s: float


class Limits(NamedTuple):
    """What an engine was started with."""

    kv_blocks: int  # of 16 tokens
    max_num_seqs: int
    max_num_batched_tokens: int
    context: int  # tokens, prompt and answer


async def measure(probe: Probe, limits: Limits, tell: Callable[[str], None]) -> tuple[list[Prefill], list[Decode]]:
    """Measure prefill over prompt lengths and decode over batches and contexts."""
    await probe.ask(64, 8)  # the first request pays for what is made lazily
    prefills, decodes = [], []
    most = min(limits.context - 4, limits.max_num_batched_tokens)
    for prompt in (length for length in (16, 48, 96, 144, 224, 384, 768, 1200, 2000) if length <= most):
        times = [(await probe.ask(prompt, 2)).ttft_s for _ in range(REPEATS)]
        prefills.append(Prefill(prompt, float(np.median(times))))
        tell(f"prefill of {prompt} tokens: {prefills[-1].ttft_s * 1e3:.1f} ms to first token")
    room = min(limits.context, 16 * limits.kv_blocks // 2) - DECODE_TOKENS - 4
    for batch in batches(limits.max_num_seqs):
        for prompt in sorted({min(length, room) for length in (32, 400, 900)}):
            if batch * (prompt + DECODE_TOKENS) > 16 * limits.kv_blocks:
                continue
            decodes.append(await decode_step(probe, batch, prompt))
            tell(f"decode of {batch} x {decodes[-1].kv_tokens / batch:.0f} tokens: {decodes[-1].step_s * 1e3:.2f} ms")
    return prefills, decodes


def batches(max_num_seqs: int) -> list[int]:
    """Batch sizes worth measuring: 1, 2, 4 ... up to 64 or all places."""
    most = min(max_num_seqs, 64)
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= most]
    return sizes if sizes[-1] == most else [*sizes, most]


async def decode_step(probe: Probe, batch: int, prompt: int) -> Decode:
    """Time an iteration while `batch` requests with `prompt` tokens decode together."""
    steps, sizes = [], []
    for _ in range(REPEATS):
        timings = await asyncio.gather(*(probe.ask(prompt, DECODE_TOKENS) for _ in range(batch)))
        step_s, context = together(timings)
        steps.append(step_s)
        sizes.append(context)
    return Decode(batch, batch * float(np.mean(sizes)), float(np.median(steps)))


def together(timings: Sequence[Timing]) -> tuple[float, float]:
    """Time of one token (s) and mean context (tokens) while all of them decode."""
    begin_s = max(timing.token_s[0] for timing in timings)
    end_s = min(timing.token_s[-1] for timing in timings)
    step_s, contexts = [], []
    for timing in timings:
        inside = [(at, count) for count, at in enumerate(timing.token_s, start=1) if begin_s <= at <= end_s]
        if len(inside) < 2:
            continue
        (first_s, first), (last_s, last) = inside[0], inside[-1]
        if last_s > first_s:
            step_s.append((last_s - first_s) / (last - first))
            contexts.append(timing.prompt + 0.5 * (first + last))
    if not step_s:
        raise ValueError(f"decode: {len(timings)} requests never decoded together; do they fit in the engine's places?")
    return float(np.mean(step_s)), float(np.mean(contexts))


def fit(prefills: Sequence[Prefill], decodes: Sequence[Decode]) -> tuple[Coefficients, float]:
    """Find coefficients that explain the measurements; returns them and the mean relative error that is left.

    method   for each hinge below which an iteration's cost is flat, non-negative least squares on relative errors; prefill and
             decode weigh the same, however many rows each has. What a prefill adds to every request alike is counted as h_s here
    """
    rows = [(row.prompt, 0, 0.0, row.ttft_s) for row in prefills] + [(0, row.batch, row.kv_tokens, row.step_s) for row in decodes]
    table = np.array(rows, float).T
    weight = np.where(table[0] > 0, 1.0 / np.sqrt(len(prefills)), 1.0 / np.sqrt(len(decodes))) / table[3]
    best = _with_hinge(table, weight, 0.0)
    for hinge in HINGES[1:]:
        tried = _with_hinge(table, weight, hinge)
        if tried.left < 0.98 * best.left:
            best = tried
    if best.hinge > 0.0:
        near = HINGES.index(round(best.hinge))
        for hinge in np.linspace(HINGES[near - 1], HINGES[min(near + 1, len(HINGES) - 1)], 33).tolist():
            best = min(best, _with_hinge(table, weight, hinge), key=lambda one: one.left)
    return best.cost, best.error


class _Fit(NamedTuple):
    """The best coefficients for one hinge."""

    hinge: float  # tokens
    left: float  # norm of the weighted residuals; infinite when no profile says this
    error: float  # mean relative error
    cost: Coefficients


def _with_hinge(table: np.ndarray, weight: np.ndarray, hinge: float) -> _Fit:
    """Fit with a given hinge. table: (4, rows) prompt, batch, KV tokens, s."""
    prompt, batch, kv, seconds = table
    columns = [np.ones(len(seconds)), np.maximum(prompt + batch - hinge, 0.0), batch, kv, 0.5 * prompt * prompt, prompt > 0]
    matrix = np.stack(columns, axis=1).astype(float)
    found, left = nnls(matrix * weight[:, None], seconds * weight)
    a, b, c, d, q, h = found.tolist()
    error = float(np.mean(np.abs(matrix @ found - seconds) / seconds))
    fixed = a - b * hinge
    return _Fit(hinge, left if fixed >= 0.0 else np.inf, error, Coefficients(a, max(fixed, 0.0), max(b, 1e-9), c, d, 0.0, q, h))
