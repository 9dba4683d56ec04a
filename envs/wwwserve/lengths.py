"""Request lengths as shipped quantile tables. Reads and checks the files of the folder `lengths`; draws nothing itself."""

import csv
import difflib
import math
from importlib import resources
from importlib.resources.abc import Traversable

import numpy as np

COLUMNS = ["p", "prompt_tokens", "output_tokens"]


def _folder() -> Traversable:
    return resources.files("envs.wwwserve") / "lengths"


def names() -> list[str]:
    """List the tables that `load` knows, in alphabetical order."""
    return sorted(entry.name[:-4] for entry in _folder().iterdir() if entry.name.endswith(".csv"))


def load(name: str) -> np.ndarray:
    """Read the length table `name` ("chat", "code", "reasoning", "summary").

    returns   (rows, 3) float64: p (share of requests, from 0 to 1, rising), prompt tokens, output tokens (quantiles, >= 1)
    errors    ValueError for an unknown name, and for a table that breaks a rule, with its line
    """
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}"
        raise ValueError(f"length table {name!r} is unknown; {hint}")
    return parse((_folder() / f"{name}.csv").read_text(encoding="utf-8"), f"envs/wwwserve/lengths/{name}.csv")


def parse(text: str, place: str) -> np.ndarray:
    """Turn the text of a length table into an array as `load` returns it; `place` names the text in errors."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("#")]
    header = next(csv.reader([lines[0][1]])) if lines else []
    if header != COLUMNS:
        raise ValueError(f"{place}: the header must be {','.join(COLUMNS)}, got {','.join(header) or 'nothing'}")
    rows: list[list[float]] = []
    for number, line in lines[1:]:
        rows.append(_row(line, f"{place}:{number}"))
        _check(rows, f"{place}:{number}")
    if len(rows) < 2 or rows[-1][0] != 1.0:
        raise ValueError(f"{place}: p must end at 1, got {rows[-1][0] if rows else 'no rows'}; add the row of the maximum")
    return np.array(rows)


def _row(line: str, place: str) -> list[float]:
    """Read one line of numbers."""
    cells = next(csv.reader([line]))
    try:
        row = [float(cell) for cell in cells]
    except ValueError:
        raise ValueError(f"{place}: every cell must be a number, got {line!r}") from None
    if len(row) != len(COLUMNS) or not all(math.isfinite(value) for value in row):
        raise ValueError(f"{place}: needs {len(COLUMNS)} finite numbers ({','.join(COLUMNS)}), got {line!r}")
    return row


def _check(rows: list[list[float]], place: str) -> None:
    """Refuse the last of `rows` when a quantile table cannot go on with it."""
    p = rows[-1][0]
    if len(rows) == 1 and p != 0.0:
        raise ValueError(f"{place}: p must start at 0, got {p:g}; add the row of the minimum")
    if len(rows) > 1 and p <= rows[-2][0]:
        raise ValueError(f"{place}: p must rise, got {p:g} after {rows[-2][0]:g}")
    for column, name in enumerate(COLUMNS[1:], 1):
        if rows[-1][column] < 1.0:
            raise ValueError(f"{place}: {name} must be >= 1 token, got {rows[-1][column]:g}")
        if len(rows) > 1 and rows[-1][column] < rows[-2][column]:
            raise ValueError(f"{place}: {name} must not fall, got {rows[-1][column]:g} after {rows[-2][column]:g}")
