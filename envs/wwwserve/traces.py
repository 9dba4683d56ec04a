"""Recorded request traces: reads and checks CSV files of arrival_s, prompt_tokens, output_tokens."""

import csv
from pathlib import Path

import numpy as np

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")


def load(path: str | Path) -> np.ndarray:
    """Read a trace.

    path      CSV file whose header holds COLUMNS, in any order, beside others; lines that begin with # are left out
    returns   (requests, 3) float64: arrival (s, not falling), prompt tokens, output tokens (>= 1)
    errors    ValueError naming file, line and rule
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{file}: no such trace; give the path of a CSV file with columns {', '.join(COLUMNS)}")
    with file.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(line for line in stream if not line.startswith("#"))
        missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(f"{file}: needs the columns {', '.join(COLUMNS)}; {', '.join(missing)} missing")
        out = [_row(row, f"{file}: request {number}") for number, row in enumerate(rows, 1)]
    for number in range(1, len(out)):
        if out[number][0] < out[number - 1][0]:
            raise ValueError(
                f"{file}: request {number + 1}: arrival_s must not fall, got {out[number][0]:g}; sort the trace by time"
            )
    if not out:
        raise ValueError(f"{file}: holds no request")
    return np.array(out)


def _row(row: dict[str, str], place: str) -> tuple[float, float, float]:
    values = []
    for name, low in zip(COLUMNS, (0.0, 1.0, 1.0), strict=True):
        try:
            value = float(row[name])
        except (TypeError, ValueError):
            raise ValueError(f"{place}: {name} must be a number, got {row[name]!r}") from None
        if not low <= value < 1e12:
            raise ValueError(f"{place}: {name} must be a number >= {low:g}, got {row[name]}")
        values.append(value)
    return values[0], values[1], values[2]
