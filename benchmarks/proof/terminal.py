"""What both parts do at a terminal: tell how far they are, and end whole on Ctrl-C."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from live_bridge.fleet import on_signals

Result = TypeVar("Result")


def say(text: str) -> None:
    """Write a line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


async def unless_stopped(work: Awaitable[Result]) -> Result:
    """Await work, whose nodes and engines end with it when the process is told to stop.

    errors   KeyboardInterrupt then
    """
    task = asyncio.current_task()
    assert task is not None
    on_signals(task.cancel, task.cancel)
    try:
        return await work
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
