"""Run a command and end it, with all that it has started, when whoever asked for it is gone: even by kill -9.

A program of its own, by the standard library alone: `python guard.py GRACE_S WORD...`; its standard input is the asker's lifeline.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

LOOK_S = 0.2


def main(words: list[str]) -> int:
    """Run `words[1:]`; at the end of standard input, or SIGTERM, end its process group within `words[0]` seconds.

    returns  the command's exit status, or 128 + the signal that ended it
    """
    grace_s, command = float(words[0]), words[1:]
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda got, _frame: told.append(got))
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: cannot be started: {error.strerror}\n")
        return 127
    while process.poll() is None and not told and not _hung_up():
        pass
    if process.poll() is None:
        _signal(process.pid, signal.SIGTERM)
        end_s = time.monotonic() + grace_s
        while process.poll() is None and time.monotonic() < end_s:
            time.sleep(LOOK_S / 4)
    _signal(process.pid, signal.SIGKILL)
    code = process.wait()
    return code if code >= 0 else 128 - code


def _hung_up() -> bool:
    """Look whether the lifeline has ended; returns after a moment at the latest."""
    readable, _, _ = select.select([0], [], [], LOOK_S)
    return bool(readable) and os.read(0, 4096) == b""


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
