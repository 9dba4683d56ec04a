"""One real server for all tests of this folder, alone and behind a node."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.live_bridge.vllm.servers import ROOT, free_port, make_model, reason_to_skip, serving


@pytest.fixture(scope="session")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a vLLM server with a small random model."""
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("vllm")
    model = make_model("random", folder / "model", "--hidden", "128", "--layers", "2", "--context", "32768")
    with serving(model, folder / "engine.log", ["--load-format", "dummy", "--max-num-seqs", "8"]) as url:
        yield url


@pytest.fixture(scope="session")
def node(direct: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a node whose backend is that server."""
    folder = tmp_path_factory.mktemp("node")
    port = free_port()
    settings = {
        "home": str(folder / "home"),
        "listen": f"127.0.0.1:{port}",
        "policy": "single",
        "profile": "cpu_tiny",
        "backend": {"kind": "vllm", "url": direct},
    }
    (folder / "node.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    words = [sys.executable, "-m", "live_bridge", "serve", "--config", str(folder / "node.yaml")]
    with (folder / "node.log").open("wb") as log:
        process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "RULES": "python"})
    try:
        _until_ready(f"http://127.0.0.1:{port}/ready", process, folder / "node.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(40)
        finally:
            process.kill()


def _until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end_s = time.monotonic() + 30.0
    while True:
        assert process.poll() is None and time.monotonic() < end_s, log.read_text(encoding="utf-8")[-2000:]
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)


@pytest.fixture(params=["direct", "node"])
def served(request: pytest.FixtureRequest) -> str:
    """The server by itself, and behind a node: nothing may differ."""
    return str(request.getfixturevalue(request.param))
