"""Real vLLM servers for tests, on a machine without a GPU: started one at a time, and gone when they are left."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.proof.engines import COMMON, ENVIRONMENT
from live_bridge.backends.launch import Launched, command
from live_bridge.http.client import Client

ROOT = Path(__file__).parents[3]
PYTHON = Path(os.environ.get("VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
NEEDED_GB = 4.0
PATIENCE_S = 300.0


def reason_to_skip() -> str | None:
    """Why no server can be started here; None when one can."""
    if not PYTHON.exists():
        return f"{PYTHON} is not there; `make vllm` makes it"
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free_gb = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20
    if free_gb < NEEDED_GB:
        return f"{free_gb:.1f} GB of memory are free, a server needs {NEEDED_GB:g} GB"
    return None


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def make_model(kind: str, folder: Path, *words: str) -> Path:
    """Make a model with live_bridge.models, by the interpreter that serves it."""
    subprocess.run([str(PYTHON), "-m", "live_bridge.models", kind, "--out", str(folder), *words], cwd=ROOT, check=True)
    return folder


@contextmanager
def serving(model: Path, log: Path, words: Sequence[str] = ()) -> Iterator[str]:
    """Serve `model` under the name "m"; gives the URL."""
    url = f"http://127.0.0.1:{free_port()}"
    argv = ["nice", "-n", "5", *command(str(PYTHON), str(model), url, [*COMMON, *words])]
    with asyncio.Runner() as runner:
        client, engine = Client(), Launched(argv, url, log, ENVIRONMENT)
        runner.run(engine.start())
        try:
            runner.run(engine.ready(client, PATIENCE_S, lambda text: sys.stderr.write(text + "\n")))
            yield url
        finally:
            runner.run(engine.stop())
            runner.run(client.close())
