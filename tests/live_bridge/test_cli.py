"""The command line: what there is, every setting, slips in one line with status 2, and a node that is ready soon and small."""

import asyncio
import importlib
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from live_bridge import cli, serve
from live_bridge.config import defaults, documented, leaves
from live_bridge.http.message import HttpError
from settings import SettingsError
from tests.live_bridge.towns import Engine, town

ROOT = Path(__file__).parents[2]
READY_S, RSS_MB = 2.0, 90.0
"""What is promised on a machine that is idle."""
GENEROUS = 2.0
SLIP_S = 2.0


def started(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "live_bridge", *words], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def spent_s() -> float:
    """Give the processor time of all processes so far: what a user waits on a quiet machine, whatever else a busy one does."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(*words: str) -> tuple[int, str, str]:
    """Run a command to its end; returns status, output and error output."""
    process = started(*words)
    out, err = process.communicate(timeout=30.0)
    return process.returncode, out, err


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """The same within this process."""
    try:
        status = cli.main(list(words))
    except SystemExit as end:
        status = int(end.code or 0)
    shown = capsys.readouterr()
    return status, shown.out, shown.err


# -- what there is


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_without_a_job_all_jobs_are_shown_with_what_they_are_for(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    status, out, err = said(capsys, *words)
    assert (status, err) == (0, "")
    for name, job in cli.JOBS.items():
        assert re.search(rf"^  {name} +{re.escape(job.meaning)}$", out, re.MULTILINE)


def test_the_first_look_needs_none_of_the_nodes_libraries() -> None:
    program = (
        "import sys; from live_bridge.cli import main; main([]); print(sorted(set(sys.modules) & {'numpy', 'yaml', 'uvloop'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", cli.JOBS)
def test_every_job_can_be_called_and_explains_itself_with_examples(capsys: pytest.CaptureFixture[str], name: str) -> None:
    job = cli.JOBS[name]
    module = importlib.import_module(job.module)
    assert callable(module.add_arguments) and callable(module.run)
    status, out, err = said(capsys, name, "--help")
    assert (status, err) == (0, "")
    flat = " ".join(out.split())
    assert " ".join(job.meaning.split()) in flat and out.startswith(f"usage: live_bridge {name}")
    for example in job.examples:
        assert example in out and example.split()[1] == name


def test_the_help_of_serve_lists_every_setting_with_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = said(capsys, "serve", "--help")
    listed = {key: (value, meaning) for key, value, meaning in documented()}
    assert list(listed) == [key for key, _ in leaves(defaults())]
    for key, (value, meaning) in listed.items():
        assert meaning, f"{key} is not explained"
        assert re.search(rf"^  {re.escape(key)} +{re.escape(value)} +{re.escape(meaning)}$", out, re.MULTILINE), key


def test_the_program_that_is_installed_is_the_same() -> None:
    script = Path(sys.executable).with_name("live_bridge")
    done = subprocess.run([str(script), "--help"], capture_output=True, text=True, check=True)
    assert done.stdout == run("--help")[1]


def test_words_and_settings_may_be_mixed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(serve, "run", lambda args: heard.append(serve.spoken(args)) or 0)
    words = ["slo_s=3", "--backend", "emulated", "control_s=2", "--join", "http://a:1", "--join", "http://b:2", "name=x"]
    assert said(capsys, "serve", *words)[0] == 0
    assert heard == [{"join": ["http://a:1", "http://b:2"], "backend.kind": "emulated", "slo_s": 3, "control_s": 2, "name": "x"}]


def test_a_job_that_is_broken_off_by_ctrl_c_ends_with_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(args: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "run", interrupted)
    assert said(capsys, "serve") == (130, "", "")


# -- slips


def spoken(*words: str) -> dict[str, Any]:
    import argparse

    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return serve.spoken(parser.parse_intermixed_args(words))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--policy", "paper"], {"policy": "paper"}),
        (["--backend", "http://127.0.0.1:8000"], {"backend.url": "http://127.0.0.1:8000"}),
        (["--launch", "a/b"], {"backend.launch": "a/b"}),
        (["users.keys_file=null", "speed=20"], {"users.keys_file": None, "speed": 20}),
        (["peers.allow=[10.0.0.0/8]"], {"peers.allow": ["10.0.0.0/8"]}),
        (["name=a=b"], {"name": "a=b"}),
    ],
)
def test_words_become_settings(words: list[str], expected: dict[str, Any]) -> None:
    assert spoken(*words) == expected


@pytest.mark.parametrize("word", ["nonsense", "=3", "a=[1", 'a="'])
def test_a_word_that_is_no_setting_is_refused(word: str) -> None:
    with pytest.raises(SettingsError, match="command line: "):
        spoken(word)


Slip = Callable[[Path], list[str]]
HERE = ["--backend", "emulated", "--listen", "127.0.0.1:0"]


def damaged(name: str, content: bytes, mode: int = 0o600) -> Slip:
    """Words for a node whose home has a damaged file."""

    def words(home: Path) -> list[str]:
        home.mkdir()
        (home / name).write_bytes(content)
        (home / name).chmod(mode)
        return HERE

    return words


def engine_key(content: bytes) -> Slip:
    """Words for a node whose file of the engine's key holds this."""

    def words(home: Path) -> list[str]:
        file = home.parent / "engine.key"
        file.write_bytes(content)
        return [*HERE, f"backend.key_file={file}"]

    return words


def no_folder(home: Path) -> list[str]:
    home.write_text("a file")
    return HERE


def in_use(home: Path) -> list[str]:
    """Words for a node whose port is taken."""
    TAKEN.bind(("127.0.0.1", 0))
    TAKEN.listen()
    return ["--backend", "emulated", "--listen", f"127.0.0.1:{TAKEN.getsockname()[1]}"]


TAKEN = socket.socket()
SLIPS: dict[str, tuple[Slip, str]] = {
    "unknown_key": (lambda _: [*HERE, "polcy=paper"], r"command line: polcy is not a setting; did you mean policy\?"),
    "unknown_part": (lambda _: [*HERE, "ledger.key=1"], r"command line: ledger\.key is not a setting; "),
    "bad_value": (lambda _: [*HERE, "slo_s=fast"], r"command line: slo_s must be a number in .* s, got 'fast'"),
    "not_yaml": (lambda _: [*HERE, "slo_s=[1"], r"command line: slo_s must be a value as YAML has it, got '\[1'"),
    "no_setting": (lambda _: [*HERE, "nonsense"], r"command line: nonsense must be KEY=VALUE"),
    "unknown_word": (lambda _: [*HERE, "--polcy", "paper"], r"unrecognized arguments: --polcy"),
    "no_config": (lambda _: [*HERE, "--config", "/nope.yaml"], r"/nope\.yaml: cannot be read"),
    "speed_of_a_real_engine": (lambda _: ["speed=2"], r"speed must be 1 with a real engine"),
    "listen": (lambda _: [*HERE, "--listen", "9000"], r"listen must be HOST:PORT, got "),
    "listen_nowhere": (lambda _: [*HERE, "--listen", "203.0.113.1:1"], r"listen: 203\.0\.113\.1:1: cannot be used: "),
    "port_taken": (in_use, r"listen: 127\.0\.0\.1:\d+: cannot be used: Address already in use"),
    "no_engine": (lambda _: ["--backend", "http://127.0.0.1:1"], r"backend\.url: http://127\.0\.0\.1:1/metrics: .*refused"),
    "engine_url": (lambda _: ["--backend", "localhost:8000"], r"backend\.url must be http://HOST\[:PORT\]"),
    "engine_port": (lambda _: ["--backend", "http://localhost:99999"], r"backend\.url must be http://HOST\[:PORT\]"),
    "engine_key": (lambda _: [*HERE, "backend.key_file=/nope"], r"backend\.key_file: /nope: cannot be read"),
    "engine_key_empty": (engine_key(b" \n"), r"backend\.key_file: .*engine\.key: must hold one key in one line, found 0 lines"),
    "engine_key_two": (engine_key(b"sk-a\nsk-b\n"), r"backend\.key_file: .*: must hold one key in one line, found 2 lines"),
    "no_policy": (lambda _: [*HERE, "--policy", "ppo_wwserve"], r"there is no ppo_wwserve; did you mean ppo_wwwserve\?"),
    "policy_of_markets": (lambda _: [*HERE, "--policy", "central"], r"central is a scheduler that sees all nodes at once"),
    "no_market": (lambda _: [*HERE, "market=papr"], r"conf/market: has no papr\.yaml; did you mean paper\?"),
    "no_profile": (lambda _: [*HERE, "--profile", "l4_qwen3_8c"], r"conf/serving: has no l4_qwen3_8c\.yaml; did you mean "),
    "nobody_to_join": (lambda _: [*HERE, "--join", "http://127.0.0.1:1"], r"join: http://127\.0\.0\.1:1: .*refused"),
    "join_afar": (lambda _: [*HERE, "--join", "http://10.0.0.1:1"], r"join: .*is in no allowed network; add one to peers\.allow"),
    "no_ledger": (lambda _: [*HERE, "ledger.url=http://127.0.0.1:1"], r"ledger: http://127\.0\.0\.1:1: no ledger answers there"),
    "no_dsn": (lambda _: [*HERE, "ledger.engine=postgres"], r"ledger: ledger\.dsn: must be a PostgreSQL address"),
    "advertise": (lambda _: [*HERE, "--advertise", "me:9000"], r"advertise must be http://HOST\[:PORT\]"),
    "network": (lambda _: [*HERE, "--network", "a b"], r"network must be 1 to 64 of A-Z a-z 0-9 \. _ -, got 'a b'"),
    "allow": (lambda _: [*HERE, "peers.allow=[here]"], r"peers\.allow: 'here' is not a network in CIDR form"),
    "keys": (lambda _: [*HERE, "users.keys_file=/nope"], r"/nope: cannot be read"),
    "certificate": (lambda _: [*HERE, "tls.certificate=/nope"], r"tls: /nope: cannot be used"),
    "log": (lambda _: [*HERE, "log.file=/proc/nope/x"], r"log\.file: /proc/nope/x: cannot be written"),
    "home_is_a_file": (no_folder, r"home: .*cannot be written: File exists; name another folder"),
    "key_garbage": (damaged("node.key", b"garbage\n"), r"node\.key: must hold 64 hexadecimal characters, found 7"),
    "key_of_all": (damaged("node.key", b"00" * 32, 0o644), r"node\.key: a key must be readable by its owner alone, .*chmod 600"),
    "lives_garbage": (damaged("lives", b"\xff\xfe"), r"lives: must hold the number of this node's starts"),
    "lives_empty": (damaged("lives", b""), r"lives: must hold the number of this node's starts, found ''"),
    "ledger_garbage": (damaged("ledger.sqlite", b"garbage" * 100), r"ledger: .*ledger\.sqlite: cannot be used as a ledger"),
    "ledger_key_garbage": (damaged("ledger.key", b"?"), r"ledger\.key: must hold 64 hexadecimal characters"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], slip: str) -> None:
    words, message = SLIPS[slip]
    home = tmp_path / "home"
    spoken_words = words(home)
    status, out, err = said(capsys, "serve", *spoken_words, "--home", str(home))
    assert (status, out) == (2, ""), err
    assert re.match(r"live_bridge serve: .+\n\Z", err), err
    assert re.search(message, err), err
    assert "Traceback" not in err and len(err) < 1000


@pytest.fixture(scope="module", autouse=True)
def let_go() -> Iterator[None]:
    yield
    TAKEN.close()


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """A node in this process logs to a standard error that is the test's own."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    root.handlers[:] = before


@pytest.mark.parametrize("slip", ["unknown_key", "bad_value", "no_engine", "no_policy", "nobody_to_join", "key_garbage"])
def test_a_slip_in_a_process_of_its_own_is_over_soon(tmp_path: Path, slip: str) -> None:
    words, message = SLIPS[slip]
    spoken_words = words(tmp_path / "home")
    before_s = spent_s()
    status, out, err = run("serve", *spoken_words, "--home", str(tmp_path / "home"))
    took_s = spent_s() - before_s
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert re.search(message, err)
    assert took_s <= SLIP_S * GENEROUS


def test_the_wrong_network_is_named_with_the_right_one(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Engine() as engine, town(tmp_path, [engine], network="berlin") as place:
            words = ["serve", *HERE, "--home", str(tmp_path / "home"), "--join", place.urls[0]]
            status, _, err = await asyncio.to_thread(run, *words, "--network", "paris")
            assert status == 2
            assert err == (
                f"live_bridge serve: join: {place.urls[0]} is of network berlin, this node of paris; set network=berlin\n"
            )

    asyncio.run(scene())


def test_what_answers_but_is_no_node_cannot_be_joined(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Engine() as engine:
            words = ["serve", *HERE, "--home", str(tmp_path / "home"), "--join", engine.url]
            status, _, err = await asyncio.to_thread(run, *words)
            assert (status, err) == (2, f"live_bridge serve: join: {engine.url} answers, but is no node of a market\n")

    asyncio.run(scene())


def test_one_home_is_not_shared_by_two_nodes(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Engine() as engine, town(tmp_path, [engine]) as place:
            words = ["serve", "--backend", engine.url, "--listen", "127.0.0.1:0", "--home", str(place.homes[0])]
            status, _, err = await asyncio.to_thread(run, *words)
            assert status == 2 and err.count("\n") == 1
            assert "another node writes here; give each node a home of its own" in err
            assert (await place.ask(0))[0] == 200

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serv"], "live_bridge: there is no serv; did you mean serve?"),
        (["nonsense"], "live_bridge: there is no nonsense; choose from calibrate, check, "),
        (["ledger"], "live_bridge ledger: the following arguments are required: "),
        (["ledger", "audit", "/nope"], "live_bridge ledger: /nope: is not there"),
        (["replay", "/nope"], "live_bridge replay: /nope: does not exist"),
        (["emulate", "--profile", "nope"], "live_bridge emulate: conf/serving: has no nope.yaml; "),
    ],
)
def test_slips_of_other_jobs_are_one_line_too(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    status, out, err = said(capsys, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(message)


# -- what a node costs


def rss_mb(pid: int) -> float:
    """Memory of a process that is in use."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_node_is_ready_soon_and_small(tmp_path: Path) -> None:
    async def scene() -> None:
        async with Engine() as engine, town(tmp_path, [engine]) as place:
            member = place.members[0]
            words = ["--backend", engine.url, "--listen", member.url.removeprefix("http://"), "--home", str(tmp_path / "home")]
            await place.tell(0, signal.SIGTERM)
            began_s, cpu = time.monotonic(), os.times()
            process = started("serve", *words)
            try:
                await place.until(lambda: is_ready(place))
                ready_s = time.monotonic() - began_s
                await place.ask(0)
                await asyncio.sleep(1.0)  # some rounds of upkeep
                memory_mb = rss_mb(process.pid)
            finally:
                process.send_signal(signal.SIGTERM)
                _, err = process.communicate(timeout=30.0)
            assert process.returncode == 0, err
            used = os.times()
            cpu_s = used.children_user + used.children_system - cpu.children_user - cpu.children_system
            sys.stdout.write(f"\nready after {ready_s:.2f} s, {memory_mb:.0f} MB, {cpu_s:.2f} s of a core in all\n")
            assert ready_s <= READY_S * GENEROUS
            assert memory_mb <= RSS_MB * GENEROUS

    asyncio.run(scene())


async def is_ready(place: Any) -> bool:
    try:
        with await place.client.request("GET", f"{place.urls[0]}/ready", connect_s=1.0, first_byte_s=5.0) as reply:
            return bool(reply.status == 200)
    except HttpError:
        return False
