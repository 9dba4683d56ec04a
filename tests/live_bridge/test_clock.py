"""The clock of a node: market seconds, which never run back."""

import asyncio
import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live_bridge.clock import Clock

SPEEDS = st.floats(0.01, 1000.0)


class Wall:
    def __init__(self) -> None:
        self.s = 1e6

    def __call__(self) -> float:
        return self.s


def test_a_clock_begins_at_zero_whatever_the_machines_says() -> None:
    wall = Wall()
    assert Clock(1.0, wall).now() == 0.0


@given(SPEEDS, st.floats(0.0, 1e6))
def test_market_seconds_are_seconds_on_the_wall_times_the_speed(speed: float, span_s: float) -> None:
    wall = Wall()
    clock = Clock(speed, wall)
    wall.s += span_s
    assert clock.now() == pytest.approx((wall.s - 1e6) * speed)
    assert clock.wall_s(clock.now()) == pytest.approx(wall.s - 1e6, abs=1e-6)


def test_time_never_runs_back() -> None:
    clock = Clock(3.0)
    read = [clock.now() for _ in range(1000)]
    assert all(b >= a for a, b in itertools.pairwise(read))


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
def test_a_clock_that_stands_or_runs_back_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="speed: must be > 0 market seconds per second, got"):
        Clock(speed)


def test_to_sleep_takes_the_wall_less_time_when_the_clock_is_fast() -> None:
    clock = Clock(200.0)

    async def run() -> float:
        began_s = time.monotonic()
        await clock.sleep(10.0)
        return time.monotonic() - began_s

    took_s = asyncio.run(run())
    assert took_s >= 10.0 / 200.0 * 0.99
    assert clock.now() >= 9.9


def test_to_sleep_for_nothing_or_less_is_a_turn_of_the_loop() -> None:
    async def run() -> list[str]:
        seen: list[str] = []
        asyncio.get_running_loop().call_soon(seen.append, "others")
        await Clock(0.01).sleep(-5.0)
        return seen

    assert asyncio.run(run()) == ["others"]
