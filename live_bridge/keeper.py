"""Ends process groups when whoever started them is gone, even by kill -9: `python -m live_bridge.keeper GRACE_S [WORD...]`.

The starter holds the other end of standard input. With WORDs, they are a command that is run in a group of its own and ended when
that end closes. Without, lines are read from it: `+GROUP` to watch over a process group, `-GROUP` to let it be; the groups that are
left when it closes are ended. They are told to stop, and killed after GRACE_S seconds. By the standard library alone.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

LOOK_S = 0.05
"""Time between two looks whether a group is gone."""
HEAR_S = 0.2
"""Time between two looks whether a command has ended."""
WORDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def alive(group: int) -> bool:
    """Whether any process of a group is left."""
    return tell(group, 0)


def tell(group: int, word: int) -> bool:
    """Send a signal to a whole process group; False when nobody is there."""
    try:
        os.killpg(group, word)
    except (ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        return False
    return True


def end(groups: Iterable[int], grace_s: float, look: Callable[[], object] = lambda: None) -> None:
    """Tell groups to stop, wait until they have, and kill after `grace_s` what has not.

    look   called before each look: takes note of own children that have ended, which are there until then
    """
    left = [group for group in groups if tell(group, signal.SIGTERM)]
    until = time.monotonic() + grace_s
    while left and time.monotonic() < until:
        time.sleep(LOOK_S)
        look()
        left = [group for group in left if alive(group)]
    for group in left:
        tell(group, signal.SIGKILL)


def watch(grace_s: float) -> int:
    """Keep watch over the groups that are named until standard input ends."""
    for word in WORDS:
        signal.signal(word, signal.SIG_IGN)  # they are meant for the starter, whose end this waits for
    kept: set[int] = set()
    for line in sys.stdin:
        group = int(line)
        if group > 0:
            kept.add(group)
        else:
            kept.discard(-group)
    end(kept, grace_s)
    return 0


def guard(grace_s: float, command: list[str]) -> int:
    """Run a command until it ends, standard input does, or a signal says so; nothing of its group is left afterwards.

    returns  the command's exit status, or 128 + the signal that ended it
    """
    told: list[int] = []
    for word in WORDS:
        signal.signal(word, lambda got, _frame: told.append(got))
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: cannot be started: {error.strerror}\n")
        return 127
    while process.poll() is None and not told and not _hung_up():
        pass
    if process.poll() is None:
        end([process.pid], grace_s, process.poll)
    tell(process.pid, signal.SIGKILL)  # what a command that has ended by itself has left behind
    code = process.wait()
    return code if code >= 0 else 128 - code


def _hung_up() -> bool:
    """Look whether the starter's end is closed; returns after a moment at the latest."""
    readable, _, _ = select.select([0], [], [], HEAR_S)
    return bool(readable) and os.read(0, 4096) == b""


def main(words: list[str]) -> int:
    """Watch groups, or run a command."""
    grace_s, command = float(words[0]), words[1:]
    return guard(grace_s, command) if command else watch(grace_s)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
