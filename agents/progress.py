"""Shows how far learning is: a bar with rate and time left in a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

LINE_EVERY_S = 10.0
"""Time between two lines where no terminal is; the first iteration has its line at once."""


class LearningProgress:
    """Counts agent-steps from `done` to `total`; a context manager, so that the terminal is left as it was."""

    def __init__(self, name: str, done: int, total: int, stream: TextIO | None = None) -> None:
        self._name, self._total = name, total
        self._stream = stream or sys.stderr
        self._last_line_s = -LINE_EVERY_S
        self._bar: Progress | None = None
        if self._stream.isatty():
            columns = (
                TaskProgressColumn(),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(TextColumn(name), *columns, console=Console(file=self._stream))
            self._task = self._bar.add_task(name, total=total, completed=done, rate="")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, done: int, steps_per_s: float, reward: float) -> None:
        """Show one iteration.

        done         agent-steps so far
        steps_per_s  of this iteration
        reward       mean of a step
        """
        rate = f"{steps_per_s:,.0f} agent-steps/s  reward {reward:+.4f}"
        if self._bar:
            self._bar.update(self._task, completed=min(done, self._total), rate=rate)
            return
        now_s = time.monotonic()
        if done < self._total and now_s - self._last_line_s < LINE_EVERY_S:
            return
        self._last_line_s = now_s
        left_s = max(0, self._total - done) / max(steps_per_s, 1e-9)
        self._stream.write(f"{self._name}: {done:,} of {self._total:,} agent-steps  {rate}  {_duration(left_s)} left\n")
        self._stream.flush()


class CountingProgress:
    """A bar for `total` equal steps in a terminal, nothing elsewhere; a context manager."""

    def __init__(self, name: str, total: int, stream: TextIO | None = None) -> None:
        stream = stream or sys.stderr
        columns = (TextColumn(name), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(file=stream), transient=True, disable=not stream.isatty())
        self._task = self._bar.add_task(name, total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def advance(self, steps: int = 1) -> None:
        """Count steps."""
        self._bar.advance(self._task, steps)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
