"""Ends process groups when whoever started them is gone, even by kill -9: `python -m live_bridge.keeper GRACE_S`.

Reads lines from standard input, whose other end the starter holds: `+GROUP` to watch over a process group, `-GROUP` to let it
be. When that end closes, the groups that are left are told to stop, and killed after GRACE_S seconds.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable

LOOK_S = 0.05
"""Time between two looks whether a group is gone."""


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


def end(groups: Iterable[int], grace_s: float) -> None:
    """Tell groups to stop, wait until they have, and kill after `grace_s` what has not."""
    left = [group for group in groups if tell(group, signal.SIGTERM)]
    until = time.monotonic() + grace_s
    while left and time.monotonic() < until:
        time.sleep(LOOK_S)
        left = [group for group in left if alive(group)]
    for group in left:
        tell(group, signal.SIGKILL)


def main(words: list[str]) -> int:
    """Keep watch until standard input ends."""
    for word in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(word, signal.SIG_IGN)  # they are meant for the starter, whose end this waits for
    kept: set[int] = set()
    for line in sys.stdin:
        group = int(line)
        if group > 0:
            kept.add(group)
        else:
            kept.discard(-group)
    end(kept, float(words[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
