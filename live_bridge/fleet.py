"""Nodes as processes: each in a group of its own, started by a config file, waited for until ready, and never left behind."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml

from live_bridge.http.message import HttpClient, HttpError
from live_bridge.keeper import tell
from live_bridge.slip import Slipped

LOOK_S = 0.05
"""Time on the wall between two looks whether a node is ready."""
TAIL_LINES = 15
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""A node's arrays are small: threads would only take the other nodes' cores."""


class FleetError(Slipped):
    """A node could not be started or has ended; the text has the last lines that it wrote."""


class Member(NamedTuple):
    """One process of a fleet."""

    name: str
    words: tuple[str, ...]  # its command
    url: str  # answers GET /ready with 200 once it is ready
    log: Path  # takes what it writes
    environment: dict[str, str]  # further variables


class Fleet:
    """Processes that are gone when this is left: by its end, an error, Ctrl-C, or the death of this process.

    client    asks whether they are ready
    ready_s   s on the wall that a process has to be ready
    stop_s    s on the wall that it has to stop before it is killed
    """

    def __init__(self, client: HttpClient, *, ready_s: float, stop_s: float) -> None:
        self._client, self._ready_s, self._stop_s = client, ready_s, stop_s
        self._running: dict[str, tuple[Member, asyncio.subprocess.Process]] = {}
        self._keeper: subprocess.Popen[str] | None = None

    async def __aenter__(self) -> Self:
        words = [sys.executable, "-m", "live_bridge.keeper", str(self._stop_s)]
        self._keeper = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, text=True)
        return self

    async def __aexit__(self, *error: object) -> None:
        try:
            await self.stop()
        finally:
            self._kill()
            if self._keeper is not None and self._keeper.stdin is not None:
                self._keeper.stdin.close()
                self._keeper.wait()

    async def start(self, members: Sequence[Member]) -> None:
        """Start processes at once and wait until all of them are ready.

        errors   FleetError when one ends or is not ready in time
        """
        for member in members:
            await self._spawn(member)
        try:
            async with asyncio.TaskGroup() as group:
                for member in members:
                    group.create_task(self._until_ready(member))
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None

    async def _spawn(self, member: Member) -> None:
        if member.name in self._running:
            raise ValueError(f"{member.name}: is running already; give each process a name of its own")
        member.log.parent.mkdir(parents=True, exist_ok=True)
        with member.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *member.words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **ONE_THREAD, **member.environment},
            )
        self._running[member.name] = (member, process)
        self._tell_keeper(process.pid)

    def _tell_keeper(self, group: int) -> None:
        if self._keeper is not None and self._keeper.stdin is not None:
            with suppress(BrokenPipeError):  # somebody has killed the keeper: then there is none
                self._keeper.stdin.write(f"{group}\n")
                self._keeper.stdin.flush()

    async def _until_ready(self, member: Member) -> None:
        process = self._running[member.name][1]
        ended = asyncio.create_task(process.wait())
        try:
            async with asyncio.timeout(self._ready_s):
                while not await self._is_ready(member):
                    await asyncio.wait({ended}, timeout=LOOK_S)
                    if ended.done():
                        raise FleetError(
                            f"{member.name}: has ended with status {process.returncode} before it was ready\n{tail(member)}"
                        )
        except TimeoutError:
            raise FleetError(f"{member.name}: is not ready at {member.url} after {self._ready_s:g} s\n{tail(member)}") from None
        finally:
            ended.cancel()

    async def _is_ready(self, member: Member) -> bool:
        try:
            with await self._client.request("GET", f"{member.url}/ready", connect_s=1.0, first_byte_s=self._ready_s) as reply:
                return reply.status == 200
        except HttpError:  # it does not listen yet
            return False

    def ended(self) -> list[tuple[Member, int]]:
        """Processes that have ended of themselves, with their exit status (negative: the signal that killed them)."""
        return [(member, process.returncode) for member, process in self._running.values() if process.returncode is not None]

    async def gone(self, name: str) -> int:
        """Wait until a process has ended; returns its exit status (negative: the signal), and its name can be started again."""
        _, process = self._running[name]
        status = await process.wait()
        del self._running[name]
        self._tell_keeper(-process.pid)
        return status

    def pids(self) -> dict[str, int]:
        """Process ids by name; each is also the id of its group."""
        return {name: process.pid for name, (_, process) in self._running.items()}

    async def stop(self) -> None:
        """Stop all: the first one last, since it keeps the ledger that the others settle in."""
        names = list(self._running)
        await asyncio.gather(*(self._stop_one(name) for name in names[1:]))
        await asyncio.gather(*(self._stop_one(name) for name in names[:1]))

    async def _stop_one(self, name: str) -> None:
        process = self._running[name][1]
        if process.returncode is None:
            tell(process.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), self._stop_s)
        tell(process.pid, signal.SIGKILL)  # and what it has started, whether it stopped or not
        await process.wait()
        del self._running[name]
        self._tell_keeper(-process.pid)

    def _kill(self) -> None:
        """Kill what is left, without waiting: a second Ctrl-C has cut the stop short."""
        for _, process in self._running.values():
            tell(process.pid, signal.SIGKILL)
            self._tell_keeper(-process.pid)


def tail(member: Member) -> str:
    """The last lines that a process wrote."""
    lines = member.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    return "\n".join(f"  {line}" for line in lines) or f"  (nothing in {member.log})"


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Find ports that nobody listens on; all are held until the last is found, so that none comes twice."""
    with ExitStack() as held:
        listening = [held.enter_context(socket.create_server((host, 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in listening]


def node(name: str, folder: Path, port: int, settings: dict[str, Any], environment: dict[str, str] | None = None) -> Member:
    """Write the config file of a node and say how it is started.

    folder       takes config.yaml, output.log, and the node's home
    settings     keys of conf/live/node.yaml that differ from it, beside name, home and listen
    environment  further variables of the process
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.yaml"
    listen = {"name": name, "home": str(folder / "home"), "listen": f"127.0.0.1:{port}"}
    file.write_text(yaml.safe_dump(listen | settings, sort_keys=False), encoding="utf-8")
    words = (sys.executable, "-m", "live_bridge", "serve", "--config", str(file))
    return Member(name, words, f"http://127.0.0.1:{port}", folder / "output.log", environment or {})


def on_signals(first: Callable[[], object], second: Callable[[], object]) -> None:
    """Let Ctrl-C and SIGTERM call `first`, and when they come again, `second`; for the loop that runs now."""
    loop, calls = asyncio.get_running_loop(), iter((first,))

    def call() -> None:
        next(calls, second)()

    for word in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(word, call)
