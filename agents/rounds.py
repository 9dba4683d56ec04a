"""Rounds on disk: what one policy did on all seeds, as one file of arrays that gives back the same bytes; no pickle."""

import io
import json
import zipfile
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from agents.publish import write_whole
from agents.scores import Axis, Played, Round

FACTS = ("name", "brain", "dispatch", "agent_steps")
ARRAYS = ("curve", "over_time", "wealth")
TABLES = ("metrics", "providers")


def write(path: Path, one: Round) -> None:
    """Write a round in one move."""
    played = one.played
    facts = {name: getattr(played, name) for name in FACTS}
    facts |= {"scenario": one.scenario, "horizon_s": one.horizon_s, "relative": one.axis.relative, "slo": one.axis.slo}
    arrays: dict[str, Any] = {name: getattr(played, name) for name in ARRAYS}
    arrays |= {f"{table}/{name}": column for table in TABLES for name, column in getattr(played, table).items()}
    arrays |= {"thresholds": one.axis.thresholds, "times_s": one.times_s}
    arrays |= {"latencies_s": np.concatenate(played.latencies_s), "counts": np.array([len(row) for row in played.latencies_s])}
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    written = io.BytesIO()
    np.savez_compressed(written, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, written.getvalue())


def read(path: Path) -> Round:
    """Read a round.

    errors   ValueError when the file is none, or of another version
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            stored = {name: file[name] for name in file.files}
        facts = json.loads(stored["facts"].tobytes())
        latencies = np.split(stored["latencies_s"], np.cumsum(stored["counts"])[:-1])
        parts: dict[str, Any] = {name: facts[name] for name in FACTS} | {name: stored[name] for name in ARRAYS}
        parts |= {table: _below(stored, table) for table in TABLES}
        played = Played(**parts, latencies_s=tuple(latencies))
        axis = Axis(stored["thresholds"], facts["relative"], facts["slo"])
        return Round(facts["scenario"], facts["horizon_s"], axis, stored["times_s"], played)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: is not a whole round ({error}); remove it, and it is played again") from error


def _below(stored: dict[str, Any], table: str) -> dict[str, Any]:
    return {name.partition("/")[2]: column for name, column in stored.items() if name.startswith(f"{table}/")}


assert set(FACTS) | set(ARRAYS) | set(TABLES) | {"latencies_s"} == {field.name for field in fields(Played)}
