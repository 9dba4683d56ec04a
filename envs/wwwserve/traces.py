"""Recorded request traces: reads and checks CSV files of arrival_s, prompt_tokens, output_tokens, and deals them out."""

import csv
from importlib import resources
from pathlib import Path

import numpy as np

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
PROVIDER = "provider"
"""The column that says whose users asked, counted from 0 within a group; without it requests are dealt in turn."""


def names() -> list[str]:
    """List the traces of the folder `traces`, which are known by name."""
    return sorted(
        entry.name[:-4] for entry in (resources.files("envs.wwwserve") / "traces").iterdir() if entry.name.endswith(".csv")
    )


def deal(path: str | Path, count: int) -> list[np.ndarray]:
    """Read a trace and deal its requests out to `count` providers: by its column `provider`, or in turn.

    returns   as `load`, for each provider
    errors    as `load`; ValueError when the column names others than these providers
    """
    rows, whose = _read(path)
    if whose is None:
        return [rows[k::count] for k in range(count)]
    if set(whose.tolist()) != set(range(count)):
        raise ValueError(f"{path}: column {PROVIDER} must name each of 0 to {count - 1}, got {sorted(set(whose.tolist()))}")
    return [rows[whose == k] for k in range(count)]


def load(path: str | Path) -> np.ndarray:
    """Read a trace.

    path      a name of `names`, or a CSV file whose header holds COLUMNS, in any order, beside others; lines that begin
              with # are left out
    returns   (requests, 3) float64: arrival (s, not falling), prompt tokens, output tokens (>= 1)
    errors    ValueError naming file, line and rule
    """
    return _read(path)[0]


def _text(path: str | Path) -> tuple[str, str]:
    """The text of a trace, and how to name it."""
    if str(path) in names():
        place = f"envs/wwwserve/traces/{path}.csv"
        return (resources.files("envs.wwwserve") / "traces" / f"{path}.csv").read_text(encoding="utf-8"), place
    file = Path(path)
    if not file.is_file():
        known = ", ".join(names())
        raise ValueError(f"{file}: no such trace; give one of {known}, or the path of a CSV file with columns {', '.join(COLUMNS)}")
    try:
        return file.read_text(encoding="utf-8"), str(file)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as text: {error}") from None


def _read(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a trace as `load` does, and whose each request is, where the file says so."""
    text, place = _text(path)
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    header = rows.fieldnames or ()
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ValueError(f"{place}: needs the columns {', '.join(COLUMNS)}; {', '.join(missing)} missing")
    wanted = (*COLUMNS, PROVIDER) if PROVIDER in header else COLUMNS
    out = [_row(row, wanted, f"{place}: request {number}") for number, row in enumerate(rows, 1)]
    for number in range(1, len(out)):
        if out[number][0] < out[number - 1][0]:
            raise ValueError(
                f"{place}: request {number + 1}: arrival_s must not fall, got {out[number][0]:g}; sort the trace by time"
            )
    if not out:
        raise ValueError(f"{place}: holds no request")
    values = np.array(out)
    return values[:, :3], values[:, 3].astype(int) if PROVIDER in header else None


def _row(row: dict[str, str], wanted: tuple[str, ...], place: str) -> tuple[float, ...]:
    least = dict(zip((*COLUMNS, PROVIDER), (0.0, 1.0, 1.0, 0.0), strict=True))
    values = []
    for name in wanted:
        try:
            value = float(row[name])
        except (TypeError, ValueError):
            raise ValueError(f"{place}: {name} must be a number, got {row[name]!r}") from None
        if not least[name] <= value < 1e12:
            raise ValueError(f"{place}: {name} must be a number >= {least[name]:g}, got {row[name]}")
        values.append(value)
    return tuple(values)
