"""What a series of plays says: means over repetitions with intervals, and differences between policies, play by play.

By the protocol's bootstrap (agents/statistics.py), but by the mean: of a handful of repetitions nothing can be cut off. Over all
loads together, repetitions are drawn within each load.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.statistics import Estimate, estimate, mean, paired_difference

METRICS = ("slo_attainment", "latency_s_mean", "latency_s_p50", "latency_s_p99", "ttft_s_mean", "delegated_share")
OVERALL = "all"
"""Stands for all loads together."""

Record = Mapping[str, Any]
Scores = NDArray[np.float64]


def summarise(plays: Sequence[Record], learned: str) -> dict[str, Any]:
    """Sum up plays: by load and policy, over all loads, and the differences of `learned` from each other policy.

    plays    records of benchmarks.proof.plays: the same seeds for each load and policy, at least 2
    learned  the policy that the others are set beside
    """
    loads = sorted({play["load"] for play in plays})
    policies = list(dict.fromkeys(play["policy"] for play in plays))
    others = [name for name in policies if name != learned]
    places = {f"{load:g}": [load] for load in loads} | {OVERALL: loads}
    return {
        "policies": policies,
        "loads": list(places),
        "estimates": {
            where: {name: {key: _rounded(estimate(scores(plays, name, key, chosen), mean)) for key in METRICS} for name in policies}
            for where, chosen in places.items()
        },
        "differences": {
            where: {
                other: {
                    key: _rounded(paired_difference(scores(plays, learned, key, chosen), scores(plays, other, key, chosen), mean))
                    for key in METRICS
                }
                for other in others
            }
            for where, chosen in places.items()
        },
        "simulated": {
            f"{load:g}": {
                name: {
                    key: round(float(scores(plays, name, key, [load], "simulated").mean()), 4)
                    for key in ("slo_attainment", "latency_s_mean")
                }
                for name in policies
            }
            for load in loads
        },
        "totals": {name: totals([play for play in plays if play["policy"] == name]) for name in policies},
    }


def scores(plays: Sequence[Record], policy: str, metric: str, loads: Sequence[float], world: str = "live") -> Scores:
    """Give a metric of a policy: (repetitions, loads), a row a seed.

    errors   ValueError where a play of it is missing
    """
    found = {(play["seed"], play["load"]): play[world][metric] for play in plays if play["policy"] == policy}
    seeds = sorted({play["seed"] for play in plays})
    missing = [(seed, load) for seed in seeds for load in loads if (seed, load) not in found]
    if missing:
        raise ValueError(f"{policy}: was not played with seed {missing[0][0]} at load {missing[0][1]:g}; play all of the series")
    return np.array([[found[seed, load] for load in loads] for seed in seeds], np.float64)


def totals(plays: Sequence[Record]) -> dict[str, float]:
    """Add up what is counted in plays."""
    requests = sum(play["live"]["requests"] for play in plays)
    return {
        "plays": len(plays),
        "requests": requests,
        "failed": round(sum(play["live"]["failed_share"] * play["live"]["requests"] for play in plays)),
        "decisions": sum(play["decisions"] for play in plays),
        "decisions_by_rules": sum(play["decisions_by_rules"] for play in plays),
        "plays_too_busy": sum(play["too_busy"] for play in plays),
        "plays_with_money_lost": sum(play["money_difference"] != 0.0 for play in plays),
    }


def drift(plays: Sequence[Record]) -> list[float] | None:
    """Least, median and greatest time of an engine's iteration before the plays (ms); None where none was taken."""
    steps = [step for play in plays for step in play.get("step_ms", ())]
    return [round(float(value), 2) for value in np.percentile(steps, (0, 50, 100))] if steps else None


def _rounded(found: Estimate) -> list[float]:
    return [float(f"{value:.5g}") for value in found]
