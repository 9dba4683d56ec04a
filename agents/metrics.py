"""The one dictionary of metric names, and what each is for one network's episode.

Code, W&B, reports and the docs use these names and no others. Knows the rows that an environment hands out (requests, accounts,
counters), not the environment. A missing value is `nan` and is shown as such; it never becomes 0.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Direction = Literal["higher", "lower", "neither"]

UNFINISHED, FINISHED, FAILED = 0, 1, 2
"""`status` of a request."""

OUTCOME_FIELDS = ("origin", "arrival_s", "output_tokens", "latency_s", "ttft_s", "slo_s", "status", "delegated")
"""Fields of a row of outcomes that the metrics read; `latency_s` and `ttft_s` are inf where there is none."""


TIME_BINS = 40
"""Equal parts of an episode for figures over time."""


class Metric(NamedTuple):
    """What a metric's name stands for."""

    unit: str
    meaning: str
    direction: Direction  # which way is better


METRICS: dict[str, Metric] = {
    "slo_attainment": Metric("share", "requests due in the window whose whole answer came within the SLO", "higher"),
    "worst_provider_slo_attainment": Metric("share", "SLO attainment of the users of the worst-served provider", "higher"),
    "goodput_rps": Metric("requests/s", "rate of requests answered within the SLO", "higher"),
    "latency_s_mean": Metric("s", "arrival to last token; an unfinished request counts with its age", "lower"),
    "latency_s_p50": Metric("s", "median latency", "lower"),
    "latency_s_p95": Metric("s", "95th percentile of latency", "lower"),
    "latency_s_p99": Metric("s", "99th percentile of latency", "lower"),
    "ttft_s_mean": Metric("s", "arrival to first token; a request without one counts with its age", "lower"),
    "ttft_s_p99": Metric("s", "99th percentile of TTFT", "lower"),
    "tpot_s_mean": Metric("s/token", "time per output token after the first, over finished answers of 2 tokens or more", "lower"),
    "unfinished_share": Metric("share", "due requests without an answer at the end of the window", "lower"),
    "failed_share": Metric("share", "due requests that were dropped or lost", "lower"),
    "delegated_share": Metric("share", "due requests executed by another provider than their origin", "neither"),
    "offers_declined_share": Metric("share", "offers received that were declined", "neither"),
    "duels": Metric("duels", "duels that were settled with a winner", "neither"),
    "gini_wealth": Metric("0..1", "Gini coefficient of wealth (credit and stake) at the end; 0 = all equal", "neither"),
    "welfare": Metric("reward", "sum of all providers' rewards over the episode", "higher"),
    "price_of_anarchy": Metric("ratio", "welfare of the scheduler `central` over the welfare of this market", "lower"),
    "requests": Metric("requests", "requests due in the window: the denominator of the shares", "neither"),
}
"""Metrics of an episode, in the order in which tables show them."""

TRAINING_METRICS: dict[str, Metric] = {
    "agent_steps": Metric("steps", "decisions of all providers so far: the x axis of every training curve", "neither"),
    "agent_steps_per_s": Metric("steps/s", "decisions a second of wall time, learning included", "higher"),
    "reward_mean": Metric("reward", "mean reward of a provider's step", "higher"),
    "reward_attained": Metric("reward", "part of reward_mean for own requests attained", "higher"),
    "reward_missed": Metric("reward", "part of reward_mean for own requests missed (negative)", "higher"),
    "reward_wealth": Metric("reward", "part of reward_mean for the change of own wealth", "higher"),
    "reward_energy": Metric("reward", "part of reward_mean for tokens executed (negative)", "higher"),
    "wall_s": Metric("s", "wall time since training began", "lower"),
}
"""Metrics of a training run, beside those that the learner itself reports."""


def due(arrival_s: Array, slo_s: ArrayLike, horizon_s: float) -> NDArray[np.bool_]:
    """Say which requests have their deadline inside the window [0, horizon_s], so that their fate is known.

    arrival_s  (requests,)
    slo_s      (requests,), or one threshold for all
    """
    return np.asarray(arrival_s + np.asarray(slo_s) <= horizon_s)


def measure(outcomes: np.ndarray, *, horizon_s: float, threshold_s: float | None = None) -> dict[str, float]:
    """Measure how one network served its users.

    outcomes     (requests,) structured, at least OUTCOME_FIELDS: every request of the network, whatever became of it
    horizon_s    end of the window; requests due later count nowhere, requests that failed count everywhere
    threshold_s  latency that counts as attained, instead of each request's own SLO
    returns      every metric that requests alone give; tpot_s_mean is nan when no due request has finished
    errors       ValueError when no request is due in the window, or a row is not possible
    """
    _check(outcomes, horizon_s)
    slo_s = outcomes["slo_s"] if threshold_s is None else np.full(len(outcomes), float(threshold_s))
    inside = due(outcomes["arrival_s"], slo_s, horizon_s)
    if not inside.any():
        raise ValueError(_nothing_due(len(outcomes), horizon_s, threshold_s))
    rows, limit = outcomes[inside], slo_s[inside]
    answered = rows["status"] == FINISHED
    attained = answered & (rows["latency_s"] <= limit)
    age = horizon_s - rows["arrival_s"]
    latency = np.where(answered, rows["latency_s"], age)
    ttft = np.where(np.isfinite(rows["ttft_s"]), rows["ttft_s"], age)
    origins = np.unique(rows["origin"])
    p50, p95, p99 = np.percentile(latency, (50, 95, 99))
    return {
        "slo_attainment": float(attained.mean()),
        "worst_provider_slo_attainment": min(float(attained[rows["origin"] == origin].mean()) for origin in origins),
        "goodput_rps": _goodput(attained, limit, horizon_s),
        "latency_s_mean": float(latency.mean()),
        "latency_s_p50": float(p50),
        "latency_s_p95": float(p95),
        "latency_s_p99": float(p99),
        "ttft_s_mean": float(ttft.mean()),
        "ttft_s_p99": float(np.percentile(ttft, 99)),
        "tpot_s_mean": _tpot(rows[answered]),
        "unfinished_share": float((rows["status"] == UNFINISHED).mean()),
        "failed_share": float((rows["status"] == FAILED).mean()),
        "delegated_share": float((rows["delegated"] != 0).mean()),
        "requests": float(len(rows)),
    }


def measure_market(*, wealth: ArrayLike, rewards: ArrayLike, counters: Mapping[str, ArrayLike]) -> dict[str, float]:
    """Measure what the market did to its providers in one network's episode.

    wealth    (providers,) credits at the end, >= 0
    rewards   (providers,) sum over the episode
    counters  offers_received, offers_declined, duels_won: each (providers,)
    returns   every metric of this kind; offers_declined_share is nan when nothing was offered
    errors    ValueError for a wealth below 0 or not finite
    """
    received = _total(counters["offers_received"])
    return {
        "offers_declined_share": _total(counters["offers_declined"]) / received if received else math.nan,
        "duels": _total(counters["duels_won"]),
        "gini_wealth": gini(wealth),
        "welfare": _total(rewards),
    }


def measure_seats(outcomes: np.ndarray, providers: int, *, horizon_s: float) -> dict[str, Array]:
    """Measure how the users of each provider were served, and how many answers it gave.

    outcomes  (requests,) of one network, with `executor` beside OUTCOME_FIELDS
    returns   (providers,) each: slo_attainment and latency_s_mean by origin, nan where none was due; executed by executor
    """
    inside = due(outcomes["arrival_s"], outcomes["slo_s"], horizon_s)
    rows = outcomes[inside]
    answered = rows["status"] == FINISHED
    attained = answered & (rows["latency_s"] <= rows["slo_s"])
    latency = np.where(answered, rows["latency_s"], horizon_s - rows["arrival_s"])
    count = np.bincount(rows["origin"], minlength=providers).astype(np.float64)
    known = np.where(count > 0, count, math.nan)
    done = outcomes[outcomes["status"] == FINISHED]
    return {
        "slo_attainment": np.bincount(rows["origin"], attained, providers) / known,
        "latency_s_mean": np.bincount(rows["origin"], latency, providers) / known,
        "executed": np.bincount(done["executor"], minlength=providers).astype(np.float64),
    }


def latency_over_time(outcomes: np.ndarray, horizon_s: float) -> Array:
    """Average the latency of the due requests that arrived in each of TIME_BINS equal parts of the episode; nan: none did."""
    rows = outcomes[due(outcomes["arrival_s"], outcomes["slo_s"], horizon_s)]
    latency = np.where(rows["status"] == FINISHED, rows["latency_s"], horizon_s - rows["arrival_s"])
    place = np.minimum((rows["arrival_s"] / horizon_s * TIME_BINS).astype(np.int64), TIME_BINS - 1)
    count = np.bincount(place, minlength=TIME_BINS).astype(np.float64)
    return np.asarray(np.bincount(place, latency, TIME_BINS) / np.where(count > 0, count, math.nan))


def attainment_curve(outcomes: np.ndarray, thresholds: ArrayLike, horizon_s: float, *, relative: bool = False) -> Array:
    """Give the SLO attainment as a function of the SLO threshold; each threshold judges the requests due under it.

    thresholds  (thresholds,), seconds; with `relative`, multiples of each request's own SLO
    returns     (thresholds,) in [0, 1]
    errors      ValueError when no request is due under one of them
    """
    _check(outcomes, horizon_s)
    latency = np.where(outcomes["status"] == FINISHED, outcomes["latency_s"], np.inf)
    curve = []
    for threshold in np.asarray(thresholds, np.float64):
        limit = threshold * outcomes["slo_s"] if relative else np.full(len(outcomes), threshold)
        inside = due(outcomes["arrival_s"], limit, horizon_s)
        if not inside.any():
            raise ValueError(_nothing_due(len(outcomes), horizon_s, float(threshold) if not relative else None))
        curve.append(float((latency[inside] <= limit[inside]).mean()))
    return np.array(curve)


def latencies(outcomes: np.ndarray, horizon_s: float) -> Array:
    """Give the latency of every request due in the window, inf where there is no answer: the data of a latency CDF."""
    _check(outcomes, horizon_s)
    rows = outcomes[due(outcomes["arrival_s"], outcomes["slo_s"], horizon_s)]
    return np.where(rows["status"] == FINISHED, rows["latency_s"], np.inf)


def gini(wealth: ArrayLike) -> float:
    """Give the Gini coefficient: 0 when all own the same (also when all own nothing), (n - 1) / n when one owns all.

    wealth  (providers,) >= 0
    errors  ValueError for a value below 0 or not finite
    """
    owned = np.sort(np.asarray(wealth, np.float64))
    if not owned.size or not np.isfinite(owned).all() or owned[0] < 0:
        raise ValueError(f"gini: wealth must hold finite values >= 0, got {owned[:5].tolist()}")
    total, count = float(owned.sum()), owned.size
    if total == 0:
        return 0.0
    rank = np.arange(1, count + 1)
    return max(0.0, float(((2 * rank - count - 1) * owned).sum() / (count * total)))


def markdown() -> str:
    """Write the dictionary as a table for the docs."""
    lines = ["| name | unit | better | meaning |", "|---|---|---|---|"]
    for name, metric in (METRICS | TRAINING_METRICS).items():
        lines.append(f"| `{name}` | {metric.unit} | {metric.direction} | {metric.meaning} |")
    return "\n".join(lines) + "\n"


def _total(values: ArrayLike) -> float:
    return float(np.asarray(values, np.float64).sum())


def _goodput(attained: NDArray[np.bool_], slo_s: Array, horizon_s: float) -> float:
    """Sum the attained rates: a request of SLO s is judged only if it arrives in the first horizon_s - s seconds."""
    window = horizon_s - slo_s[attained]
    return float((1.0 / window[window > 0]).sum())


def _tpot(answered: np.ndarray) -> float:
    long = answered[answered["output_tokens"] >= 2]
    return float(((long["latency_s"] - long["ttft_s"]) / (long["output_tokens"] - 1)).mean()) if len(long) else math.nan


def _nothing_due(count: int, horizon_s: float, threshold_s: float | None) -> str:
    limit = "their SLO" if threshold_s is None else f"a threshold of {threshold_s:g} s"
    return f"outcomes: none of {count} requests is due within {horizon_s:g} s under {limit}; use a longer horizon or a shorter SLO"


def _check(outcomes: np.ndarray, horizon_s: float) -> None:
    """Refuse rows that no simulator or node can have produced."""
    missing = [name for name in OUTCOME_FIELDS if name not in (outcomes.dtype.names or ())]
    if missing:
        raise ValueError(f"outcomes: has no field {', '.join(missing)}; expected {', '.join(OUTCOME_FIELDS)}")
    if not (math.isfinite(horizon_s) and horizon_s > 0):
        raise ValueError(f"horizon_s must be a number of seconds > 0, got {horizon_s}")
    for name in ("arrival_s", "latency_s", "ttft_s", "slo_s"):
        column = outcomes[name]
        wrong = np.isnan(column) | (column < 0) | (np.isinf(column) if name in ("arrival_s", "slo_s") else False)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(f"outcomes: {name} must be >= 0 seconds, got {column[row]} in row {row}")
    answered = outcomes["status"] == FINISHED
    wrong = (answered & ~np.isfinite(outcomes["latency_s"])) | ~np.isin(outcomes["status"], (UNFINISHED, FINISHED, FAILED))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"outcomes: status {outcomes['status'][row]} does not go with latency {outcomes['latency_s'][row]} s in row {row}"
        )
