"""How busy an engine is, from what it exports for Prometheus.

What is missing, renamed or no number is an error that names the place: an engine is never taken to be idle for want of news.
"""

import math
import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from market.serving import BLOCK_TOKENS

Kind = Literal["vllm", "sglang", "openai", "emulated"]


class Load(NamedTuple):
    """How busy an engine is."""

    running: int  # requests in its batch
    waiting: int  # requests it has taken and not begun
    usage: float  # share of its KV blocks in use, in [0, 1]
    kv_blocks: int | None  # 16-token blocks in all; None: not told
    read_s: float  # market time of the reading
    source: Literal["metrics", "own"]


class MetricsError(ValueError):
    """An engine's metrics cannot be believed; the text names the URL, the metric and the way out."""


class MissingMetricError(MetricsError):
    """A metric that the reading needs is not there."""


class BadMetricError(MetricsError):
    """A metric has a value that no engine can have."""


class _Names(NamedTuple):
    """What an engine calls its figures: the names that are tried, the newest first."""

    engine: str
    running: tuple[str, ...]
    waiting: tuple[str, ...]
    usage: tuple[str, ...]
    hint: str


NAMES = {
    "vllm": _Names(
        "a vLLM",
        ("vllm:num_requests_running",),
        ("vllm:num_requests_waiting",),
        ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        "vLLM 0.32 exports it",
    ),
    "sglang": _Names(
        "an SGLang",
        ("sglang:num_running_reqs",),
        ("sglang:num_queue_reqs",),
        ("sglang:token_usage",),
        "SGLang exports it with --enable-metrics",
    ),
}
CACHE = "vllm:cache_config_info"
SGLANG_TOKENS = "sglang:max_total_num_tokens"
_SAMPLE = re.compile(r"^([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+\S+)?$")
_LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')


class Sample(NamedTuple):
    """One line of an exposition: a metric, its labels, its value as it stands."""

    name: str
    labels: dict[str, str]
    value: str


def samples(text: str, names: frozenset[str]) -> Iterator[Sample]:
    """Find the samples of the metrics `names` in an exposition; comments and all other lines are passed over."""
    for line in text.splitlines():
        end = min((at for at in (line.find("{"), line.find(" ")) if at >= 0), default=0)
        if line[:end] not in names:
            continue
        found = _SAMPLE.match(line)
        if found is not None:
            yield Sample(found[1], dict(_LABEL.findall(found[2] or "")), found[3])


def read(text: str, kind: Kind, url: str, now_s: float) -> Load:
    """Read the load of an engine; several data-parallel engines behind one URL count as one.

    text    the answer of its /metrics
    kind    vllm or sglang: only these have names of their own
    url     where it was read
    now_s   market time
    errors  MissingMetricError, BadMetricError
    """
    names = NAMES[kind]
    wanted = frozenset((*names.running, *names.waiting, *names.usage, CACHE, SGLANG_TOKENS))
    found: dict[str, list[Sample]] = {}
    for sample in samples(text, wanted):
        if _counts(sample.labels):
            found.setdefault(sample.name, []).append(sample)
    running = _values(found, names.running, names, url)
    waiting = _values(found, names.waiting, names, url)
    usages = _values(found, names.usage, names, url)
    blocks = _vllm_blocks(found, url) if kind == "vllm" else _sglang_blocks(found, url)
    for key, usage in usages.items():
        if usage > 1.0:
            raise BadMetricError(f"{url}: {names.usage[0]} must be a share in [0, 1], got {usage:g}{_of(key)}")
    return Load(
        running=round(sum(running.values())),
        waiting=round(sum(waiting.values())),
        usage=sum(usages.values()) / len(usages),  # their caches are of one size
        kv_blocks=sum(blocks.values()) if blocks else None,
        read_s=now_s,
        source="metrics",
    )


def _counts(labels: dict[str, str]) -> bool:
    """Whether a sample stands for itself: ranks beyond the first tell what the first tells, and priorities are parts of the sum."""
    return all(labels.get(rank, "0") in {"", "0"} for rank in ("tp_rank", "pp_rank", "moe_ep_rank")) and not labels.get("priority")


def _engine(labels: dict[str, str]) -> str:
    """Name the data-parallel engine that a sample is of."""
    return "/".join(labels.get(key, "") for key in ("model_name", "engine", "dp_rank"))


def _of(engine: str) -> str:
    return f" (engine {engine})" if engine.strip("/") else ""


def _values(found: dict[str, list[Sample]], tried: tuple[str, ...], names: _Names, url: str) -> dict[str, float]:
    """Values by engine of the first of the names `tried` that is there."""
    for name in tried:
        if name in found:
            return {_engine(sample.labels): _number(sample, url) for sample in found[name]}
    raise MissingMetricError(f"{url} has no {tried[0]} ({names.hint}); is this {names.engine} server?")


def _number(sample: Sample, url: str) -> float:
    """The value of a sample: finite, and not below zero."""
    try:
        value = float(sample.value)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < math.inf:
        raise BadMetricError(f"{url}: {sample.name} must be a number from 0 up, got {sample.value}{_of(_engine(sample.labels))}")
    return value


def _vllm_blocks(found: dict[str, list[Sample]], url: str) -> dict[str, int]:
    """16-token KV blocks by engine; engines that have not told theirs yet are left out."""
    out = {}
    for sample in found.get(CACHE, []):
        blocks, size = sample.labels.get("num_gpu_blocks", "None"), sample.labels.get("block_size", str(BLOCK_TOKENS))
        if blocks in {"", "None", "0"}:
            continue
        if not (blocks.isdecimal() and size.isdecimal()):
            raise BadMetricError(
                f"{url}: {CACHE} must have whole numbers in num_gpu_blocks and block_size, got {blocks} and {size}"
            )
        out[sample.labels.get("engine", "")] = int(blocks) * int(size) // BLOCK_TOKENS
    return out


def _sglang_blocks(found: dict[str, list[Sample]], url: str) -> dict[str, int]:
    """The same for SGLang, which counts tokens."""
    return {_engine(sample.labels): int(_number(sample, url)) // BLOCK_TOKENS for sample in found.get(SGLANG_TOKENS, [])}
