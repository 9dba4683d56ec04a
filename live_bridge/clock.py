"""The clock of a node: seconds of the market, which may run faster than those on the wall when the engines are emulated."""

import asyncio
import time
from collections.abc import Callable


class Clock:
    """Market seconds since this clock was made; monotonic, whatever is done to the wall's clock."""

    def __init__(self, speed: float = 1.0, source: Callable[[], float] = time.monotonic) -> None:
        """Begin at 0.

        speed    market seconds per second on the wall, > 0
        source   seconds that never run back
        """
        if not speed > 0.0:
            raise ValueError(f"speed: must be > 0 market seconds per second, got {speed}")
        self.speed = speed
        self._source = source
        self._zero_s = source()

    def now(self) -> float:
        """Market seconds since the beginning."""
        return (self._source() - self._zero_s) * self.speed

    def wall_s(self, market_s: float) -> float:
        """Seconds on the wall that `market_s` market seconds take."""
        return market_s / self.speed

    async def sleep(self, market_s: float) -> None:
        """Wait `market_s` market seconds."""
        await asyncio.sleep(max(market_s, 0.0) / self.speed)
