"""What is published of an experiment: summaries with intervals, per entrant and group of providers, as one JSON file.

Knows rounds and statistics; plays nothing. The file depends on the rounds alone, so that the same rounds give the same bytes.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents import protocol, statistics
from agents.publish import write_results
from agents.scores import REFERENCES, Array, Evaluation, Played, rounded

SEATS = ("reward", "earned", "executed", "executed_tokens", "slo_attainment", "latency_s_mean", "stake")
"""What is told of a group of providers: the mean over its members."""
BRIEF = ("slo_attainment", "latency_s_mean")
"""What is told of an entrant that is one of many."""
COURSE_POINTS = 30
RESULT_KIND = "wwwserve/results"


def summarise(evaluation: Evaluation, groups: Mapping[str, Sequence[int]], brief: Collection[str]) -> dict[str, Any]:
    """Give everything that is published of the entrants of one experiment.

    groups   label -> providers
    brief    entrants of which only BRIEF is told, and its difference from each of the others
    """
    full = [name for name in evaluation.played if name not in brief]
    return {
        "scenario": evaluation.scenario,
        "seeds": evaluation.seeds,
        "first_seed": evaluation.first_seed,
        "horizon_s": evaluation.horizon_s,
        "slo": evaluation.slo,
        "thresholds": {"unit": "SLO" if evaluation.relative else "s", "values": _numbers(evaluation.thresholds)},
        "entrants": {
            name: _in_brief(evaluation, name, full) if name in brief else _entrant(evaluation, played, groups)
            for name, played in evaluation.played.items()
        },
    }


def _in_brief(evaluation: Evaluation, name: str, others: Sequence[str]) -> dict[str, Any]:
    return {
        "summary": {metric: rounded(evaluation.estimate(name, metric)) for metric in BRIEF},
        "difference": {
            other: {metric: rounded(evaluation.difference(name, other, metric)) for metric in BRIEF} for other in others
        },
    }


def _entrant(evaluation: Evaluation, played: Played, groups: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    references = [name for name in REFERENCES if name in evaluation.played and name != played.name]
    return {
        "summary": {name: rounded(found) for name, found in evaluation.summary(played.name).items()},
        "difference": {
            other: {metric: rounded(evaluation.difference(played.name, other, metric)) for metric in played.metrics}
            for other in references
        },
        "curve": [rounded(point) for point in zip(*statistics.band(played.curve), strict=True)],
        "over_time": [_bin(column) for column in played.over_time.T],
        "groups": {label: _group(played, list(members)) for label, members in groups.items()},
        "wealth": {label: _course(played, list(members)) for label, members in groups.items()},
    }


def _group(played: Played, members: list[int]) -> dict[str, Any]:
    """Tell of a group what its mean member did, and how many of all its duels it won."""
    found: dict[str, Any] = {}
    for name in SEATS:
        values = played.providers[name][:, members].mean(axis=1)
        found[name] = rounded(statistics.estimate(values)) if np.isfinite(values).all() else None
    won, lost = (played.providers[f"duels_{way}"][:, members].sum(axis=1) for way in ("won", "lost"))
    fought = won + lost
    found["duels"] = rounded(statistics.estimate(fought, statistics.mean))
    found["duel_win_rate"] = rounded(statistics.ratio_of_means(won, fought)) if fought.any() else None
    return found


def _course(played: Played, members: list[int]) -> list[float]:
    """Thin the mean wealth of a group's member over time to COURSE_POINTS equal steps."""
    mean = played.wealth[:, :, members].mean(axis=(1, 2))
    places = np.linspace(0, len(mean) - 1, COURSE_POINTS).round().astype(int)
    return _numbers(mean[places])


def _bin(column: Array) -> float | None:
    """Average over the seeds that have a value here."""
    known = column[np.isfinite(column)]
    return float(f"{known.mean():.5g}") if len(known) else None


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Write a file of results in one move."""
    write_results(path, {"kind": RESULT_KIND, "protocol": protocol.VERSION, **found})


def read(path: Path) -> dict[str, Any]:
    """Read a file of results.

    errors   ValueError when it is none, or of another version of the protocol
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as results ({error}); write it with python -m agents.evaluate --suite") from error
    if not isinstance(found, dict) or found.get("kind") != RESULT_KIND:
        raise ValueError(f"{path}: is not a file of results (kind must be {RESULT_KIND}); write it with agents.evaluate --suite")
    if found.get("protocol") != protocol.VERSION:
        raise ValueError(
            f"{path}: protocol is {found.get('protocol')}, this build's is {protocol.VERSION}; "
            f"play it again: python -m agents.evaluate --suite {found.get('suite', 'full')} only=[{path.stem}]"
        )
    return found


def _numbers(values: Any) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
