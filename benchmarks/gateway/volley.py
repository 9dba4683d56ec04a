"""A load of requests, each connection asking as soon as it is answered: `python -m benchmarks.gateway.volley ...` prints JSON.

It counts bytes instead of reading HTTP, so that it takes little of the processor that it shares with the engine.
"""

import argparse
import asyncio
import json
import os
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import uvloop

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
WARM_S = 0.5
PATIENCE = 20
"""How many times longer than asked a load lasts at most, until each connection has had an answer."""
TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


def payload(host: str, *, streamed: bool) -> bytes:
    """Write a request as a chat client does."""
    words = {"role": "user", "content": "Tell me in a few words what a market is, and why it needs prices. " * 2}
    body = json.dumps({"model": "mock", "messages": [words], "max_tokens": 64, "temperature": 0.5, "stream": streamed}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\naccept: */*\r\n"
    return head.encode() + b"authorization: Bearer none\r\ncontent-length: %d\r\n\r\n" % len(body) + body


FAULTS: list[str] = []
"""What went wrong: an exception in a protocol would only be printed."""


class Asker(asyncio.Protocol):
    """One connection; tells when an answer is whole, and when each piece of a stream came."""

    def __init__(self, request: bytes, whole: Callable[["Asker", float], None]) -> None:
        self._request, self._whole = request, whole
        self._got = b""
        self._size = 0
        self._closed = False
        self.pieces_s: list[tuple[float, int]] = []  # when, how many

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def ask(self) -> None:
        """Ask once."""
        if self._closed:
            return
        self._got, self._size = b"", 0
        self.pieces_s = []
        self.start_s = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Look whether the answer is whole."""
        got = self._got = self._got + data if self._got else data
        if self._size == 0:
            end = got.find(b"\r\n\r\n")
            if end < 0:
                return
            if not got.startswith(b"HTTP/1.1 200"):
                self._fail(f"{got[:300]!r}")
                return
            length = LENGTH.search(got, 0, end + 2)
            self._size = end + 4 + int(length[1]) if length else -1
        if self._size > 0:
            if len(got) >= self._size:
                self._whole(self, time.perf_counter() - self.start_s)
            return
        now_s = time.perf_counter()
        pieces = got.count(b"data: ")
        if pieces:
            self.pieces_s.append((now_s, pieces))
        if got.endswith(b"\r\n0\r\n\r\n"):
            self._whole(self, now_s - self.start_s)
        self._got = got[-6:] if not got.endswith(b"data: ") else b""

    def connection_lost(self, error: Exception | None) -> None:
        """Nobody else should close."""
        if not self._closed:
            self._fail(f"a connection was closed: {error}")

    def close(self) -> None:
        """Leave."""
        self._closed = True
        self._transport.abort()

    def _fail(self, fault: str) -> None:
        FAULTS.append(fault)
        self.close()
        self._whole(self, 0.0)


def cpu_s(pid: int) -> float:
    """CPU time of a process (s); 0 for none."""
    if pid == 0:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def share(values: list[float], part: float) -> float:
    """Give the value below which `part` of the sorted values lie."""
    return values[min(int(part * len(values)), len(values) - 1)] if values else float("nan")


def check() -> None:
    """End where anything went wrong: figures of half a load are none."""
    if FAULTS:
        raise SystemExit(f"volley: {FAULTS[0]}")


async def connect(url: str, count: int, request: bytes, whole: Callable[[Asker, float], None]) -> list[Asker]:
    """Open connections."""
    place = urlsplit(url)
    to = str(place.hostname), place.port or 80
    loop = asyncio.get_running_loop()
    opened = [await loop.create_connection(lambda: Asker(request, whole), *to) for _ in range(count)]
    return [protocol for _, protocol in opened]


async def requests(url: str, count: int, seconds: float, pid: int) -> dict[str, Any]:
    """Ask without a pause over `count` connections; returns rates and latencies."""
    taken: list[float] = []
    counting = [False, True]  # measured now, still asking

    def whole(asker: Asker, latency_s: float) -> None:
        if counting[0]:
            taken.append(latency_s)
        if counting[1]:
            asker.ask()

    askers = await connect(url, count, payload(urlsplit(url).netloc, streamed=False), whole)
    for asker in askers:
        asker.ask()
    await asyncio.sleep(WARM_S)
    counting[0] = True
    start_s, start_cpu_s = time.perf_counter(), cpu_s(pid)
    await asyncio.sleep(seconds)
    while len(taken) < count and time.perf_counter() - start_s < PATIENCE * seconds and not FAULTS:
        await asyncio.sleep(0.1 * seconds)  # others have the processor
    counting[0] = counting[1] = False
    wall_s, used_s, done = time.perf_counter() - start_s, cpu_s(pid) - start_cpu_s, len(taken)
    if done < count:
        FAULTS.append(f"{url}: {done} answers in {wall_s:.0f} s over {count} connections; is the machine busy?")
    check()
    for asker in askers:
        asker.close()
    taken.sort()
    return {
        "rps": done / wall_s,
        "p50_ms": share(taken, 0.5) * 1e3,
        "p99_ms": share(taken, 0.99) * 1e3,
        "cpu_us": used_s / done * 1e6,
    }


async def streams(url: str, count: int, waves: int, pid: int) -> dict[str, Any]:
    """Ask for `count` streams at once, `waves` times after one to warm up; returns first tokens, gaps and CPU time a piece."""
    first, gaps, pieces = [], [], 0
    left = asyncio.Semaphore(0)
    askers = await connect(url, count, payload(urlsplit(url).netloc, streamed=True), lambda *_: left.release())
    start_cpu_s = 0.0
    for wave in range(waves + 1):
        if wave == 1:
            start_cpu_s = cpu_s(pid)
        for asker in askers:
            asker.ask()
        for _ in askers:
            await left.acquire()
        check()
        if wave == 0:
            continue
        for asker in askers:
            times_s = [moment_s for moment_s, _ in asker.pieces_s]
            counted = sum(number for _, number in asker.pieces_s)
            first.append(times_s[0] - asker.start_s)
            gaps += [after - before for before, after in pairwise(times_s)]
            gaps += [0.0] * (counted - len(times_s))
            pieces += counted
    used_s = cpu_s(pid) - start_cpu_s
    for asker in askers:
        asker.close()
    first.sort()
    gaps.sort()
    return {
        "ttft_p50_ms": share(first, 0.5) * 1e3,
        "gap_p99_ms": share(gaps, 0.99) * 1e3,
        "cpu_us": used_s / max(pieces, 1) * 1e6,
        "pieces": pieces,
    }


def main() -> None:
    """Run one load and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway.volley", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("url")
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=3.0, help="of requests")
    parser.add_argument("--waves", type=int, default=0, help="of streams, instead of requests")
    parser.add_argument("--pid", type=int, default=0, help="whose CPU time is counted")
    words = parser.parse_args()
    load = (
        streams(words.url, words.connections, words.waves, words.pid)
        if words.waves
        else requests(words.url, words.connections, words.seconds, words.pid)
    )
    print(json.dumps(uvloop.run(load)))


if __name__ == "__main__":
    main()
