"""Takes the picture of the live page in docs/live.png: `RULES=python python -m tests.live_bridge.picture [--seconds S]`."""

import argparse
import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.live_bridge.chromium import Chromium, found, tab

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "live.png"
WIDTH, HEIGHT = 1280, 800
MARKET = ("up", "--nodes", "5", "--speed", "20", "--load", "1.2", "market.duel_rate=0.3")
"""Busy enough for requests to travel, and with duels more often than usual."""
LIVELY = "document.querySelectorAll('#duels b').length >= 2 && document.querySelectorAll('#ways .flow').length >= 4"
"""What the picture is to show: it waits for it."""
PATIENCE_S = 25.0


async def take(url: str, seconds: float) -> bytes:
    """Watch a page for a while and take its picture (PNG)."""
    browser = Chromium()
    try:
        async with tab(browser, WIDTH, HEIGHT) as page:
            await page.open(url)
            await asyncio.sleep(seconds)  # curves and counts grow with time
            await page.until(LIVELY, PATIENCE_S)
            return await page.shot(whole=True)
    finally:
        browser.close()


def main() -> int:
    """Put a market up, watch it, take its picture, end it."""
    parser = argparse.ArgumentParser(description="Take a picture of the live page.")
    parser.add_argument("--seconds", type=float, default=20.0, help="on the wall that the market has run by then, at least")
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    if found() is None:
        sys.stderr.write("no Chromium on this machine: apt-get install chromium\n")
        return 2
    words = [sys.executable, "-m", "live_bridge", *MARKET]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as market:
        assert market.stdout is not None
        try:
            url = next(match[1] for line in market.stdout if (match := re.search(r"live page: (\S+)", line)))
            args.out.write_bytes(asyncio.run(take(url, args.seconds)))
        finally:
            market.send_signal(signal.SIGINT)
            market.communicate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
