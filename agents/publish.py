"""Files and folders that appear under their name whole or not at all, whenever the process is killed. Knows nothing of content."""

import ctypes
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_folder(target: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """Give an empty folder to write into; when the block ends it takes the name `target` in one move, replacing a former one.

    target  what the block raises leaves it as it was
    names   files that a former folder may hold: a folder with anything else is not replaced
    errors  FileExistsError when `target` is something else than such a folder
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _check_replaceable(target, names)
    _sweep(target)
    outer = Path(tempfile.mkdtemp(prefix=_prefix(target), suffix=f".{os.getpid()}", dir=target.parent))
    staging = outer / target.name
    try:
        staging.mkdir()
        yield staging
        sync(staging)
        _move(staging, target)
        sync(target.parent)
    finally:
        shutil.rmtree(outer)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside `path` and give it that name in one move."""
    temporary = path.with_name(f"{_prefix(path)}{os.getpid()}")
    try:
        write_synced(temporary, content)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_results(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values as JSON that people can read and compare, in one move: a list of plain values stands on one line."""
    text = json.dumps(content, indent=1, allow_nan=False)
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda match: "[" + re.sub(r"\s+", " ", match[1]) + "]", text)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, f"{text}\n".encode())


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_replaceable(target: Path, names: tuple[str, ...]) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"{target}: is a file; give the name of a folder that does not exist yet")
    foreign = sorted(path.name for path in target.iterdir() if path.name not in names)
    if foreign:
        raise FileExistsError(f"{target}: holds {foreign[0]}, which would be lost; give another name or move it away")


def _prefix(target: Path) -> str:
    return f".{target.name}.writing."


def _sweep(target: Path) -> None:
    """Remove what killed processes have left beside `target`; what living ones write stays."""
    for left in target.parent.glob(f"{_prefix(target)}*"):
        process = left.name.rpartition(".")[2]
        if process.isdecimal() and not _alive(int(process)) and left.is_dir():
            shutil.rmtree(left)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _move(staging: Path, target: Path) -> None:
    """Put `staging` under the name `target`; a former folder ends inside the folder of `staging`, to be removed with it."""
    if not target.exists():
        os.rename(staging, target)
    elif not _exchange(staging, target):  # no such call here: for an instant there is no folder, but never a half one
        os.rename(target, staging.with_name("former"))
        os.rename(staging, target)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two names in one atomic step, where the system can (Linux's renameat2)."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call is not None and call(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0
