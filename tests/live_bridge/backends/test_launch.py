"""Engines that a node starts: ready when healthy, told when not, and gone with all their children whatever happens."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from live_bridge.backends.launch import Launched, LaunchError, command
from live_bridge.http.client import Client

ENGINE = """
import http.server, os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
{before}
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if time.time() > {ready_at} else 503)
        self.send_header("content-length", "0")
        self.end_headers()
server = http.server.HTTPServer(("127.0.0.1", 0), Health)
open({port_file!r}, "w").write(str(server.server_port))
server.serve_forever()
"""


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    end_s = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def script(folder: Path, before: str = "", ready_at: float = 0.0) -> list[str]:
    text = ENGINE.format(before=textwrap.dedent(before), ready_at=ready_at, port_file=str(folder / "port"))
    (folder / "engine.py").write_text(text, encoding="utf-8")
    return [sys.executable, str(folder / "engine.py")]


def child_of(folder: Path) -> int:
    log = folder / "engine.log"
    wait_until(lambda: log.exists() and b"child" in log.read_bytes())
    return int(log.read_text(encoding="utf-8").split("child ")[1].split()[0])


def launched(folder: Path, words: list[str], scenario: Callable[[Launched, Client], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        client = Client()
        engine = Launched(words, "http://127.0.0.1:1", folder / "engine.log", {"MARK": "1"}, grace_s=1.0)
        await engine.start()
        try:
            async with asyncio.timeout(30):
                await scenario(engine, client)
        finally:
            await engine.stop()
            await client.close()

    asyncio.run(main())


async def listening(engine: Launched, folder: Path) -> None:
    while not (folder / "port").exists():
        await asyncio.sleep(0.02)
    engine.url = f"http://127.0.0.1:{(folder / 'port').read_text(encoding='utf-8')}"


def test_an_engine_is_ready_when_it_is_healthy_and_gone_when_stopped(tmp_path: Path) -> None:
    pids: list[int] = []

    async def scenario(engine: Launched, client: Client) -> None:
        await listening(engine, tmp_path)
        told: list[str] = []
        await engine.ready(client, 20.0, told.append)
        assert told[-1].startswith(f"{engine.url}: healthy after")
        assert engine.exit_status is None
        pids.append(child_of(tmp_path))
        assert alive(pids[0])

    launched(tmp_path, script(tmp_path, ready_at=time.time() + 1.0), scenario)
    assert not alive(pids[0])


def test_an_engine_that_ends_early_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    async def scenario(engine: Launched, client: Client) -> None:
        with pytest.raises(LaunchError, match=r"ended with status 3 before it was ready\n(.*\n)*not enough memory"):
            await engine.ready(client, 20.0, lambda text: None)

    launched(tmp_path, script(tmp_path, before="print('not enough memory', flush=True); sys.exit(3)"), scenario)
    assert not alive(child_of(tmp_path))


def test_an_engine_that_is_never_healthy_is_given_up(tmp_path: Path) -> None:
    async def scenario(engine: Launched, client: Client) -> None:
        await listening(engine, tmp_path)
        with pytest.raises(LaunchError, match="is not healthy after 1 s"):
            await engine.ready(client, 1.0, lambda text: None)

    launched(tmp_path, script(tmp_path, ready_at=time.time() + 600.0), scenario)


def test_an_engine_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    words = script(tmp_path, before="import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)")

    async def scenario(engine: Launched, client: Client) -> None:
        await listening(engine, tmp_path)

    launched(tmp_path, words, scenario)
    assert not alive(child_of(tmp_path))


def test_a_command_that_is_not_there_is_told(tmp_path: Path) -> None:
    async def scenario(engine: Launched, client: Client) -> None:
        with pytest.raises(LaunchError, match=r"status 127 .*\n.*cannot be started"):
            await engine.ready(client, 20.0, lambda text: None)

    launched(tmp_path, [str(tmp_path / "nothing")], scenario)


KEEPER = (sys.executable, "-m", "live_bridge.keeper")
NODE = """
import asyncio, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell is born deaf to it
from live_bridge.backends.launch import Launched
async def main():
    engine = Launched(sys.argv[2:], "http://127.0.0.1:1", Path(sys.argv[1]), {}, grace_s=1.0)
    await engine.start()
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_a_node_however_it_ends(number: int, tmp_path: Path) -> None:
    words = [sys.executable, "-c", NODE, str(tmp_path / "engine.log"), *script(tmp_path)]
    node = subprocess.Popen(words, stderr=subprocess.DEVNULL, env={**os.environ, "RULES": "python"}, start_new_session=True)
    child = child_of(tmp_path)
    assert alive(child)
    node.send_signal(number)
    node.wait(10)
    wait_until(lambda: not alive(child))


def test_the_keeper_passes_on_how_a_command_ended() -> None:
    for words, code in (([sys.executable, "-c", "raise SystemExit(7)"], 7), (["sh", "-c", "kill -9 $$"], 137)):
        with subprocess.Popen([*KEEPER, "1", *words], stdin=subprocess.PIPE) as done:
            assert done.wait(20) == code
    asked = subprocess.Popen([*KEEPER, "1", "sleep", "600"], stdin=subprocess.PIPE)
    time.sleep(0.5)
    asked.terminate()
    assert asked.wait(10) == 143
    asked.communicate()


def test_the_words_of_vllm() -> None:
    words = command(sys.executable, "m/x", "http://127.0.0.1:8123", ["--max-num-seqs", "8"])
    assert words == [
        sys.executable,
        *(
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            "m/x",
            "--host",
            "127.0.0.1",
            "--port",
            "8123",
            "--max-num-seqs",
            "8",
        ),
    ]
    with pytest.raises(LaunchError, match=r"backend.interpreter: .*pythonx is not there; `make vllm`"):
        command("/nowhere/pythonx", "m", "http://127.0.0.1:8123", [])
    for url in ("https://127.0.0.1:1", "127.0.0.1:80", "http://127.0.0.1:1/v1"):
        with pytest.raises(LaunchError, match="must be http://HOST:PORT"):
            command(sys.executable, "m", url, [])
