"""The command that serves an emulated engine."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest

from live_bridge.backends import emulate

SCRIPT = """
import argparse, sys
from live_bridge.backends import emulate
parser = argparse.ArgumentParser()
emulate.add_arguments(parser)
sys.exit(emulate.run(parser.parse_args()))
"""


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    words = [sys.executable, "-c", SCRIPT, "--profile", "cpu_tiny", "--port", "0", "--speed", "50"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "RULES": "python"})
    assert process.stdout is not None
    found = re.fullmatch(r"cpu_tiny at (http://127\.0\.0\.1:\d+)\n", process.stdout.readline())
    assert found
    yield process, found[1]
    process.kill()
    process.communicate()


def test_it_says_where_it_serves_and_stops_on_sigterm(server: tuple[subprocess.Popen[str], str]) -> None:
    process, url = server
    body = json.dumps({"prompt": "x", "max_tokens": 3, "ignore_eos": True}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", body), timeout=10) as reply:
        assert json.load(reply)["model"] == "cpu_tiny"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_an_unknown_profile_is_refused_by_name() -> None:
    parser = argparse.ArgumentParser()
    emulate.add_arguments(parser)
    with pytest.raises(ValueError, match="conf/serving.*has no h9000.yaml"):
        emulate.run(parser.parse_args(["--profile", "h9000"]))
