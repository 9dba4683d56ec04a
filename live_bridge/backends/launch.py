"""Start an engine, wait until it is healthy, and end it with all its processes, whatever becomes of the node."""

import asyncio
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from live_bridge.http.message import HttpClient

LOOK_S = 0.5
TELL_S = 5.0
GRACE_S = 15.0
TAIL_LINES = 12


class LaunchError(RuntimeError):
    """An engine did not come up; the text names the command, the reason and the log."""


def command(interpreter: str, model: str, url: str, words: Sequence[str]) -> list[str]:
    """The words that serve `model` with vLLM at `url`.

    interpreter  a Python that has vLLM: a name on the path, or a file
    errors       LaunchError when there is no such interpreter, or `url` is not on this host
    """
    found = shutil.which(interpreter)
    if found is None:
        raise LaunchError(f"backend.interpreter: {interpreter} is not there; `make vllm` makes .venv-vllm/bin/python")
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.path not in {"", "/"}:
        raise LaunchError(f"backend.url: must be http://HOST:PORT of this machine to launch an engine there, got {url}")
    place = ["--host", parts.hostname, "--port", str(parts.port or 80)]
    return [found, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *place, *words]


class Launched:
    """An engine of ours: one process group behind a keeper that ends it when this process is gone."""

    def __init__(self, words: Sequence[str], url: str, log: Path, extra: Mapping[str, str], grace_s: float = GRACE_S) -> None:
        """Know what to start.

        words    the command
        url      where it will answer /health
        log      file for all that it writes
        extra    added to the environment
        grace_s  s on the wall between SIGTERM and SIGKILL
        """
        self.words, self.url, self.log = list(words), url.rstrip("/"), log
        self._extra, self._grace_s = dict(extra), grace_s
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; `ready` says when it can be asked."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as out:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "live_bridge.keeper",
                str(self._grace_s),
                *self.words,
                stdin=asyncio.subprocess.PIPE,
                stdout=out,
                stderr=out,
                env={**os.environ, **self._extra},
                start_new_session=True,
            )

    async def ready(self, client: HttpClient, patience_s: float, progress: Callable[[str], None]) -> None:
        """Wait until /health answers 200.

        patience_s  s on the wall
        progress    told every few seconds how far it is
        errors      LaunchError when it ends, or takes longer
        """
        loop = asyncio.get_running_loop()
        begun_s = told_s = loop.time()
        while not await self._healthy(client):
            now_s = loop.time()
            if self.exit_status is not None:
                raise LaunchError(f"{self._named()} ended with status {self.exit_status} before it was ready\n{self.tail()}")
            if now_s - begun_s > patience_s:
                raise LaunchError(f"{self._named()} is not healthy after {patience_s:g} s\n{self.tail()}")
            if now_s - told_s >= TELL_S:
                told_s = now_s
                progress(f"{self.url}: starting for {now_s - begun_s:.0f} s; {self.tail(1)}")
            await asyncio.sleep(LOOK_S)
        progress(f"{self.url}: healthy after {loop.time() - begun_s:.0f} s")

    async def stop(self) -> None:
        """End it and everything it has started, and wait until it is gone."""
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.returncode

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines of its log."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return f"({self.log} is not there)"
        return "\n".join(text.strip().splitlines()[-lines:])

    async def _healthy(self, client: HttpClient) -> bool:
        try:
            with await client.request("GET", f"{self.url}/health", connect_s=LOOK_S, first_byte_s=10 * LOOK_S) as reply:
                return reply.status == 200
        except OSError:
            return False

    def _named(self) -> str:
        return f"{' '.join(self.words[:5])} ... (log: {self.log})"
