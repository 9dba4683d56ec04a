"""A loop whose time passes only when nothing is left to do: timers of hours fire at once, and each run is the same."""

import asyncio
import random
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0)
        if not events and timeout is None:
            raise AssertionError("the loop waits for something that will never come")
        if not events and timeout:
            self.loop.now_s += timeout + self.loop.lag()
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time begins at 100 s; each timer fires up to `late_s` late."""

    def __init__(self, late_s: float = 0.0, seed: int = 0) -> None:
        self.now_s = 100.0
        self._chance, self._late_s = random.Random(seed), late_s
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now_s

    def lag(self) -> float:
        return self._chance.uniform(0.0, self._late_s)


def run(coroutine: Coroutine[Any, Any, T], late_s: float = 0.0, seed: int = 0) -> T:
    """Run to the end in virtual time."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(late_s, seed)) as runner:
        return runner.run(coroutine)
