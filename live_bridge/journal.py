"""The journal of a node: every event with the commands it led to, as JSON lines, with the OS before a command has an effect.

It holds ids, sizes, times and levels: never a prompt, an answer or a key. `live_bridge replay` reads it.

Each line ends with a seal, a checksum of all that stands before it in its life: one changed digit is found, whatever it is of.

One life of a node (start to stop) is one journal, in parts where it is long: `journal.jsonl` is written to, `journal.3.0.jsonl` is
the first part of the third life. A part is only ever moved, never cut; the parts of a life, one after the other, are its journal.
"""

import fcntl
import hashlib
import importlib.metadata
import logging
import math
import os
import platform
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from live_bridge.slip import Slipped

PART_BYTES = 256 << 20
Soon = Callable[[Callable[[], None]], object]
_LOG = logging.getLogger(__name__)


class Journal:
    """An append-only file, written once an event-loop turn."""

    def __init__(
        self,
        path: Path,
        header: dict[str, Any],
        soon: Soon | None,
        failed: Callable[[OSError], None],
        part_bytes: int = PART_BYTES,
    ) -> None:
        """Begin a new life at `path`; what is there of an earlier one is moved aside.

        header       what a replay needs to begin: settings, chance key, incarnation
        soon         runs a callback before anything that is scheduled after it: loop.call_soon; None = each line is written at once
        failed       hears that the disk takes no more; lines are kept and tried again with the next
        part_bytes   size at which a part is full
        errors       Slipped when another process writes there
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._soon, self._failed, self._part_bytes = path, soon, failed, part_bytes
        self._lock = _locked(path)
        self._life = 1 + max([_numbers(old)[0] for old in _moved(path)] + [_move_aside(path)])
        self._header = header
        self._part = self._seal = 0
        self._held = bytearray()
        self._due = False
        self._begin(path, os.O_EXCL)

    def _begin(self, path: Path, exclusive: int) -> None:
        """Open a part; its header goes in front of what is held."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | exclusive, 0o600)
        self._size = 0
        head = {**self._header, "versions": versions(), "digest": digest(self._header), "life": self._life, "part": self._part}
        raw = orjson.dumps(head, option=orjson.OPT_APPEND_NEWLINE)
        self._seal = zlib.crc32(raw, self._seal)
        self._held[:0] = raw

    def write(self, line: list[Any]) -> None:
        """Append one line, a list of plain JSON values; it is with the OS before anything that is scheduled after this call runs.

        errors   TypeError for a value that JSON has no form for, ValueError for a number that is not finite
        """
        raw = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        if b"null" in raw:
            _refuse_lost_numbers(line, line)
        self._seal = zlib.crc32(raw, self._seal)
        self._held += b"%b,%d]\n" % (raw[:-2], self._seal)
        if self._soon is None:
            self.flush()
        elif not self._due:
            self._due = True
            self._soon(self.flush)

    def flush(self) -> None:
        """Hand what is held to the OS; begin a new part where this one is full."""
        self._due = False
        try:
            while self._held:
                count = os.write(self._file, self._held)
                self._size += count
                del self._held[:count]
            if self._size >= self._part_bytes:
                self._turn()
        except OSError as error:
            self._failed(error)

    def _turn(self) -> None:
        """Begin the next part, then move the full one aside: a disk that takes no more files leaves things as they are."""
        full = self._file
        following = self._path.with_suffix(".next")
        following.unlink(missing_ok=True)
        self._part += 1
        try:
            self._begin(following, os.O_EXCL)
        except OSError:
            self._part -= 1
            raise
        os.close(full)
        self._path.rename(_aside(self._path, self._life, self._part - 1))
        following.rename(self._path)
        self.flush()

    def forget(self, before_s: float) -> int:
        """Delete journals of earlier lives that were written to for the last time before `before_s` (s since 1970).

        A life goes as a whole, its last part first: what is left of one can be read whenever this ends. That of the life under way
        stays, however old its parts are, since a replay begins with the first.
        returns   files deleted
        errors    OSError
        """
        lives: dict[int, list[Path]] = {}
        for part in _moved(self._path):
            lives.setdefault(_numbers(part)[0], []).append(part)
        old = [
            part
            for life, parts in lives.items()
            if life != self._life and max(part.stat().st_mtime for part in parts) < before_s
            for part in sorted(parts, key=_numbers, reverse=True)
        ]
        for part in old:
            part.unlink()
        return len(old)

    def close(self) -> None:
        """Write what is held and let go of the file."""
        self.flush()
        os.close(self._file)
        os.close(self._lock)


def read(path: Path) -> Iterator[Any]:
    """Read one life of a node: its header, then each line. A torn last line is left out, with a warning.

    path     the current file, or any part of an earlier life; the parts before it are found beside it
    errors   Slipped for a missing part, and for a damaged or changed line
    """
    _, first = next(_lines(path, last=True), (b"", None))
    if not isinstance(first, dict) or not {"life", "part", "digest"} <= set(first):
        raise Slipped(f"{path}: does not begin with a journal's header")
    parts = [_aside(_home(path), first["life"], part) for part in range(first["part"])]
    for part in parts:
        if not part.is_file():
            raise Slipped(f"{part}: is not there, and {path} continues it; put it back")
    seal = 0
    for part in [*parts, path]:
        lines = _lines(part, last=part == path)
        raw, head = next(lines, (b"", None))
        if not isinstance(head, dict) or head.get("digest") != first["digest"]:
            raise Slipped(f"{part}: has another header than {path}; it is not of the same life")
        if part == [*parts, path][0]:
            yield head
        seal = zlib.crc32(raw, seal)
        for number, (raw, line) in enumerate(lines, 2):
            seal = zlib.crc32(raw.rpartition(b",")[0] + b"]\n", seal)
            if not isinstance(line, list) or line[-1:] != [seal]:
                raise Slipped(f"{part}: line {number}: its seal is not that of all up to there; a line was changed or is missing")
            yield line[:-1]


def _lines(path: Path, *, last: bool) -> Iterator[tuple[bytes, Any]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if last and not raw.endswith(b"\n"):
                _LOG.warning(
                    "the last line of a journal is torn and left out", extra={"path": path, "line": number, "bytes": len(raw)}
                )
                return
            try:
                yield raw, orjson.loads(raw)
            except orjson.JSONDecodeError as error:
                raise Slipped(f"{path}: line {number} is damaged ({error}); a journal can be replayed only up to there") from None


def digest(header: dict[str, Any]) -> str:
    """SHA-256 of a header's content, whatever the order of its keys."""
    return hashlib.sha256(orjson.dumps(header, option=orjson.OPT_SORT_KEYS)).hexdigest()


def versions() -> dict[str, str]:
    """What wrote a journal."""
    return {"wwwserve": importlib.metadata.version("wwwserve"), "python": platform.python_version()}


def _refuse_lost_numbers(value: Any, line: list[Any]) -> None:
    """JSON has no form for infinity and writes null: a replay would go another way."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"journal: a number must be finite, got {value} in {line!r:.200}")
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for one in value:
            _refuse_lost_numbers(one, line)


def _locked(path: Path) -> int:
    lock = path.with_suffix(".lock")
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise Slipped(f"{path}: another node writes here; give each node a home of its own, such as home=.live_bridge/b") from None
    return handle


def _aside(path: Path, life: int, part: int) -> Path:
    return path.with_name(f"{path.stem}.{life}.{part}{path.suffix}")


def _home(path: Path) -> Path:
    """Name the file that is written to, whose part `path` may be."""
    return path if _numbers(path) == (0, 0) else path.with_name(f"{path.stem.rsplit('.', 2)[0]}{path.suffix}")


def _numbers(path: Path) -> tuple[int, int]:
    """Life and part of a part that was moved aside; (0, 0) for any other file."""
    words = path.stem.rsplit(".", 2)
    return (int(words[1]), int(words[2])) if len(words) == 3 and words[1].isdigit() and words[2].isdigit() else (0, 0)


def _moved(path: Path) -> list[Path]:
    return [old for old in path.parent.glob(f"{path.stem}.*{path.suffix}") if _numbers(old) != (0, 0)]


def _move_aside(path: Path) -> int:
    """Move what an earlier life has left to its name; returns that life's number, 0 when there is nothing."""
    if not path.exists():
        return 0
    known = [_numbers(old) for old in _moved(path)]
    with path.open("rb") as file:
        try:
            head = orjson.loads(file.readline())
            life, part = int(head["life"]), int(head["part"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            life, part = 1 + max([number for number, _ in known], default=0), 0
    if (life, part) in known:
        life, part = 1 + max(number for number, _ in known), 0
    path.rename(_aside(path, life, part))
    return life
