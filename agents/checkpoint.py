"""A training run on disk: plain arrays and JSON in one npz file, written whole or not at all, read without pickle.

Knows nothing of what the arrays mean; the learners pack and unpack them.
"""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.publish import write_whole

FILE = "checkpoint.npz"
VERSION = 1
_FACTS = "facts.json"
UNREADABLE = (zipfile.BadZipFile, zlib.error, struct.error, ValueError, KeyError, EOFError, OSError, RuntimeError, AttributeError)
"""What zipfile and NumPy raise for a file that is cut off, damaged or no checkpoint at all."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used: not there, damaged, or of another run's shape."""


class Checkpoint(NamedTuple):
    """What a run needs to go on."""

    arrays: Mapping[str, NDArray[Any]]
    facts: Mapping[str, Any]  # JSON


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in one move: the former one stands until the new one is whole."""
    facts = np.frombuffer(json.dumps({"version": VERSION, **checkpoint.facts}).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **{_FACTS: facts, **checkpoint.arrays})
    write_whole(path, content.getvalue())


def read(path: Path) -> Checkpoint:
    """Read a checkpoint, from its file or the run's folder that holds it.

    errors   CheckpointError
    """
    file = path / FILE if path.is_dir() else path
    if not file.exists():
        raise CheckpointError(
            f"{path}: there is no checkpoint; a run writes {FILE} into its folder, the first after agents.checkpoint_every steps"
        )
    try:
        with zipfile.ZipFile(file) as parts:
            damaged = parts.testzip()  # every part against its checksum, before NumPy believes a word of it
        if damaged:
            raise zipfile.BadZipFile(f"{damaged} is damaged")
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        facts = json.loads(arrays.pop(_FACTS).tobytes())
    except UNREADABLE as error:
        raise CheckpointError(
            f"{file}: is not a whole checkpoint ({error}); take an older one, or start anew without resume"
        ) from error
    if not isinstance(facts, dict) or facts.get("version") != VERSION:
        found = facts.get("version") if isinstance(facts, dict) else facts
        raise CheckpointError(f"{file}: has checkpoint version {found}, this build reads {VERSION}; start anew without resume")
    return Checkpoint(arrays, facts)


def below(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """Pick the arrays under `prefix/`, named without it."""
    return {name[len(prefix) + 1 :]: value for name, value in arrays.items() if name.startswith(f"{prefix}/")}


def above(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    """Name arrays under `prefix/`: the reverse of `below`."""
    return {f"{prefix}/{name}": value for name, value in arrays.items()}


def check_shape(wanted: Mapping[str, Any], stored: Checkpoint, place: str) -> None:
    """Refuse a run that differs in what two runs must have in common for one to go on from the other.

    wanted   name -> JSON value, of the run that would go on; the stored one has it in its fact `shape`
    errors   CheckpointError with what the names were and are
    """
    found = stored.facts.get("shape")
    was = found if isinstance(found, dict) else {}
    told = [f"{key} was {was.get(key)}, is {wanted.get(key)}" for key in [*wanted, *was] if was.get(key) != wanted.get(key)]
    if told:
        told = list(dict.fromkeys(told))
        raise CheckpointError(f"{place}: was written by a run of another shape: {'; '.join(told)}; give the settings of that run")


@contextmanager
def refusing(place: str) -> Iterator[None]:
    """Turn what a block misses in a checkpoint, and an environment's word on a state that is not its own, into CheckpointError."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"{place}: lacks {error}; take an older checkpoint, or start anew without resume") from error
    except ValueError as error:
        raise CheckpointError(f"{place}: {error}; give the settings of that run") from error
