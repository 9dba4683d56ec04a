"""A folder that keeps what has been done, so that a series which was cut short goes on where it stood. Knows nothing of content."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.publish import write_results, write_whole
from settings import SettingsError, Slip

SETTINGS = "settings.json"
KIND, FORMAT = "wwwserve/live", 1
"""What a file of results begins with; the number rises when an entry changes its meaning."""


class Kept:
    """Records by name in a folder that belongs to one series."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open the folder, or begin it.

        settings  what all records have in common: plain values
        errors    SettingsError when the folder was begun with others
        """
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        file, mine = folder / SETTINGS, json.loads(json.dumps(settings))
        if not file.is_file():
            write_whole(file, _lines(mine))
            return
        theirs = json.loads(file.read_text(encoding="utf-8"))
        slips = [
            Slip(
                str(file),
                key,
                f"is {theirs.get(key)} in what is kept there, and {mine.get(key)} now; name another folder by --keep",
            )
            for key in sorted({*mine, *theirs})
            if mine.get(key) != theirs.get(key)
        ]
        if slips:
            raise SettingsError(*slips)

    def find(self, name: str) -> dict[str, Any] | None:
        """Read a record; None when it is not there."""
        file = self._folder / f"{name}.json"
        if not file.is_file():
            return None
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def put(self, name: str, record: Mapping[str, Any]) -> None:
        """Keep a record, whole or not at all."""
        write_whole(self._folder / f"{name}.json", _lines(record))


def _lines(content: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode()


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of results in one move."""
    write_results(path, {"kind": KIND, "format": FORMAT, **content})


def read(path: Path) -> dict[str, Any]:
    """Read a file of results.

    errors   ValueError when it is not there, none, or of another format
    """
    if not path.is_file():
        raise ValueError(f"{path}: is not there; python -m benchmarks.proof {path.stem}")
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or (found.get("kind"), found.get("format")) != (KIND, FORMAT):
        raise ValueError(f"{path}: must begin with kind {KIND} and format {FORMAT}; python -m benchmarks.proof {path.stem}")
    return found
