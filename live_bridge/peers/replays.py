"""Messages that were taken already, with the first reply to each: in memory and in files, until they are void.

Two generations, each as long as a message can live: the older one is forgotten whole, so there is nothing to sort or to compact.
Knows nothing of signatures.
"""

import os
from base64 import b64decode, b64encode
from pathlib import Path
from typing import NamedTuple

import orjson

from live_bridge.http.message import Headers

PREFIX, SUFFIX = "messages-", ".seen"


class Reply(NamedTuple):
    """An answer as it was sent."""

    status: int
    headers: Headers
    body: bytes


class Bounds(NamedTuple):
    """What may be remembered in one generation."""

    span_s: float  # s on the wall, the longest time for which a message can be valid
    messages: int
    of_one_sender: int
    reply_bytes: int  # of one reply; a longer one is not kept
    replies_bytes: int  # of all


class Full(Exception):  # noqa: N818  (a refusal, not a bug)
    """No further message can be remembered now, hence none taken."""


class Entry:
    """A message that was taken."""

    __slots__ = ("digest", "reply")

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        self.reply: Reply | None = None


class _Generation:
    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self.entries: dict[bytes, Entry] = {}
        self.of_sender: dict[bytes, int] = {}
        self.reply_bytes = 0
        self.path: Path | None = None
        self.file = -1

    def add(self, sender: bytes, key: bytes, digest: bytes) -> None:
        self.entries[key] = Entry(digest)
        self.of_sender[sender] = self.of_sender.get(sender, 0) + 1

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


class Replays:
    """The memory of a door; it survives the process when it has a folder.

    A clock that is set back revives nothing: until it has caught up, messages count as void. When it was the former time that was
    wrong, delete the files.
    """

    def __init__(self, folder: Path | None, bounds: Bounds, unix_s: float) -> None:
        """Read what a former life has left in `folder` (None: memory alone).

        unix_s   seconds since 1970
        """
        self._folder = folder
        self._bounds = bounds
        self._old = _Generation(0.0)
        self._new = _Generation(unix_s)
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        paths = sorted(folder.glob(f"{PREFIX}*{SUFFIX}"))
        for path in paths[:-2]:
            path.unlink()
        kept = [_read(path) for path in paths[-2:]]
        if kept:
            self._new = kept.pop()
        if kept:
            self._old = kept.pop()
        self._open(self._new)

    @property
    def floor_s(self) -> float:
        """The time (unix s) before which it cannot be again: a clock that was set back must not revive old messages."""
        return self._new.start_s

    def __len__(self) -> int:
        return len(self._old.entries) + len(self._new.entries)

    def find(self, key: bytes) -> Entry | None:
        """The message of this key, when it was taken before."""
        return self._new.entries.get(key) or self._old.entries.get(key)

    def add(self, sender: bytes, key: bytes, digest: bytes, unix_s: float) -> None:
        """Remember a message before it has any effect.

        errors   Full when there is no room, OSError when it cannot be written: then it must have no effect
        """
        if unix_s >= self._new.start_s + self._bounds.span_s:
            self._turn(unix_s)
        new = self._new
        if len(new.entries) >= self._bounds.messages or new.of_sender.get(sender, 0) >= self._bounds.of_one_sender:
            raise Full
        self._write(new, orjson.dumps([sender.hex(), key.hex(), digest.hex()]))
        new.add(sender, key, digest)

    def keep(self, key: bytes, reply: Reply) -> None:
        """Keep the first reply to a message, when it is small."""
        generation = self._new if key in self._new.entries else self._old
        entry = generation.entries.get(key)
        size = len(reply.body)
        if entry is None or entry.reply is not None or size > self._bounds.reply_bytes:
            return
        if generation.reply_bytes + size > self._bounds.replies_bytes:
            return
        generation.reply_bytes += size
        entry.reply = reply
        headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in reply.headers]
        self._write(generation, orjson.dumps([key.hex(), reply.status, headers, b64encode(reply.body).decode()]))

    def close(self) -> None:
        """Close the files; they stay for the next life."""
        self._old.close()
        self._new.close()

    def _turn(self, unix_s: float) -> None:
        self._old.close()
        if self._old.path is not None:
            self._old.path.unlink(missing_ok=True)
        self._old, self._new = self._new, _Generation(unix_s)
        if self._folder is not None:
            self._open(self._new)

    def _open(self, generation: _Generation) -> None:
        assert self._folder is not None
        if generation.path is None:
            generation.path = self._folder / f"{PREFIX}{int(generation.start_s * 1000):015d}{SUFFIX}"
        generation.file = os.open(generation.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _write(self, generation: _Generation, line: bytes) -> None:
        if generation.file < 0:
            return
        line = b"\n" + line  # in front: it ends what a crash or a full disk has torn, which would take this line with it
        if os.write(generation.file, line) != len(line):
            raise OSError(f"{generation.path}: the disk is full")


def _read(path: Path) -> _Generation:
    """Read a generation back; a torn line belongs to a message that has had no effect."""
    generation = _Generation(int(path.name[len(PREFIX) : -len(SUFFIX)]) / 1000)
    generation.path = path
    for line in path.read_bytes().splitlines():
        try:
            fields = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if len(fields) == 3:
            sender, key, digest = (bytes.fromhex(field) for field in fields)
            generation.add(sender, key, digest)
        else:
            entry = generation.entries.get(bytes.fromhex(fields[0]))
            if entry is None:
                continue
            headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields[2]]
            entry.reply = Reply(fields[1], headers, b64decode(fields[3]))
            generation.reply_bytes += len(entry.reply.body)
    return generation
