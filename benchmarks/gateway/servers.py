"""What is compared: each server is a process of its own on one core, started by its command line and ended with its whole group."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import yaml

from benchmarks.measure import ROOT, resident_bytes

ROUTER = "vllm-router==0.1.17"
ROUTER_FOLDER = Path.home() / ".cache" / "wwwserve_bench" / ROUTER.replace("==", "-")
PINNED = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); os.execvp(sys.argv[2], sys.argv[2:])"
READY_S = 40.0
END_S = 10.0


class Missing(Exception):  # noqa: N818 - a reason to leave a row out
    """A server cannot be had; the text says why."""


class Running(NamedTuple):
    """A server that answers."""

    url: str
    pid: int
    ready_s: float
    rss_mb: float  # before the first request


def cores() -> tuple[int, int]:
    """Choose the core of what is measured, and the core of load and engine; the same where there is but one."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def router() -> Path:
    """Find the router's program, or install it into an environment of its own.

    errors   Missing
    """
    program = ROUTER_FOLDER / "bin" / "vllm-router"
    if program.exists():
        return program
    print(f"installing {ROUTER} into {ROUTER_FOLDER}", file=sys.stderr)
    for words in (
        [sys.executable, "-m", "venv", str(ROUTER_FOLDER)],
        [str(ROUTER_FOLDER / "bin" / "pip"), "install", "-q", ROUTER],
    ):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Missing(f"{ROUTER} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return program


def words_of(name: str, port: int, engine: str, folder: Path) -> tuple[list[str], str]:
    """Give the command that starts a server on `port` before the engine, and the path that answers 200 when it is ready.

    errors   Missing
    """
    if name in {"plain", "aiohttp"}:
        kind = "own" if name == "plain" else "aiohttp"
        return [sys.executable, "-m", "benchmarks.gateway.plain", str(port), engine, kind], "/ready"
    if name == "node":
        settings = {
            "home": str(folder),
            "listen": f"127.0.0.1:{port}",
            "backend": {"kind": "openai", "url": engine},
            "log": {"level": "warning"},
        }
        file = folder / "node.yaml"
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return [sys.executable, "-m", "live_bridge", "serve", "--config", str(file)], "/ready"
    if name == "vllm-router":
        words = [
            "--worker-urls",
            engine,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--policy",
            "round_robin",
            "--log-level",
            "error",
        ]
        return [str(router()), *words, "--prometheus-port", str(free_port())], "/health"
    raise ValueError(f"{name}: is not a row; one of {', '.join(NAMES)}")


NAMES = ("direct", "plain", "aiohttp", "node", "vllm-router")


@contextlib.contextmanager
def server(name: str, engine: str) -> Iterator[Running]:
    """Run a server before the engine, until it is left.

    errors   Missing
    """
    if name == "direct":
        yield Running(engine, 0, 0.0, 0.0)
        return
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        words, path = words_of(name, port, engine, Path(folder))
        with process(words, cores()[0], Path(folder) / "log") as (started, log):
            ready_s = ready(started, f"http://127.0.0.1:{port}{path}", log)
            yield Running(f"http://127.0.0.1:{port}", started.pid, ready_s, resident_bytes("VmRSS", started.pid) / 1e6)


@contextlib.contextmanager
def engine() -> Iterator[str]:
    """Run the instant engine; yields its URL."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "benchmarks.gateway.instant", str(port)]
        with process(words, cores()[1], Path(folder) / "log") as (started, log):
            ready(started, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def process(words: Sequence[str], core: int, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a command on one core in a group of its own; nothing of it is left behind."""
    with log.open("wb") as out:
        started = subprocess.Popen(
            [sys.executable, "-c", PINNED, str(core), *words], cwd=ROOT, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield started, log
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(END_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def ready(started: subprocess.Popen[bytes], url: str, log: Path) -> float:
    """Wait until `url` answers 200; returns how long that took (s).

    errors   Missing, with the last words of the process
    """
    start_s = time.perf_counter()
    while time.perf_counter() - start_s < READY_S:
        if started.poll() is not None:
            raise Missing(f"ended with {started.returncode}: {last_words(log)}")
        if answers(url):
            return time.perf_counter() - start_s
        time.sleep(0.02)
    raise Missing(f"{url} has not answered 200 within {READY_S:g} s: {last_words(log)}")


def answers(url: str) -> bool:
    """Whether `url` answers 200."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=1.0)
    try:
        connection.request("GET", place.path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def last_words(log: Path) -> str:
    """Give the end of what a process printed."""
    return " / ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])[-300:] or "it said nothing"
