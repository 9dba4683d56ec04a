"""One source, two ways to run it: `@rule` compiles a function with numba, or leaves it plain Python when RULES=python.

State is records with named fields: a structured array when compiled, a list of small objects when plain, so that
`provider.credit_micro += 1` is one line of source for both. A rule is given its storage: it makes and returns no arrays.
Knows nothing of what the rules are about.
"""

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

MODES = ("compiled", "python")
_mode = os.environ.get("RULES", "compiled")
if _mode not in MODES:
    raise ValueError(f"environment variable RULES: must be one of {', '.join(MODES)}, got {_mode!r}; unset it for compiled rules")
COMPILED = _mode == "compiled"

SHORT = np.int32
TINY = np.int8
LINE = 64
"""Bytes of a cache line: tables begin on one."""
F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def _digest(*folders: Path) -> str:
    """Name the state of all rule files: numba's own cache does not notice an edit in another file."""
    digest = hashlib.sha256()
    for folder in sorted(set(folders)):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _cache_folder(source: Path) -> str:
    root = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    if not os.access(root if Path(root).is_dir() else str(Path.home()), os.W_OK):
        root = tempfile.gettempdir()
    return str(Path(root) / "wwwserve_rules" / _digest(Path(__file__).parent, source.parent))


if COMPILED:
    import numba

    from market.compiler import compiled

    def rule(function: F) -> F:
        """Compile `function`; its disk cache is keyed by the text of every rule file it can call."""
        numba.config.CACHE_DIR = _cache_folder(Path(function.__code__.co_filename))
        return compiled(function)
else:

    def rule(function: F) -> F:
        """Leave `function` as it is."""
        return function


def record_class(dtype: np.dtype) -> type:
    """Make the plain class that stands for one record of `dtype`: its fields, zeroed, and nothing else."""
    fields = dtype.fields or {}
    zero: dict[str, Any] = {}
    for name, (kind, *_) in fields.items():
        zero[name] = kind.base.type(0).item() if not kind.shape else [kind.base.type(0).item()] * kind.shape[0]

    def __init__(self: Any) -> None:  # noqa: N807 - it becomes the method of that name
        for name, value in zero.items():
            setattr(self, name, list(value) if isinstance(value, list) else value)

    return type("Record", (), {"__slots__": tuple(fields), "__init__": __init__})


def records(dtype: np.dtype, count: int) -> Any:
    """Make `count` zeroed records of `dtype`, indexed from 0."""
    if COMPILED:
        raw = np.zeros(count * dtype.itemsize + LINE, np.uint8)
        start = -raw.ctypes.data % LINE
        return raw[start : start + count * dtype.itemsize].view(dtype)
    kind = record_class(dtype)
    return [kind() for _ in range(count)]


def to_array(table: Any, dtype: np.dtype) -> np.ndarray:
    """Copy records into a structured array of shape (count,), whichever way the rules run.

    errors   TypeError when a plain record holds a float in an integer field: compiled rules would have cut it off
    """
    if isinstance(table, np.ndarray):
        # byte by byte: copy() would leave what lies between the fields to chance, and equal states would differ
        return np.frombuffer(bytearray(table.tobytes()), table.dtype)
    out = np.zeros(len(table), dtype)
    for name, (kind, *_) in (dtype.fields or {}).items():
        column = [getattr(record, name) for record in table]
        if kind.base.kind == "i":
            flat = column if not kind.shape else [v for values in column for v in values]
            if not all(isinstance(v, (int, np.integer)) for v in flat):
                raise TypeError(f"{name}: an integer field holds a fraction")
        out[name] = column
    return out


def fill(table: Any, values: np.ndarray) -> None:
    """Overwrite records in place with `values`, a structured array of the same length (the reverse of `to_array`).

    errors   ValueError when the lengths differ: one row would otherwise be copied to all records
    """
    if len(table) != len(values):
        raise ValueError(f"fill: {len(table)} records cannot take {len(values)} rows")
    if isinstance(table, np.ndarray):
        table[:] = values
        return
    for record, row in zip(table, values, strict=True):
        for name in values.dtype.names or ():
            setattr(record, name, row[name].tolist())


def layout(**fields: Any) -> np.dtype:
    """Describe a record: `layout(credit_micro=int, mean_s=float, heap=(int, 8))`; int is 64 bit, float is double.

    `SHORT` stands for a 32-bit integer: for counts and indices in tables that have to stay small;
    `TINY` for an 8-bit one: a flag, a kind, a count below 128.
    """
    kinds = {int: np.int64, float: np.float64, SHORT: np.int32, TINY: np.int8}
    return np.dtype(
        [(name, kinds[kind[0]], (kind[1],)) if isinstance(kind, tuple) else (name, kinds[kind]) for name, kind in fields.items()],
        align=True,
    )
