"""A check finds that equal worlds are equal and that others are not, says so in every form, and leaves nothing running."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from live_bridge import chart, cli, diary, stage, tables
from live_bridge.check import conclude, course_of
from live_bridge.compare import BOUNDS, compare
from live_bridge.episode import FAILED, FINISHED, UNFINISHED, EpisodeError, load, rehearse
from live_bridge.load import Outcome, Punctuality
from live_bridge.stage import Stage
from live_bridge.states import State
from tests.live_bridge.episodes import asks, course, episode
from tests.live_bridge.test_fleet import ROOT, gone, running

STUB = ROOT / "tests/live_bridge/stub_market.py"
QUICK = ["--scenario", "tiny", "--policies", "single", "--replays", "2", "--load", "0.2", "--seed", "4"]
SHORT = "env.horizon_s=30"
STAGE = Stage("emulated", 20.0, None, (), None, {}, ())
COUNTERS = {"offers_made": 3}


@pytest.fixture
def stub_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nodes are stand-ins that serve their users themselves."""
    real = stage.node

    def node(*words: Any) -> Any:
        member = real(*words)
        return member._replace(words=(member.words[0], str(STUB), *member.words[-2:]), environment={"PYTHONPATH": str(ROOT)})

    monkeypatch.setattr(stage, "node", node)
    return iter(())


def marked(mark: str) -> set[int]:
    """Processes that run in an environment with MARK=`mark`: those of one test, and all that they have started."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"MARK={mark}\0".encode() in (folder / "environ").read_bytes() and running(int(folder.name)):
                found.add(int(folder.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # it has ended in the meantime
            continue
    return found - {os.getpid()}


def test_the_same_demand_gives_the_same_figures_in_both_worlds(
    stub_nodes: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARK", tmp_path.name)
    status = cli.main(["check", *QUICK, "--speed", "10", "--out", str(tmp_path), SHORT])
    said = capsys.readouterr().out
    assert status == 0, said
    assert "every bound is kept" in said and "MISSED" not in said and f"wrote {tmp_path}" in said.replace("\n", "")
    content = json.loads((tmp_path / "check.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    found = content["policies"]["single"]
    lines = {line["metric"]: line for line in found["lines"]}
    assert content["verdict"] == "within" and len(found["plays"][0]["outcomes"]["status"]) == content["requests"] > 15
    assert abs(lines["latency_s_mean"]["difference"]) < lines["latency_s_mean"]["bound"]
    assert lines["money"]["difference"] == 0.0 and lines["delegated_share"]["live"] == 0.0
    assert set(found["plays"][0]["executor"]) == {0, 1, 2}
    assert (tmp_path / "check.png").read_bytes().startswith(b"\x89PNG")
    assert marked(tmp_path.name) == set()


def test_engines_that_are_slower_than_their_profile_are_found_out(
    stub_nodes: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", *QUICK, "--speed", "10", "--out", str(tmp_path), SHORT, "node.name=slow=1.6"]) == 1
    assert "MISSED by single:" in capsys.readouterr().out
    content = json.loads((tmp_path / "check.json").read_text())
    assert content["verdict"] == "missed" and "latency_s_mean" in content["policies"]["single"]["missed"]


def test_real_nodes_trade_as_simulated_ones_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request is offered to peers: offers, escrow, answers across nodes and payment, against the simulator's."""
    monkeypatch.setenv("MARK", tmp_path.name)
    words = ["--scenario", "tiny", "--policies", "fixed:4-4-3", "--replays", "10", "--load", "0.2", "--seed", "4", "--speed", "5"]
    cli.main(["check", *words, "--out", str(tmp_path), "env.horizon_s=30", "market.duel_rate=0"])
    found = json.loads((tmp_path / "check.json").read_text())["policies"]["fixed:4-4-3"]
    lines = {line["metric"]: line for line in found["lines"]}
    assert lines["delegated_share"]["simulated"] > 0.5 and lines["delegated_share"]["verdict"] != "missed", lines
    assert lines["failed_share"]["live"] == 0.0 and lines["money"]["difference"] == 0.0
    assert lines["wealth"]["verdict"] != "missed" and lines["slo_attainment"]["verdict"] != "missed"
    assert marked(tmp_path.name) == set()


def test_ctrl_c_ends_a_check_and_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import sys; from tests.live_bridge import test_check as t; real = t.stage.node\n"
        "def node(*w):\n    m = real(*w)\n    return m._replace(words=(m.words[0], str(t.STUB), *m.words[-2:]))\n"
        "t.stage.node = node; sys.exit(t.cli.main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", program, "check", *QUICK, "--speed", "1", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MARK": tmp_path.name}
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 30.0
    while len(marked(tmp_path.name)) < 5:  # itself, the keeper and three nodes
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.1)
    pids = list(marked(tmp_path.name))
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(15) == 130 and gone(pids) and marked(tmp_path.name) == set()
    assert not (tmp_path / "check.json").exists()


def outcome(status: int = FINISHED, executor: str = "n0", **changes: Any) -> Outcome:
    latency = 2.0 if status == FINISHED else math.inf
    return Outcome(status, latency, 0.5, 100, executor, 200, 0.0, "")._replace(**changes)


def state(i: int, actions: dict[str, int], made: int = 0) -> State:
    balances = {"credit": 100.0, "stake": 1.5, "escrow": 0.25, "unbonding": 0.25}
    return State(f"n{i}", f"node-{i}", balances, {"offers_made": made}, {}, actions)


def test_a_live_play_is_written_down_as_the_simulator_does() -> None:
    demand = asks(6)
    fates = [
        outcome(),
        outcome(executor="n0"),  # asked at provider 1
        outcome(FAILED, executor="", ttft_s=math.inf),
        outcome(UNFINISHED, executor="n1"),
        outcome(executor="stranger"),
    ]
    before = [state(0, {"0-0-0": 4}, made=1), state(1, {}, made=0)]
    after = [state(0, {"0-0-0": 5, "4-3-2": 2}, made=3), state(1, {"1-1-1": 3}, made=7)]
    found = course_of(episode({}, demand), fates, before, after, {"n0": 102.0, "n1": 101.5, "stranger": 7.0})
    assert found.rows["executor"].tolist() == [0, 0, 0, 1, -1, 1]
    assert found.rows["delegated"].tolist() == [0, 1, 0, 0, 0, 0]
    assert found.rows["status"].tolist() == [FINISHED, FINISHED, FAILED, UNFINISHED, FINISHED, UNFINISHED]
    assert np.isinf(found.rows["latency_s"][[2, 3, 5]]).all() and found.rows["latency_s"][0] == 2.0
    assert found.wealth.tolist() == [102.0, 101.5] and found.counters == {"offers_made": [2, 7]}
    assert found.actions is not None
    assert found.actions.tolist() == [[1, 3, 0, 0, 2], [1, 3, 0, 2, 0], [1, 3, 2, 0, 0]]


def test_rules_leave_no_levels() -> None:
    demand = asks(1, providers=1)
    found = course_of(episode({}, demand), [outcome()], [state(0, {})], [state(0, {"paper": 12})], {"n0": 1.0})
    assert found.actions is None
    assert state(0, {"paper": 12, "1-2-3": 2}).ruled({"paper": 5}) == 7


def test_decisions_that_rules_made_in_a_policys_place_are_told() -> None:
    after = [state(0, {"paper": 3, "4-3-2": 9})]
    mixed = course_of(episode({}, asks(1, providers=1)), [outcome()], [state(0, {})], after, {"n0": 1.0})
    assert mixed.actions is not None and mixed.actions[0].tolist() == [0, 0, 0, 0, 9]
    (said,) = tables.relieved("x", mixed.actions, 3)
    assert "rules made 3 of 12 decisions in its place" in said
    assert [*tables.relieved("x", mixed.actions, 0), *tables.relieved("paper", None, 12)] == []


def test_the_commonest_reasons_of_failures_are_told() -> None:
    reasons = ["a"] * 5 + ["b"] * 3 + ["c"] * 2 + ["d"] + [""] * 9
    said = list(tables.failures("x", [outcome(why=why) for why in reasons]))
    assert said[0] == "x: 5 of 20 requests failed: a" and len(said) == 4 and said[3] == "x: 1 more failed for other reasons"
    assert list(tables.failures("x", [outcome()])) == []


def shown(found: Any) -> str:
    console = Console(width=130, record=True, file=io.StringIO())
    console.print(found)
    return console.export_text()


def finding(factor: float = 1.0, spread: float = 0.0) -> Any:
    demand = asks()
    played = {"x": [course(demand, seed=seed, spread=spread) for seed in range(20)]}
    live = course(demand, factor=factor)
    return episode(played, demand), live, compare("x", episode(played, demand), [live], 0.0)


def test_a_table_shows_every_metric_with_luck_bound_and_verdict() -> None:
    _, _, found = finding(1.2)
    said = shown(tables.comparison(found))
    assert all(bound.metric in said for bound in BOUNDS)
    assert "MISSED" in said and "+20.0 %" in said and "± 0.0 %" in said and "load 0.0" in said


def test_remarks_name_what_a_reader_must_know() -> None:
    _, _, found = finding(1.2, spread=0.2)
    said = "\n".join(tables.remarks([found], {"x": [Punctuality(80.0, 300.0)]}, 50.0))
    assert "luck is greater than the bound for latency_s_mean" in said and "more --repetitions" in said
    assert "this host was late by 80 ms" in said and "every bound is kept" in said
    overload = "\n".join(tables.remarks([found._replace(load=0.95)], {"x": [Punctuality(1.0, 2.0)]}, 50.0))
    assert "above load 0.9 times are shown and not judged" in overload and "late by" not in overload


def test_help_lists_every_bound_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(bound.metric in said and bound.reason in said for bound in BOUNDS)


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_the_picture_shows_both_worlds_and_every_judged_difference(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    real = chart.Figure.savefig
    monkeypatch.setattr(chart.Figure, "savefig", lambda self, *words, **named: (drawn.append(self), real(self, *words, **named)))
    found_episode, live, found = finding(factor, spread=0.02)
    chart.draw(found_episode, {"x": [live]}, [found], tmp_path / "x.png")
    left, middle, right = drawn[0].axes
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["x", "simulated, with 95 % of replays", "live"]
    names = [label.get_text() for label in right.get_yticklabels()]
    assert names == [line.metric for line in found.lines if line.bound]
    crosses = [mark for mark in right.lines if mark.get_marker() == "X"]
    assert len(crosses) == len(found.missed)
    assert [mark.get_xdata().tolist() for mark in middle.lines] == [[0.0, 1.0]]
    assert (tmp_path / "x.png").stat().st_size > 20_000


def test_the_same_check_gives_the_same_picture(tmp_path: Path) -> None:
    found_episode, live, found = finding(1.02)
    for name in ("a.png", "b.png"):
        chart.draw(found_episode, {"x": [live]}, [found], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_check_is_logged_to_wandb_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    from live_bridge.check import Play

    found_episode, live, found = finding(1.2)
    play = Play(live, [outcome()] * 200, 0, Punctuality(1.0, 2.0))
    console = Console(width=130, record=True, file=io.StringIO())
    status = conclude(STAGE, found_episode, [found], {"x": [play]}, tmp_path, console, log=True)
    said = console.export_text()
    assert status == 1 and "W&B: offline; to upload this run later: wandb login && wandb sync" in said
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize(
    ("write", "environment", "known"),
    [
        (None, {"WANDB_API_KEY": "k"}, True),
        (None, {}, False),
        ("machine api.wandb.ai login user password k\n", {}, True),
        ("machine example.com login user password k\n", {}, False),
        ("machine api.wandb.ai login\n\x00", {}, False),
    ],
)
def test_a_key_is_found_where_wandb_looks(write: str | None, environment: dict[str, str], known: bool, tmp_path: Path) -> None:
    if write is not None:
        (tmp_path / ".netrc").write_text(write)
        (tmp_path / ".netrc").chmod(0o600)
    assert diary.has_key({**environment, "HOME": str(tmp_path)}) is known


def test_without_wandb_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="command line: --wandb needs the package wandb; pip install wandb"):
        diary.write({}, tmp_path)


SLIPS: list[tuple[list[str], str]] = [
    (["--backend", "vllm"], "--backend vllm needs --urls of engines that run, or --launch MODEL, and not both"),
    (["--backend", "vllm", "--urls", "http://a", "--launch", "m"], "and not both"),
    (["--launch", "m"], "--backend emulated starts its engines itself"),
    (["--backend", "vllm", "--launch", "m", "--speed", "2"], "--speed must be 1 with a real engine, got 2"),
    (["--speed", "0"], "--speed must be > 0, got 0"),
    (["--nodes", "0"], "--nodes must be >= 1, got 0"),
    (["--backend", "vllm", "--urls", "http://a", "--nodes", "2"], "--urls must name one engine a node: 2 nodes, got 1"),
    (["--policies", "paper,central"], "--policies central is a scheduler above the market"),
    (["--policies", ""], "--policies must name at least one"),
    (["--replays", "1"], "--replays must be >= 2, got 1"),
    (["--repetitions", "0"], "--repetitions must be >= 1, got 0"),
    (["node.control_s"], "node.control_s must be node.KEY=VALUE"),
    (["node.control_s=[1"], "command line: node.control_s must be a value as YAML has it, got '[1'; quote it"),
    (["--scenario", "paper2"], "command line: env=paper2 names no file of conf/env"),
    (["--policies", "papr"], "there is no papr; did you mean paper?"),
    (["env.horizon=3"], "command line: env.horizon is not a setting; did you mean horizon_s?"),
    (["--profiles", "nowhere.yaml"], "profiles[0] cannot be read"),
]


@pytest.mark.parametrize(("words", "text"), SLIPS)
def test_a_slip_is_one_line_and_nothing_is_started(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("live_bridge.check._play_all", lambda *_: pytest.fail("nodes were started"))
    assert cli.main(["check", *words]) == 2
    said = capsys.readouterr().err
    assert text in said and "Traceback" not in said


def test_a_rehearsal_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    found = rehearse(["env=tiny", "policies=[single,paper]", "replays=2", "seed=3"])
    assert list(found.played) == ["single", "paper"] and [len(plays) for plays in found.played.values()] == [2, 2]
    first = found.played["single"][0]
    assert first.rows["arrival_s"].tolist() == [ask.arrival_s for ask in found.demand]
    assert (first.rows["executor"] == first.rows["origin"]).all() and not first.rows["delegated"].any()
    assert first.actions is not None and found.played["paper"][0].actions is None
    assert first.wealth.sum() == pytest.approx(3 * 102)
    assert np.isfinite(first.rows["latency_s"][first.rows["status"] == FINISHED]).all()


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text('{"format": 99}')
    with pytest.raises(EpisodeError, match=r"e.json: format must be 1, got 99; rehearse again with this build"):
        load(tmp_path / "e.json")


def words(argv: list[str]) -> Stage:
    import argparse

    parser = argparse.ArgumentParser()
    stage.add_arguments(parser)
    return stage.read(parser.parse_args(argv))


@pytest.mark.parametrize(
    ("argv", "check"),
    [
        ([], lambda made: made.speed == 20.0 and made.nodes is None),
        (["--backend", "vllm", "--launch", "m"], lambda made: made.speed == 1.0 and made.ready_s > 600),
        (["--backend", "vllm", "--urls", "http://a, http://b"], lambda made: made.nodes == 2 and "providers=2" in made.scenario),
        (["--profiles", "a.yaml,b.yaml"], lambda made: "profiles=[a.yaml,b.yaml]" in made.scenario),
        (["--load", "0.5", "--seed", "9"], lambda made: {"load=0.5", "seed=9", "stay=true"} <= set(made.scenario)),
        (
            ["env.horizon_s=30", "node.http=aiohttp", "node.backend.metrics_s=2"],
            lambda made: made.scenario[-1] == "env.horizon_s=30" and made.spoken == {"http": "aiohttp", "backend.metrics_s": 2},
        ),
    ],
)
def test_words_become_a_stage(argv: list[str], check: Callable[[Stage], bool]) -> None:
    assert check(words(argv))


def test_every_node_gets_the_place_that_the_episode_gave_it(tmp_path: Path) -> None:
    from live_bridge.config import node_settings, profile_named, terms_named

    found = rehearse(["env=tiny", "policies=[]", "seed=4", "market.duel_rate=0"])
    members = stage.members(words(["node.http=aiohttp", "node.backend.metrics_s=2"]), found, "paper", tmp_path)
    settings = [node_settings(Path(member.words[-1]), {}) for member in members]
    assert len({one.listen for one in settings}) == len({one.home for one in settings}) == 3
    assert [one.join for one in settings] == [[], *[[members[0].url]] * 2] and len({one.network for one in settings}) == 1
    for one, place in zip(settings, found.places, strict=True):
        profile = profile_named(one.profile)
        assert profile.a_s == place.profile["a_s"] and one.slo_s == place.slo_s == 10.0
        assert terms_named(one.market).duel_rate == 0 and one.control_s == found.control_s
        assert (one.http, one.backend.kind, one.backend.metrics_s, one.speed) == ("aiohttp", "emulated", 2.0, 20.0)
    assert len({profile_named(one.profile).a_s for one in settings}) == 3


def test_launched_engines_have_ports_of_their_own_and_no_workers_that_spin(tmp_path: Path) -> None:
    from live_bridge.config import node_settings

    found = episode({}, asks())
    members = stage.members(words(["--backend", "vllm", "--launch", "some/model"]), found, "paper", tmp_path)
    settings = [node_settings(Path(member.words[-1]), {}) for member in members]
    assert len({one.backend.url for one in settings}) == 2 and {one.backend.launch for one in settings} == {"some/model"}
    assert all(member.environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0" for member in members)


def test_engines_that_run_are_given_out_in_order(tmp_path: Path) -> None:
    from live_bridge.config import node_settings

    made = words(["--backend", "openai", "--urls", "http://a:1,http://b:2"])
    members = stage.members(made, episode({}, asks()), "paper", tmp_path)
    assert [node_settings(Path(member.words[-1]), {}).backend.url for member in members] == ["http://a:1", "http://b:2"]
