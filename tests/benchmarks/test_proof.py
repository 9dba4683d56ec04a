"""The live proof: its order, its folder, its figures and its command, with plays that nobody has to wait for."""

import argparse
import asyncio
import itertools
import json
import math
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.proof import __main__ as command
from benchmarks.proof import duelling, duels, engines, kept, playing, plays, summary, terminal
from benchmarks.proof.kept import Kept
from benchmarks.proof.plays import Plan, Turn, turns
from benchmarks.proof.questions import FORMS, SUBJECTS, question
from live_bridge.check import LATE_MS, Play
from live_bridge.episode import FAILED, FINISHED, Ask, Course, Episode, Place, rows
from live_bridge.fleet import FleetError
from live_bridge.load import Outcome, Punctuality
from live_bridge.states import State
from settings import SettingsError

PLAN = Plan("emulated", 5.0, ("paper", "single", "ppo_wwwserve"), (0.6, 1.2, 1.8), 0.1, (0, 1, 2, 3), 10.0, 20.0, 5.0, 64, 2, ())
ASKS = [Ask(float(k), k % 2, 10, 20, 20, 5.0) for k in range(4)]
MINTED = 204.0


def course(latency_s: float, executor: int = 0, status: int = FINISHED) -> Course:
    """A play in which every request has the same fate."""
    count = len(ASKS)
    table = rows(ASKS, [executor] * count, [latency_s] * count, [0.5] * count, [status] * count)
    actions = np.zeros((3, 5), np.int64)
    actions[:, 2] = 7
    return Course(table, np.array([100.0, 104.0]), actions, {"offers_accepted": [2, 1]})


def episode() -> Episode:
    """An episode that the simulator has rehearsed under every policy of PLAN, with latencies of 3 and 4 s."""
    places = [Place("p", {}, "lab", 5.0)] * 2
    played = {name: [course(3.0), course(4.0)] for name in PLAN.policies}
    return Episode("tiny", 0, 20.0, 10.0, 1.0, 1.0, {"initial_credit": 100, "initial_stake": 2}, places, ASKS, played, {})


def a_play(latency_s: float = 2.0, p99_ms: float = 1.0, **more: Any) -> Play:
    """A live play."""
    fates = [Outcome(FINISHED, latency_s, 0.5, 20, "x", 200, 0.0, "")] * len(ASKS)
    return Play(course(latency_s, **more), fates, 3, Punctuality(p99_ms, 2 * p99_ms))


# -- the order


def test_policies_of_a_load_and_seed_are_played_side_by_side_and_each_is_first_equally_often() -> None:
    order = turns(PLAN)
    blocks = [order[k : k + 3] for k in range(0, len(order), 3)]
    assert len(order) == len(set(order)) == 36
    assert all(len({(turn.load, turn.seed) for turn in block}) == 1 for block in blocks)
    assert Counter(block[0].policy for block in blocks) == dict.fromkeys(PLAN.policies, 4)
    assert Counter(block[-1].policy for block in blocks) == dict.fromkeys(PLAN.policies, 4)


def test_each_load_comes_first_in_some_repetition() -> None:
    order = turns(PLAN)
    firsts = {seed: next(turn.load for turn in order if turn.seed == seed) for seed in PLAN.seeds}
    assert set(firsts.values()) == set(PLAN.loads)


def test_names_of_records_tell_all_plays_apart() -> None:
    assert len({turn.name for turn in turns(PLAN)}) == 36
    assert Turn(1.2, 3, "policies_trained/ppo_wwwserve").name == "load-1.2_seed-3_ppo_wwwserve"


def test_the_demand_does_not_depend_on_the_policy_and_is_what_check_would_be_asked_for() -> None:
    stage = plays.stage_of(PLAN, 1.2, 3, [])
    assert stage.backend == "emulated" and stage.speed == 5.0 and stage.nodes == 2
    assert {"env=tiny", "seed=3", "providers=2", "env.providers.0.demand.schedule=[[10,1.2,1.2]]"} <= set(stage.scenario)
    real = plays.stage_of(PLAN._replace(backend="vllm", speed=1.0, profiles=("a.yaml",)), 0.6, 0, ["http://h:1", "http://h:2"])
    assert real.urls == ("http://h:1", "http://h:2") and "profiles=[a.yaml]" in real.scenario


# -- what is kept


def test_what_is_done_is_kept_and_not_done_again(tmp_path: Path) -> None:
    plan = PLAN._replace(seeds=(0, 1))
    episodes = {(load, seed): episode() for load in plan.loads for seed in plan.seeds}
    played: list[str] = []
    told: list[str] = []

    def play_all(most: int) -> list[dict[str, Any]]:
        async def player(stage: Any, episode: Any, policy: str, folder: Path) -> Play:
            if len(played) == most:
                raise KeyboardInterrupt
            played.append(policy)
            return a_play()

        home = Kept(tmp_path, plan._asdict())
        return asyncio.run(plays.play_all(plan, [], episodes, home, lambda turn, _: told.append(turn.name), player))

    with pytest.raises(KeyboardInterrupt):
        play_all(5)
    found = play_all(18)
    assert played == [turn.policy for turn in turns(plan)], "none twice, in the order of the series"
    assert told == [turn.name for turn in turns(plan)]
    assert [(one["load"], one["seed"], one["policy"]) for one in found] == [tuple(turn) for turn in turns(plan)]


def test_a_folder_of_other_settings_is_refused_with_what_differs(tmp_path: Path) -> None:
    Kept(tmp_path, {"loads": (0.6, 1.2), "seeds": (0, 1)})
    Kept(tmp_path, {"loads": (0.6, 1.2), "seeds": (0, 1)})
    with pytest.raises(SettingsError) as refused:
        Kept(tmp_path, {"loads": (0.6, 1.8), "seeds": (0, 1)})
    assert str(refused.value) == (
        f"{tmp_path}/settings.json: loads is [0.6, 1.2] in what is kept there, and [0.6, 1.8] now; name another folder by --keep"
    )


def test_a_file_of_results_begins_with_what_it_is_and_another_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "plays.json"
    kept.write(file, {"a": [1, 2, 3], "b": {"c": [1.5]}})
    assert kept.read(file) == {"kind": "wwwserve/live", "format": 1, "a": [1, 2, 3], "b": {"c": [1.5]}}
    assert '"a": [1, 2, 3]' in file.read_text()
    file.write_text(file.read_text().replace('"format": 1', '"format": 0'))
    with pytest.raises(ValueError, match=r"must begin with kind wwwserve/live and format 1; python -m benchmarks.proof plays"):
        kept.read(file)


# -- what a play is


def test_a_record_says_what_users_got_what_was_foretold_and_whether_it_can_be_believed() -> None:
    found = plays.record_of(Turn(1.2, 0, "ppo_wwwserve"), episode(), a_play(2.0, executor=1))
    assert found["live"]["slo_attainment"] == 1.0 and found["live"]["latency_s_mean"] == 2.0
    assert found["live"]["requests"] == 4 and found["live"]["delegated_share"] == 0.5
    assert found["simulated"] == {"slo_attainment": 1.0, "latency_s_mean": 3.5, "delegated_share": 0.5}
    assert (found["decisions"], found["decisions_by_rules"], found["offers_accepted"]) == (10, 3, 3)
    assert found["money_difference"] == 0.0 and not found["too_busy"] and found["failures"] == []


def test_a_record_tells_failures_lost_money_and_a_busy_host() -> None:
    played = a_play(p99_ms=LATE_MS + 1.0)
    lost = played.course._replace(wealth=np.array([100.0, 103.0]))
    fates = [Outcome(FAILED, math.inf, math.inf, -1, "", 500, 0.0, "status 500")] * len(ASKS)
    found = plays.record_of(Turn(1.2, 0, "paper"), episode(), played._replace(course=lost, outcomes=fates))
    assert found["failures"] == ["status 500"] and found["money_difference"] == -1.0 and found["too_busy"]


# -- what plays say


def series(value: Callable[[str, float, int], float]) -> list[dict[str, Any]]:
    """Records of a whole series in which a policy's attainment at a load and seed is `value`; latency is ten times that."""
    out = []
    for turn in turns(PLAN):
        point = value(turn.policy, turn.load, turn.seed)
        live = dict.fromkeys(plays.SHOWN, 10.0 * point) | {"slo_attainment": point, "requests": 50.0, "failed_share": 0.02}
        told = {"slo_attainment": 1.0, "latency_s_mean": 4.0, "delegated_share": 0.0}
        counts = {"decisions": 100, "decisions_by_rules": 1, "too_busy": False, "money_difference": 0.0, "step_ms": [11.0, 13.0]}
        out.append({"load": turn.load, "seed": turn.seed, "policy": turn.policy, "live": live, "simulated": told, **counts})
    return out


def test_differences_are_taken_seed_by_seed() -> None:
    gain = {"paper": 0.0, "single": -0.1, "ppo_wwwserve": 0.2}
    found = summary.summarise(series(lambda policy, load, seed: 0.3 + 0.1 * seed + gain[policy]), "ppo_wwwserve")
    for where in ("0.6", "1.2", "1.8", "all"):
        assert found["differences"][where]["paper"]["slo_attainment"] == pytest.approx([0.2, 0.2, 0.2])
        assert found["differences"][where]["single"]["latency_s_mean"] == pytest.approx([3.0, 3.0, 3.0])
        point, low, high = found["estimates"][where]["paper"]["slo_attainment"]
        assert point == pytest.approx(0.45) and low < point < high


def test_over_all_loads_repetitions_are_drawn_within_each_load() -> None:
    found = summary.summarise(series(lambda policy, load, seed: load / 2.0), "ppo_wwwserve")
    assert found["estimates"]["all"]["paper"]["slo_attainment"] == pytest.approx([0.6, 0.6, 0.6]), "loads differ, seeds do not"
    assert found["loads"] == ["0.6", "1.2", "1.8", "all"]


def test_a_series_with_a_hole_is_refused() -> None:
    records = [one for one in series(lambda *_: 0.5) if (one["policy"], one["load"], one["seed"]) != ("single", 1.2, 2)]
    with pytest.raises(ValueError, match=r"single: was not played with seed 2 at load 1.2"):
        summary.summarise(records, "ppo_wwwserve")


def test_requests_failures_and_late_decisions_are_added_up() -> None:
    found = summary.totals([one for one in series(lambda *_: 0.5) if one["policy"] == "paper"])
    assert found["plays"] == 12 and found["requests"] == 600 and found["failed"] == 12
    assert (found["decisions"], found["decisions_by_rules"], found["plays_with_money_lost"]) == (1200, 12, 0)


def test_the_drift_of_engines_is_least_median_and_greatest() -> None:
    assert summary.drift(series(lambda *_: 0.5)) == [11.0, 12.0, 13.0]
    assert summary.drift([{"live": {}}]) is None


# -- the command


def args_of(*words: str) -> argparse.Namespace:
    return command.parser().parse_args(words)


def test_the_plan_is_what_the_command_line_says() -> None:
    plan = playing.plan_of(args_of("plays", "--loads", "0.5,1", "--repetitions", "3"))
    assert plan.loads == (0.5, 1.0) and plan.seeds == (0, 1, 2) and plan.backend == "vllm" and plan.speed == 1.0
    quick = playing.plan_of(args_of("plays", "--quick"))
    assert quick.backend == "emulated" and len(turns(quick)) == 6


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["plays", "--loads", "0.5,x"], "command line: --loads must be numbers above 0, got 0.5,x"),
        (["plays", "--loads", "-1"], "--loads must be numbers above 0"),
        (["plays", "--repetitions", "1"], "command line: --repetitions must be >= 2, as an interval needs, got 1"),
        (["plays", "--policies", "paper,single"], "--policies must name ppo_wwwserve and others, each once"),
        (["duels", "--seconds", "0"], "command line: --seconds must be > 0, got 0"),
        (["duels", "--interpreter", "/no/python"], "--interpreter must be a Python that has vLLM, got /no/python: make vllm"),
    ],
)
def test_a_slip_on_the_command_line_is_one_line(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([*words, "--keep", str(tmp_path / "kept"), "--out", str(tmp_path / "out.json")]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "python -m benchmarks.proof plays --quick" in capsys.readouterr().out


def test_a_series_ends_with_a_file_a_table_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = itertools.count(1)

    async def player(stage: Any, episode: Any, policy: str, folder: Path) -> Play:
        return a_play(latency_s=0.1 * next(speeds))

    monkeypatch.setattr(playing.check, "play", player)
    monkeypatch.setattr(playing, "rehearsed", lambda plan, load, seed: episode())
    words = ["plays", "--quick", "--keep", str(tmp_path)]
    assert command.main(words) == 0
    said = capsys.readouterr().out.splitlines()
    last, file = json.loads(said[-1]), kept.read(tmp_path / "plays.json")
    assert last["benchmark"] == "proof plays" and last["estimates"] == file["summary"]["estimates"]
    assert len(file["plays"]) == 6 and file["settings"]["backend"] == "emulated" and file["engine"] == "emulated"
    assert any("[6/6]" in line for line in said)
    assert command.main(words) == 0, "nothing is left to be played"
    assert next(speeds) == 7


# -- duels


def test_questions_differ() -> None:
    every = [question(number) for number in range(len(SUBJECTS) * len(FORMS))]
    assert len(set(every)) == len(every) == 200
    assert question(0) == "What is the moon?" and question(len(every)) == question(0)


@pytest.mark.parametrize(
    ("wins", "count", "expected"), [(8, 10, (0.8, 0.4902, 0.9433)), (0, 10, (0.0, 0.0, 0.2775)), (50, 100, (0.5, 0.4038, 0.5962))]
)
def test_an_interval_of_a_share_is_wilsons(wins: int, count: int, expected: tuple[float, ...]) -> None:
    assert duelling.wilson(wins, count) == pytest.approx(expected, abs=1e-4)


def state(name: str, won: int, lost: int) -> State:
    return State(name, name, {"stake": 5.0}, {"duels_won": won, "duels_lost": lost}, {}, {})


def test_a_contest_is_summed_up_by_who_won_and_what_moved() -> None:
    held = duelling.contests(args_of("duels"))[0]
    before = [state(role, 1, 1) for role in duels.ROLES], dict.fromkeys(duels.ROLES, 100.0)
    won = {"users": (1, 1), "honest": (9, 3), "lemon": (3, 9), "judge": (1, 1)}
    wealth = {"users": 70.0, "honest": 120.0, "lemon": 100.0, "judge": 110.0}
    after = [state(role, *won[role]) for role in duels.ROLES], wealth
    record = duels.record_of(held, before, after, {"settled": 10.0, "undecided": 4.0, "called_off": 0.0})
    found = duelling.summarise(record)
    assert (found["duels"], found["decided"], found["undecided"], found["called_off"]) == (14, 10, 4, 0)
    assert found["honest_wins"] == 8
    assert found["honest_share"][0] == 0.8
    assert found["credits_gained"] == {"users": -30.0, "honest": 20.0, "lemon": 0.0, "judge": 10.0}
    assert found["money_difference"] == 0.0


def test_the_users_node_hands_on_all_and_only_the_judge_judges(tmp_path: Path) -> None:
    held = duelling.contests(args_of("duels"))[0]
    backends = [{"kind": "vllm", "url": f"http://h:{k}"} for k in range(4)]
    members = duels.members(held, backends, ["cpu_tiny"] * 4, tmp_path)
    import yaml

    files = [yaml.safe_load((tmp_path / role / "config.yaml").read_text()) for role in duels.ROLES]
    assert [file["duels"] for file in files] == [{"by": "likelihood", "judge": role == "judge"} for role in duels.ROLES]
    assert [file["policy"] for file in files] == list(duels.ROLES.values())
    assert [file["join"] for file in files] == [[], *[[members[0].url]] * 3]
    assert yaml.safe_load((tmp_path / "terms.yaml").read_text())["duel_rate"] == 1.0


def test_time_is_divided_between_the_ways_of_judging() -> None:
    by = {one.by: one.seconds for one in duelling.contests(args_of("duels", "--seconds", "100"))}
    assert by == {"likelihood": 75.0, "letters": 25.0}


# -- engines


def test_a_model_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    model = engines.Model(("random", "--hidden", "64", "--layers", "1"), (), 0)
    place = tmp_path / "random-hidden-64-layers-1"
    place.mkdir()
    (place / "tokenizer_config.json").write_text("{}")
    python = tmp_path / "python"
    python.touch()
    assert engines.made([model], python, tmp_path) == [place], "the interpreter could not have been run"


@pytest.mark.slow
def test_emulated_engines_are_played_and_duelled_for_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["plays", "--quick", "--keep", str(tmp_path / "p")]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(part["plays_with_money_lost"] == 0 and part["requests"] > 0 for part in found["totals"].values())
    assert command.main(["duels", "--quick", "--keep", str(tmp_path / "d")]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["letters"]
    assert found["decided"] > 10 and found["honest_share"][1] > 0.5 and found["money_difference"] == 0.0


@pytest.mark.parametrize(("label", "count"), [("settled", 7.0), ("undecided", 0.0)])
def test_a_counter_of_a_label_that_has_not_come_up_is_0(label: str, count: float, monkeypatch: pytest.MonkeyPatch) -> None:
    async def page(client: Any, url: str) -> str:
        return '# TYPE wwwserve_duels_total counter\nwwwserve_duels_total{result="settled"} 7.0\n'

    monkeypatch.setattr(duels, "_page", page)
    assert asyncio.run(duels._metric(None, "http://a", f'wwwserve_duels_total{{result="{label}"}}')) == count


def test_a_counter_that_a_node_does_not_have_is_an_error_and_not_0(monkeypatch: pytest.MonkeyPatch) -> None:
    async def page(client: Any, url: str) -> str:
        return "# TYPE wwwserve_contests_total counter\n"

    monkeypatch.setattr(duels, "_page", page)
    with pytest.raises(FleetError, match="http://a/metrics: has no counter wwwserve_duels_total"):
        asyncio.run(duels._metric(None, "http://a", 'wwwserve_duels_total{result="settled"}'))


def test_work_that_is_told_to_stop_ends_whole_and_as_an_interruption() -> None:
    ended = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
        finally:
            ended.append("engines")

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(terminal.unless_stopped(work()))
    assert ended == ["engines"]


def test_work_that_nobody_stops_gives_what_it_found() -> None:
    async def work() -> int:
        return 3

    assert asyncio.run(terminal.unless_stopped(work())) == 3
