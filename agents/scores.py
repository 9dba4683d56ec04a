"""What an evaluation found: every metric of every policy on every seed, its summary, and the forms in which it is passed on.

Knows metrics and statistics; plays nothing and draws nothing.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from agents import protocol, statistics
from agents.metrics import METRICS
from agents.names import Brain, Dispatch
from agents.publish import write_whole
from agents.statistics import Estimate

REFERENCES = ("paper", "single")
"""Policies that all others are compared with, seed by seed."""
BOUND = "central"
SHOWN = (
    "slo_attainment",
    "latency_s_mean",
    "latency_s_p99",
    "ttft_s_mean",
    "goodput_rps",
    "delegated_share",
    "unfinished_share",
    "welfare",
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Played:
    """What one policy did on all seeds."""

    name: str
    brain: Brain
    dispatch: Dispatch
    agent_steps: int | None  # decisions it was trained on; None for what does not learn
    metrics: Mapping[str, Array]  # name -> (seeds,); nan: the episode gives no such value
    curve: Array  # (seeds, thresholds) SLO attainment
    latencies_s: tuple[Array, ...]  # one a seed: of every due request; inf: no answer
    over_time: Array  # (seeds, bins) mean latency of the requests that arrived in each part of the episode; nan: none did
    wealth: Array  # (times, seeds, providers) credits
    providers: Mapping[str, Array]  # accounts, counters and metrics of each at the end, name -> (seeds, providers)


@dataclass(frozen=True)
class Axis:
    """The SLO thresholds of a scenario's curves."""

    thresholds: Array
    relative: bool  # multiples of each request's SLO; else seconds
    slo: float  # the scenario's own SLO on this axis


@dataclass(frozen=True)
class Round:
    """What one policy did, and where: one play of all seeds."""

    scenario: str
    horizon_s: float
    axis: Axis
    times_s: Array  # (times,) of wealth
    played: Played


@dataclass(frozen=True)
class Evaluation:
    """All policies on the same seeds of one scenario; seed i is network i of a batch of seed `first_seed`."""

    scenario: str
    first_seed: int
    seeds: int
    horizon_s: float
    thresholds: Array  # (thresholds,) of the curves: seconds, or multiples of each request's SLO
    relative: bool  # whether thresholds are multiples
    slo: float  # the scenario's own SLO on the axis of the thresholds
    times_s: Array  # (times,) of wealth
    played: Mapping[str, Played]

    def estimate(self, policy: str, metric: str) -> Estimate | None:
        """Give the interquartile mean over seeds and its 95 % interval; None when a seed has no value."""
        values = self._values(policy, metric)
        return None if values is None else statistics.estimate(values)

    def difference(self, policy: str, reference: str, metric: str) -> Estimate | None:
        """Give the interquartile mean of policy - reference, seed by seed, and its 95 % interval."""
        values, others = self._values(policy, metric), self._values(reference, metric)
        return None if values is None or others is None else statistics.paired_difference(values, others)

    def improvement(self, policy: str, reference: str, metric: str) -> Estimate | None:
        """Give the probability that a seed of `policy` is better than a seed of `reference`; None where no way is better."""
        values, others = self._values(policy, metric), self._values(reference, metric)
        sign = {"higher": 1.0, "lower": -1.0, "neither": 0.0}[METRICS[metric].direction]
        if values is None or others is None or not sign:
            return None
        return statistics.probability_of_improvement(sign * values, sign * others)

    def price_of_anarchy(self, policy: str) -> Estimate | None:
        """Give the welfare of the scheduler `central` over that of `policy`; None without it, or when one is not above 0."""
        if BOUND not in self.played:
            return None
        return statistics.ratio_of_means(self.played[BOUND].metrics["welfare"], self.played[policy].metrics["welfare"])

    def summary(self, policy: str) -> dict[str, Estimate | None]:
        """Give every metric of METRICS as an estimate."""
        return {
            name: self.price_of_anarchy(policy) if name == "price_of_anarchy" else self.estimate(policy, name) for name in METRICS
        }

    def card_scores(self) -> dict[str, dict[str, dict[str, list[float] | None]]]:
        """Give the scores that go into a policy's card: scenario -> metric -> policy -> [point, low, high]."""
        summaries = {name: self.summary(name) for name in self.played}
        return {
            self.scenario: {
                metric: {name: rounded(summary[metric]) for name, summary in summaries.items()}
                for metric in (*SHOWN, "price_of_anarchy")
            }
        }

    def rows(self) -> tuple[list[str], list[list[str | float]]]:
        """Give the columns and rows of a flat table: policy, metric, unit, point, low, high; nan: no value."""
        rows: list[list[str | float]] = []
        for name in self.played:
            for metric, found in self.summary(name).items():
                rows.append([name, metric, METRICS[metric].unit, *(found or (math.nan,) * 3)])
        return ["policy", "metric", "unit", "point", "low", "high"], rows

    def _values(self, policy: str, metric: str) -> Array | None:
        values = self.played[policy].metrics[metric]
        return values if np.isfinite(values).all() else None


def table(evaluation: Evaluation) -> Table:
    """Lay out what matters for the terminal: a column a policy; each cell has the interquartile mean and its interval."""
    shown = Table(
        title=f"{evaluation.scenario}: interquartile mean of {evaluation.seeds} seeds, and its 95 % interval",
        caption="\n".join(_gains(evaluation)),
        caption_justify="left",
        show_lines=True,
    )
    shown.add_column("metric", no_wrap=True)
    for name in evaluation.played:
        shown.add_column(name, justify="right", overflow="fold")
    for metric in SHOWN:
        cells = (_cell(evaluation.estimate(name, metric)) for name in evaluation.played)
        shown.add_row(f"{metric}\n{METRICS[metric].unit}", *cells)
    return shown


def to_json(evaluation: Evaluation, **more: Any) -> dict[str, Any]:
    """Give everything but single requests, as plain values; what has no value is null.

    more   entries to add, such as config and source
    """
    return {
        "protocol": protocol.VERSION,
        "scenario": evaluation.scenario,
        "first_seed": evaluation.first_seed,
        "seeds": evaluation.seeds,
        "horizon_s": evaluation.horizon_s,
        "statistic": "interquartile mean over seeds, [point, low, high] of the 95 % stratified bootstrap interval",
        "metrics": {name: metric._asdict() for name, metric in METRICS.items()},
        "thresholds": {"values": evaluation.thresholds.tolist(), "unit": "SLO" if evaluation.relative else "s"},
        "policies": {name: _policy_json(evaluation, played) for name, played in evaluation.played.items()},
        **more,
    }


def marl_eval(evaluation: Evaluation, environment: str) -> dict[str, Any]:
    """Give the scores in marl-eval's raw format: environment -> task -> algorithm -> run -> step and absolute metrics.

    A seed stands as a run of one episode, so that its intervals over runs are ours over seeds. A metric without a value on
    some seed is left out for that policy.
    """
    algorithms = {}
    for name, played in evaluation.played.items():
        whole = {metric: values for metric, values in played.metrics.items() if np.isfinite(values).all()}
        runs = {}
        for seed in range(evaluation.seeds):
            scores = {metric: [float(values[seed])] for metric, values in whole.items()}
            runs[f"seed_{seed}"] = {"step_0": {"step_count": played.agent_steps or 0, **scores}, "absolute_metrics": scores}
        algorithms[name] = runs
    return {environment: {evaluation.scenario: algorithms}}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def _policy_json(evaluation: Evaluation, played: Played) -> dict[str, Any]:
    references = [name for name in REFERENCES if name in evaluation.played and name != played.name]
    return {
        "brain": played.brain,
        "dispatch": played.dispatch,
        "agent_steps": played.agent_steps,
        "summary": {name: rounded(found) for name, found in evaluation.summary(played.name).items()},
        "difference": {
            other: {metric: rounded(evaluation.difference(played.name, other, metric)) for metric in played.metrics}
            for other in references
        },
        "probability_of_improvement": {
            other: {metric: rounded(evaluation.improvement(played.name, other, metric)) for metric in played.metrics}
            for other in references
        },
        "curve": [rounded(point) for point in zip(*statistics.band(played.curve), strict=True)],
        "per_seed": {name: _plain(values) for name, values in played.metrics.items()},
        "per_provider": {name: _plain(values.mean(axis=0)) for name, values in played.providers.items()},
    }


def _gains(evaluation: Evaluation) -> list[str]:
    """Say in a line what each policy gains over the references."""
    lines = []
    for name in evaluation.played:
        for other in REFERENCES:
            if other not in evaluation.played or name in REFERENCES:
                continue
            gain, latency = (evaluation.difference(name, other, metric) for metric in ("slo_attainment", "latency_s_mean"))
            assert gain is not None and latency is not None  # both have a value whenever a request is due
            lines.append(f"{name} against {other}, seed by seed: attainment {_signed(gain)}, mean latency {_signed(latency)} s")
    return lines


def _signed(found: Estimate) -> str:
    return f"{found.point:+.3g} [{found.low:+.3g}, {found.high:+.3g}]"


def _cell(found: Estimate | None) -> str:
    return "-" if found is None else f"{_number(found.point)}\n{_number(found.low)}..{_number(found.high)}"


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def rounded(found: Any) -> list[float] | None:
    """Six digits say more than any interval here."""
    return None if found is None else [float(f"{value:.6g}") for value in found]


def _plain(values: Array) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]
