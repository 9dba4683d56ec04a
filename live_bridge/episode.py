"""An episode that the simulator has rehearsed: its demand, its providers, and what became of it there, read from a file.

The simulator runs in a process of its own (`python -m agents.rehearse`); the two worlds share nothing but this file.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from live_bridge.slip import Slipped

FORMAT = 1
UNFINISHED, FINISHED, FAILED = 0, 1, 2
"""`status` of a request."""
ROW = np.dtype(
    [
        ("origin", "i8"),
        ("executor", "i8"),  # -1: not known
        ("arrival_s", "f8"),
        ("prompt_tokens", "i8"),
        ("output_tokens", "i8"),
        ("latency_s", "f8"),
        ("ttft_s", "f8"),
        ("slo_s", "f8"),
        ("status", "i8"),
        ("delegated", "i8"),
    ]
)
"""A request and its fate, with the fields that agents.metrics reads."""


class EpisodeError(Slipped):
    """The simulator refused, or its file cannot be used; the text says why."""


class Ask(NamedTuple):
    """One request of a user."""

    arrival_s: float
    provider: int
    prompt_tokens: int
    output_tokens: int
    forecast_tokens: int
    slo_s: float


class Place(NamedTuple):
    """What one provider is."""

    profile_name: str
    profile: dict[str, Any]  # as in conf/serving, with the coefficients of this episode
    region: str
    slo_s: float


class Course(NamedTuple):
    """One play of an episode, simulated or live."""

    rows: np.ndarray  # (requests,) ROW, in the order of the demand
    wealth: NDArray[np.float64]  # (providers,) credits at the end
    actions: NDArray[np.int64] | None  # (3, 5) decisions by head and level; None where rules decide
    counters: Mapping[str, list[int]]  # (providers,) each


class Episode(NamedTuple):
    """A rehearsed episode."""

    scenario: str
    seed: int
    horizon_s: float
    arrivals_until_s: float
    control_s: float
    tick_s: float
    terms: dict[str, Any]
    places: list[Place]
    demand: list[Ask]
    played: dict[str, list[Course]]  # policy -> its replays
    source: dict[str, Any]  # commit of the simulator


def rehearse(words: Sequence[str]) -> Episode:
    """Let the simulator play an episode.

    words    of `python -m agents.rehearse`, without `out`
    errors   EpisodeError with what it said
    """
    with tempfile.TemporaryDirectory(prefix="live_bridge_") as folder:
        file = Path(folder) / "episode.json"
        command = [sys.executable, "-m", "agents.rehearse", *words, f"out={file}"]
        # as plain Python: one episode is played sooner than compiled rules are loaded
        done = subprocess.run(command, env={**os.environ, "RULES": "python"}, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = done.stderr.strip() or f"{' '.join(command)} ended with status {done.returncode}"
            raise EpisodeError(said)
        return load(file)


def load(file: Path) -> Episode:
    """Read what agents.rehearse has written.

    errors   EpisodeError for a file of another version
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    if content.get("format") != FORMAT:
        raise EpisodeError(f"{file}: format must be {FORMAT}, got {content.get('format')}; rehearse again with this build")
    demand = [Ask(*row) for row in zip(*(content["demand"][name] for name in Ask._fields), strict=True)]
    return Episode(
        **{name: content[name] for name in ("scenario", "seed", "horizon_s", "arrivals_until_s", "control_s", "tick_s", "terms")},
        places=[Place(**{name: place[name] for name in Place._fields}) for place in content["providers"]],
        demand=demand,
        source=content["source"],
        played={name: [_course(demand, one) for one in played["replays"]] for name, played in content["policies"].items()},
    )


def _course(demand: Sequence[Ask], found: Mapping[str, Any]) -> Course:
    endless = {name: [np.inf if value is None else value for value in found[name]] for name in ("latency_s", "ttft_s")}
    table = rows(demand, found["executor"], endless["latency_s"], endless["ttft_s"], found["status"])
    actions = None if found["actions"] is None else np.array(found["actions"], np.int64)
    return Course(table, np.array(found["accounts"]["wealth"], np.float64), actions, found["counters"])


def rows(
    demand: Sequence[Ask], executor: Sequence[int], latency_s: Sequence[float], ttft_s: Sequence[float], status: Sequence[int]
) -> np.ndarray:
    """Join a demand and its fate to a table of ROW; latency and TTFT are inf where there is none."""
    table = np.zeros(len(demand), ROW)
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "slo_s"):
        table[name] = [getattr(ask, name) for ask in demand]
    table["origin"] = [ask.provider for ask in demand]
    for name, column in (("executor", executor), ("latency_s", latency_s), ("ttft_s", ttft_s), ("status", status)):
        table[name] = column
    table["delegated"] = (table["executor"] != table["origin"]) & (table["executor"] >= 0)
    return table
