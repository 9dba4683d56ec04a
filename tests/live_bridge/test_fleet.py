"""Processes are waited for, and none is left: not after an end, an error, Ctrl-C, a crash, nor kill -9 of who started them."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop
import yaml

from live_bridge.config import node_settings
from live_bridge.fleet import Fleet, FleetError, Member, free_ports, node, on_signals
from live_bridge.http.client import Client

STUB = Path(__file__).with_name("stub_node.py")
ROOT = Path(__file__).parents[2]


def stub(folder: Path, how: str, name: str = "", *, file: Path | None = None) -> Member:
    (port,) = free_ports(1)
    words = (sys.executable, str(STUB), str(port), how, *([str(file)] if file else []))
    return Member(name or how, words, f"http://127.0.0.1:{port}", folder / f"{name or how}.log", {})


def running(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pids: list[int], within_s: float = 5.0) -> bool:
    until = time.monotonic() + within_s
    while any(running(pid) for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def with_fleet(work: Callable[[Fleet], Awaitable[None]], *, ready_s: float = 10.0, stop_s: float = 3.0) -> None:
    async def main() -> None:
        client = Client()
        try:
            async with Fleet(client, ready_s=ready_s, stop_s=stop_s) as fleet:
                await work(fleet)
        finally:
            await client.close()

    uvloop.run(main())


def test_processes_run_in_groups_of_their_own_until_they_are_stopped(tmp_path: Path) -> None:
    pids: list[int] = []

    async def work(fleet: Fleet) -> None:
        await fleet.start([stub(tmp_path, "good", f"n{i}") for i in range(3)])
        pids.extend(fleet.pids().values())
        assert all(running(pid) and os.getpgid(pid) == pid for pid in pids) and fleet.ended() == []
        await fleet.stop()
        assert fleet.pids() == {} and not any(running(pid) for pid in pids)

    with_fleet(work)
    assert len(pids) == 3


def test_a_start_waits_until_all_are_ready(tmp_path: Path) -> None:
    async def work(fleet: Fleet) -> None:
        late = stub(tmp_path, "late")
        await fleet.start([late])
        reply = await fleet._client.request("GET", f"{late.url}/ready")
        assert reply.status == 200
        await reply.body(10)

    with_fleet(work)


def test_a_process_that_ends_before_it_is_ready_says_what_it_wrote_and_takes_the_others_with_it(tmp_path: Path) -> None:
    pids: list[int] = []

    async def work(fleet: Fleet) -> None:
        await fleet.start([stub(tmp_path, "good")])
        pids.extend(fleet.pids().values())
        await fleet.start([stub(tmp_path, "broken"), stub(tmp_path, "late")])

    with pytest.raises(
        FleetError, match=r"broken: has ended with status 1 before it was ready\n  port 9 is taken by somebody else"
    ):
        with_fleet(work)
    assert gone(pids)


def test_a_process_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    member = stub(tmp_path, "good")._replace(url="http://127.0.0.1:1")

    async def work(fleet: Fleet) -> None:
        await fleet.start([member])

    with pytest.raises(FleetError, match=r"good: is not ready at http://127.0.0.1:1 after 0.8 s\n  good listens"):
        with_fleet(work, ready_s=0.8)


def test_one_that_will_not_stop_is_killed(tmp_path: Path) -> None:
    pids: list[int] = []

    async def work(fleet: Fleet) -> None:
        await fleet.start([stub(tmp_path, "deaf")])
        pids.extend(fleet.pids().values())

    with_fleet(work, stop_s=0.3)
    assert pids and not any(running(pid) for pid in pids)


def test_what_a_process_has_started_goes_with_it(tmp_path: Path) -> None:
    file = tmp_path / "child"

    async def work(fleet: Fleet) -> None:
        await fleet.start([stub(tmp_path, "parent", file=file)])
        assert running(int(file.read_text()))

    with_fleet(work)
    assert gone([int(file.read_text())])


def test_the_first_process_is_stopped_last(tmp_path: Path) -> None:
    file = tmp_path / "order"
    members = [stub(tmp_path, "slow", f"n{i}", file=file) for i in range(3)]

    async def work(fleet: Fleet) -> None:
        await fleet.start(members)

    with_fleet(work)
    told = file.read_text().split()
    assert len(told) == 3 and told[-1] == members[0].words[2]


def test_a_crash_is_noticed_and_the_others_go_on(tmp_path: Path) -> None:
    async def work(fleet: Fleet) -> None:
        await fleet.start([stub(tmp_path, "good", "a"), stub(tmp_path, "good", "b")])
        os.kill(fleet.pids()["b"], signal.SIGKILL)
        async with asyncio.timeout(3.0):
            while not fleet.ended():
                await asyncio.sleep(0.01)
        assert [(member.name, status) for member, status in fleet.ended()] == [("b", -9)]
        assert running(fleet.pids()["a"])

    with_fleet(work)


def test_two_processes_of_one_name_are_refused(tmp_path: Path) -> None:
    async def work(fleet: Fleet) -> None:
        await fleet.start([stub(tmp_path, "good", "a")])
        await fleet.start([stub(tmp_path, "good", "a")])

    with pytest.raises(ValueError, match="a: is running already"):
        with_fleet(work)


STARTER = """
import asyncio, sys, uvloop
from pathlib import Path
from tests.live_bridge.test_fleet import Client, Fleet, on_signals, stub
async def main():
    folder = Path(sys.argv[1])
    task = asyncio.current_task()
    on_signals(task.cancel, task.cancel)
    async with Fleet(Client(), ready_s=10, stop_s=float(sys.argv[2])) as fleet:
        await fleet.start([stub(folder, sys.argv[3], f'n{i}') for i in range(2)])
        (folder / 'pids.new').write_text(' '.join(map(str, [fleet._keeper.pid, *fleet.pids().values()])))
        (folder / 'pids.new').rename(folder / 'pids')
        if sys.argv[4] == 'fail':
            raise ZeroDivisionError
        await asyncio.sleep(60)
uvloop.run(main())
"""


def starter(folder: Path, how: str = "good", then: str = "wait", stop_s: float = 3.0) -> tuple[subprocess.Popen[bytes], list[int]]:
    words = [sys.executable, "-c", STARTER, str(folder), str(stop_s), how, then]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 15.0
    while not (folder / "pids").exists():
        assert time.monotonic() < until and (process.poll() is None or then == "fail")
        time.sleep(0.02)
    return process, [int(word) for word in (folder / "pids").read_text().split()]


@pytest.mark.parametrize("word", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_starter_is_told_to_stop_or_killed(tmp_path: Path, word: signal.Signals) -> None:
    process, pids = starter(tmp_path)
    assert all(running(pid) for pid in pids)
    os.killpg(process.pid, word)  # as a terminal does: to its whole group
    process.wait(10)
    assert gone(pids)


def test_a_killed_starter_leaves_not_even_those_that_will_not_stop(tmp_path: Path) -> None:
    process, pids = starter(tmp_path, "deaf", stop_s=0.3)
    process.kill()
    process.wait(10)
    assert gone(pids)


def test_nothing_is_left_when_the_starter_fails(tmp_path: Path) -> None:
    process, pids = starter(tmp_path, then="fail")
    assert process.wait(10) == 1 and gone(pids)


def test_a_second_ctrl_c_kills_what_will_not_stop(tmp_path: Path) -> None:
    process, pids = starter(tmp_path, "deaf", stop_s=60.0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)  # the stop has begun, and would take a minute
    assert running(pids[1])
    process.send_signal(signal.SIGINT)
    process.wait(10)
    assert gone(pids)


def test_free_ports_are_different_and_free() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20 and all(port > 0 for port in ports)


def test_a_nodes_config_is_one_that_a_node_takes(tmp_path: Path) -> None:
    member = node(
        "n1", tmp_path, 9123, {"policy": "paper", "speed": 20.0, "backend": {"kind": "emulated"}, "join": ["http://127.0.0.1:9000"]}
    )
    file = Path(member.words[-1])
    settings = node_settings(file, {})
    assert (
        settings.listen == "127.0.0.1:9123" and settings.backend.kind == "emulated" and settings.join == ["http://127.0.0.1:9000"]
    )
    assert settings.home == str(tmp_path / "home") and member.url == "http://127.0.0.1:9123"
    assert yaml.safe_load(file.read_text())["name"] == "n1" and member.words[1:4] == ("-m", "live_bridge", "serve")


def test_signals_call_the_first_and_then_the_second() -> None:
    async def main() -> list[str]:
        said: list[str] = []
        on_signals(lambda: said.append("first"), lambda: said.append("second"))
        for word in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), word)
            await asyncio.sleep(0.02)
        return said

    assert uvloop.run(main()) == ["first", "second", "second"]
