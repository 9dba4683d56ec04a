"""Structured logs: one JSON object a line. What could be a prompt, an answer or a key is withheld, whoever logs it."""

import logging
import re
import sys
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path

import orjson

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
WITHHELD = "[withheld]"
PRIVATE = {
    *("answer", "answers", "body", "choices", "content", "input", "messages", "output", "prompt", "prompts", "question", "text"),
    *("api_key", "authorization", "cookie", "dsn", "headers", "key", "keys", "password", "secret", "seed", "token"),
}
"""Names of fields that are never written."""
LONGEST_TEXT = 2000
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_KEYS = re.compile(
    r"(?i)(\bbearer\s+|\bsk-|\bauthorization['\"]?\s*[:=]\s*['\"]?|api[-_]?key['\"]?\s*[:=]\s*['\"]?)[^\s'\",;)}\]]{4,}"
)
_PASSWORDS = re.compile(r"(://[^\s:/@]*:)[^\s@/]+@")


def redact(text: str) -> str:
    """Take keys and passwords out of a text, and cut it to LONGEST_TEXT characters."""
    clean = _PASSWORDS.sub(rf"\1{WITHHELD}@", _KEYS.sub(rf"\1{WITHHELD}", text))
    return clean if len(clean) <= LONGEST_TEXT else f"{clean[:LONGEST_TEXT]} [{len(clean) - LONGEST_TEXT} characters more]"


class JsonLines(logging.Formatter):
    """A record as one line: time (UTC), level, where, what, and whatever was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record; never raises for what it holds."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "where": record.name,
            "what": redact(record.getMessage()),
        }
        for name, value in vars(record).items():
            if name not in _OWN and name not in line:
                line[name] = WITHHELD if name.lower() in PRIVATE else _plain(value)
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = redact(self.formatException(record.exc_info))
        return orjson.dumps(line).decode()


def _plain(value: object) -> object:
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 63 else str(value)
    return redact(str(value)).encode(errors="replace").decode()


def configure(level: str, file: Path | None) -> logging.Handler:
    """Let everything that is logged in this process go to `file`, or to standard error.

    level   debug, info, warning or error, of our own rooms; libraries speak from warning on
    file    appended to; one that is moved away by a log rotation is begun anew
    """
    if file is None:
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = WatchedFileHandler(file, encoding="utf-8")
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one.formatter, JsonLines)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    logging.getLogger("live_bridge").setLevel(LEVELS[level])
    return handler
