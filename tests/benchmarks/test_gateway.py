"""The benchmark of gateways: the engine is instant or paced, the load counts every answer, the servers leave nothing behind."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gateway import __main__ as gateway
from benchmarks.gateway import servers, volley
from benchmarks.gateway.instant import CHAT, CHUNKS, GAP_S
from benchmarks.gateway.servers import Missing, Running


def load(url: str, *words: str) -> dict[str, float]:
    return gateway.volley(Running(url, os.getpid(), 0.0, 0.0), *words)


def test_the_engine_answers_in_full_and_at_once() -> None:
    async def ask(url: str) -> list[bytes]:
        answers: list[bytes] = []
        left = asyncio.Semaphore(0)
        askers = await volley.connect(
            url, 3, volley.payload("x", streamed=False), lambda asker, _: (answers.append(asker._got), left.release())
        )  # type: ignore[func-returns-value]
        for asker in askers:
            asker.ask()
        for _ in askers:
            await left.acquire()
        for asker in askers:
            asker.close()
        await asyncio.sleep(0.01)
        return answers

    with servers.engine() as url:
        assert asyncio.run(ask(url)) == [CHAT] * 3
        assert servers.answers(f"{url}/v1/models") and not servers.answers(f"{url}/nowhere")
    assert not servers.answers(f"{url}/v1/models"), "it ends with the block"


def test_a_load_counts_answers_and_times_them() -> None:
    with servers.engine() as url:
        found = load(url, "--connections", "4", "--seconds", "0.3")
    assert found["rps"] > 100 and 0.0 < found["p50_ms"] <= found["p99_ms"]
    assert 4 / found["rps"] * 1e3 > 0.5 * found["p50_ms"], "four ask at a time (Little)"


def test_streams_are_paced_and_every_piece_is_counted() -> None:
    with servers.engine() as url:
        start_s = time.perf_counter()
        found = load(url, "--connections", "3", "--waves", "2")
        assert time.perf_counter() - start_s > 3 * CHUNKS * GAP_S * 0.9, "one wave to warm up, and two"
    assert found["pieces"] == 3 * 2 * (CHUNKS + 1), "and [DONE]"
    assert found["gap_p99_ms"] > 0.9 * GAP_S * 1e3
    assert 0.0 < found["ttft_p50_ms"] < CHUNKS * GAP_S * 1e3


@pytest.mark.parametrize("name", ["plain", "aiohttp"])
def test_a_proxy_passes_on_both_kinds(name: str) -> None:
    with servers.engine() as url, servers.server(name, url) as running:
        assert running.ready_s > 0.0 and running.rss_mb > 5.0
        found = gateway.volley(running, "--connections", "2", "--seconds", "0.2")
        assert found["rps"] > 10 and found["cpu_us"] >= 0.0
        assert gateway.volley(running, "--connections", "2", "--waves", "1")["pieces"] == 2 * (CHUNKS + 1)
    with pytest.raises(ProcessLookupError):
        os.kill(running.pid, 0)


def test_an_answer_that_is_no_answer_ends_the_benchmark() -> None:
    words = ["--connections", "1", "--seconds", "0.1"]
    odd = "volley.payload = lambda *_, **__: b'GET /no HTTP/1.1\\r\\n\\r\\n'"
    script = f"from benchmarks.gateway import volley; {odd}; volley.main()"
    with servers.engine() as url:
        for more in ([], ["--waves", "1"]):
            done = subprocess.run([sys.executable, "-c", script, url, *words, *more], capture_output=True, text=True, check=False)
            assert done.returncode == 1 and done.stdout == "" and "404 Not Found" in done.stderr


def test_a_server_that_never_answers_is_waited_for_and_then_named() -> None:
    words = ["--connections", "1", "--seconds", "0.05"]
    script = "from benchmarks.gateway import volley; volley.payload = lambda *_, **__: b'GET /'; volley.main()"
    with servers.engine() as url:
        done = subprocess.run([sys.executable, "-c", script, url, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"{url}: 0 answers in 1 s over 1 connections; is the machine busy?" in done.stderr


def test_a_server_that_closes_ends_the_benchmark() -> None:
    with servers.engine() as url, servers.server("plain", url) as running:
        load_words = ["--connections", "2", "--seconds", "5"]
        words = [sys.executable, "-m", "benchmarks.gateway.volley", running.url, *load_words]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as loading:
            time.sleep(0.8)
            os.kill(running.pid, 9)
            out, errors = loading.communicate()
    assert loading.returncode == 1 and out == "" and "a connection was closed" in errors


def test_percentiles_lie_among_the_values() -> None:
    values = [float(value) for value in range(100)]
    assert volley.share(values, 0.5) == 50.0 and volley.share(values, 0.99) == 99.0 and volley.share(values, 1.0) == 99.0
    assert str(volley.share([], 0.5)) == "nan"


def test_cpu_time_is_that_of_the_process() -> None:
    before_s = volley.cpu_s(os.getpid())
    while time.process_time() < before_s + 0.1:
        pass
    assert volley.cpu_s(os.getpid()) >= before_s + 0.08
    assert volley.cpu_s(0) == 0.0


def figures(rps: float, p50_ms: float, cpu_us: float) -> gateway.Figures:
    rates = {f"c={count}": {"rps": rps, "p50_ms": p50_ms, "p99_ms": 9.0, "cpu_us": cpu_us} for count in gateway.CONNECTIONS}
    return {**rates, "streams": {"ttft_p50_ms": p50_ms, "gap_p99_ms": 2 * p50_ms, "cpu_us": cpu_us, "pieces": 1.0}}


def test_the_node_is_set_beside_a_direct_call_and_the_router() -> None:
    found = {"direct": figures(4.0, 1.0, 0.0), "plain": figures(3.0, 1.0, 20.0), "node": figures(2.0, 1.5, 50.0)}
    found["vllm-router"] = figures(1.0, 9.0, 100.0)
    beside = gateway.against(found)
    assert beside["node: added_p50_ms_c1"] == 0.5 and beside["node: added_gap_p99_ms"] == 1.0
    assert beside["node: rps_over_router_c=256"] == 2.0 and beside["node: cpu_over_router_c=32"] == 0.5
    del found["node"], found["vllm-router"]
    assert set(gateway.against(found)) == {f"plain: added_{name}" for name in ("p50_ms_c1", "gap_p99_ms", "ttft_p50_ms")}
    assert gateway.against({"node": found["plain"]}) == {}


def test_every_server_has_its_turn_in_every_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, str]] = []

    def volley_of(running: Running, *words: str) -> dict[str, float]:
        order.append((running.url, words[1]))
        return {"rps": float(len(order))}

    monkeypatch.setattr(gateway, "volley", volley_of)
    both = {name: Running(name, 0, 0.0, 0.0) for name in ("a", "b")}
    found = gateway.measured(both, {"one": ["--connections", "1"], "two": ["--connections", "2"]}, 3)
    assert order == [("a", "1"), ("b", "1"), ("a", "2"), ("b", "2")] * 3
    assert found["a"]["one"]["rps"] == 5.0, "the median of 1, 5 and 9"


def test_a_server_that_cannot_be_had_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "words_of", lambda *_: ([sys.executable, "-c", "raise SystemExit('no such thing')"], "/ready"))
    with pytest.raises(Missing, match=r"ended with 1: no such thing"), servers.server("node", "http://127.0.0.1:1"):
        pass
    monkeypatch.setattr(servers, "words_of", lambda *_: ([sys.executable, "-c", "import time; time.sleep(60)"], "/ready"))
    monkeypatch.setattr(servers, "READY_S", 0.2)
    with (
        pytest.raises(Missing, match=r"has not answered 200 within 0\.2 s: it said nothing"),
        servers.server("node", "http://127.0.0.1:1"),
    ):
        pass


def test_a_router_that_cannot_be_installed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "ROUTER_FOLDER", tmp_path / "router")

    def fail(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 1, "", "trying\nno network\n")

    monkeypatch.setattr(servers.subprocess, "run", fail)
    with pytest.raises(Missing, match=r"vllm-router==0\.1\.17 cannot be installed: no network"):
        servers.router()


def test_a_row_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gateway", "--cells", "direct,haproxy"])
    with pytest.raises(SystemExit):
        gateway.main()
    assert "haproxy is not a row; one of direct, plain, aiohttp, node, vllm-router" in capsys.readouterr().err
    with pytest.raises(ValueError, match="haproxy: is not a row"):
        servers.words_of("haproxy", 1, "http://a", Path())


def test_the_last_line_holds_every_figure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gateway, "CONNECTIONS", (1, 2))
    monkeypatch.setattr(gateway, "STREAMS", 2)
    monkeypatch.setattr(gateway, "loads", lambda *, quick: {
        **{f"c={count}": ["--connections", str(count), "--seconds", "0.1"] for count in (1, 2)},
        "streams": ["--connections", "2", "--waves", "1"],
    })  # fmt: skip
    monkeypatch.setattr(gateway, "against", lambda found: {"x": 1.0})
    monkeypatch.setattr(sys, "argv", ["gateway", "--quick", "--cells", "direct,plain", "--json", str(tmp_path / "line.json")])
    gateway.main()
    out = capsys.readouterr().out
    line = json.loads(out.splitlines()[-1])
    assert line == json.loads((tmp_path / "line.json").read_text())
    assert set(line["found"]) == {"direct", "plain"} and line["skipped"] == {}
    assert set(line["found"]["plain"]) == {"c=1", "c=2", "streams"}
    assert line["idle"]["plain"]["rss_mb"] > 5.0 and line["found"]["plain"]["c=1"]["rps"] > 0.0
    assert "gap p99, ms" in out
