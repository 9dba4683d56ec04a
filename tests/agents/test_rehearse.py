"""A rehearsal plays one demand under every policy, replays differ by chance in the market alone, and the file holds all of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from agents.policy import load
from agents.rehearse import arrange, main, prepare, rehearse
from compose import compose
from envs.wwwserve.batch import Batch
from settings import SettingsError, plain

DELEGATING = "fixed:4-3-3"


def staged(*words: str) -> dict[str, Any]:
    composed = compose(["env=tiny", "replays=4", *words], "rehearse")
    stage, policies, _ = prepare(plain(composed.values, "x"), composed.files)
    return rehearse(stage, policies)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return staged(f"policies=[single,paper,{DELEGATING}]", "seed=5")


def lead(found: dict[str, Any], name: str) -> dict[str, Any]:
    return found["policies"][name]["replays"][0]


def test_every_policy_meets_the_demand_that_a_batch_of_one_meets(found: dict[str, Any]) -> None:
    composed = compose(["env=tiny", "seed=5"], "rehearse")
    stage, _, _ = prepare(plain(composed.values, "x"), composed.files)
    for name in found["policies"]:
        baseline = load(name)
        batch = Batch(stage.scenario, stage.terms, stage.profiles, seed=5, record=True, autoreset=False)
        batch.pin(baseline.brain)
        for _ in range(batch.steps_per_episode):
            rows = batch.providers
            batch.step(baseline.policy.act(batch.observations.reshape(rows, -1), batch.masks.reshape(rows, -1))[None])
        alone = batch.outcomes()
        for column, values in found["demand"].items():
            assert values == alone["origin" if column == "provider" else column].tolist()
        assert lead(found, name)["executor"] == alone["executor"].tolist()
        assert [np.inf if x is None else x for x in lead(found, name)["latency_s"]] == alone["latency_s"].tolist()
        assert lead(found, name)["accounts"]["wealth"] == batch.accounts()["wealth"][0].tolist()


def test_the_policies_decided_differently_over_that_demand(found: dict[str, Any]) -> None:
    assert lead(found, "single")["executor"] == found["demand"]["provider"]
    assert lead(found, DELEGATING)["executor"] != found["demand"]["provider"]


def test_replays_differ_by_chance_in_the_market_and_an_isolated_provider_has_none(found: dict[str, Any]) -> None:
    alone = [replay["latency_s"] for replay in found["policies"]["single"]["replays"]]
    traded = [replay["latency_s"] for replay in found["policies"][DELEGATING]["replays"]]
    assert alone[0] == alone[1] == alone[2] == alone[3]
    assert len({tuple(map(str, latencies)) for latencies in traded}) == 4


def test_a_demand_that_a_decision_has_changed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = Batch.step, []

    def meddle(self: Batch, actions: Any) -> None:
        step(self, actions)
        calls.append(1)
        if len(calls) == 90:  # in the middle of the second policy's play
            for g in range(self.world.driver.shape[0] if hasattr(self.world.driver, "shape") else len(self.world.driver)):
                driver = self.world.driver[g]
                (driver["draws"] if hasattr(driver, "dtype") else driver.draws)[1] += 1

    monkeypatch.setattr(Batch, "step", meddle)
    with pytest.raises(ValueError, match=r"paper, replay 0|paper: .* of the demand is not what the first play had"):
        staged("policies=[single,paper]")


def test_forecasts_are_what_a_node_may_know_and_not_the_truth(found: dict[str, Any]) -> None:
    demand = found["demand"]
    uncut = [pair for pair in zip(demand["output_tokens"], demand["forecast_tokens"], strict=True) if max(pair) < 2048]
    assert len(uncut) > 30 and all(truth != forecast >= 1 for truth, forecast in uncut)
    assert np.corrcoef(np.log(uncut).T)[0, 1] > 0.5
    exact = staged("policies=[]", "seed=5", "env.length_error=null")["demand"]["forecast_tokens"]
    assert set(exact) == {2048}


def test_profiles_carry_the_coefficients_drawn_for_this_episode(found: dict[str, Any]) -> None:
    source = yaml.safe_load((Path(__file__).parents[2] / "conf/serving/cpu_tiny.yaml").read_text())
    drawn = [place["profile"] for place in found["providers"]]
    assert [place["profile_name"] for place in found["providers"]] == ["cpu_tiny"] * 3
    assert all(set(profile) == set(source) for profile in drawn)
    assert all(profile["kv_blocks"] == source["kv_blocks"] for profile in drawn)
    speeds = [profile["a_s"] / source["a_s"] for profile in drawn]
    assert len(set(speeds)) == 3 and all(0.9 <= speed <= 1.1 for speed in speeds)


def test_actions_are_counted_for_a_policy_and_not_for_rules(found: dict[str, Any]) -> None:
    decisions = 60 * 3
    assert lead(found, "paper")["actions"] is None
    assert lead(found, "single")["actions"] == [[decisions, 0, 0, 0, 0]] * 3
    counted = lead(found, DELEGATING)["actions"]
    assert counted[0] == [0, 0, 0, 0, decisions] and [sum(row) for row in counted] == [decisions] * 3


def test_money_is_conserved_in_every_replay(found: dict[str, Any]) -> None:
    for played in found["policies"].values():
        for replay in played["replays"]:
            assert sum(replay["accounts"]["wealth"]) == pytest.approx(3 * 102, abs=1e-6)


def test_delays_and_objectives_are_those_of_the_scenario() -> None:
    found = staged("env=wwwserve", "env.horizon_s=100", "policies=[]", "seed=3")
    regions = [place["region"] for place in found["providers"]]
    assert len(set(regions)) > 1
    for p, origin in enumerate(regions):
        for q, other in enumerate(regions):
            assert found["delay_s"][p][q] == found["delay_s"][q][p]
            assert (found["delay_s"][p][q] < 0.03) == (origin == other)
    assert {place["slo_s"] for place in found["providers"]} == {250.0}


def test_without_a_policy_the_demand_alone_is_worked_out(found: dict[str, Any]) -> None:
    bare = staged("policies=[]", "seed=5")
    assert bare["demand"] == found["demand"] and bare["policies"] == {}


def test_a_shorter_horizon_cuts_the_schedule() -> None:
    whole, short = staged("policies=[]"), staged("policies=[]", "env.horizon_s=20")
    assert short["horizon_s"] == short["arrivals_until_s"] == 20
    assert max(short["demand"]["arrival_s"]) < 20 < max(whole["demand"]["arrival_s"])
    assert short["demand"]["arrival_s"] == [t for t in whole["demand"]["arrival_s"] if t < 20]


def test_load_multiplies_the_rates() -> None:
    once, thrice = staged("policies=[]"), staged("policies=[]", "load=3")
    ratio = len(thrice["demand"]["arrival_s"]) / len(once["demand"]["arrival_s"])
    assert 2.4 < ratio < 3.6


def test_more_providers_than_the_scenario_has_take_its_places_in_turn() -> None:
    found = staged("env=paper-2", "env.horizon_s=60", "policies=[]", "providers=6")
    names = [place["profile_name"] for place in found["providers"]]
    assert names == ["rtx6000ada_qwen3_8b"] * 2 + ["rtx3090_qwen3_4b"] * 2 + ["rtx6000ada_qwen3_8b"] * 2


def test_given_profiles_replace_those_of_the_scenario_as_they_are(tmp_path: Path) -> None:
    values = yaml.safe_load((Path(__file__).parents[2] / "conf/serving/cpu_tiny.yaml").read_text())
    file = tmp_path / "measured.yaml"
    file.write_text(yaml.safe_dump(values | {"a_s": 0.0123, "kind": "measured"}))
    found = staged("policies=[]", f"profiles=[{file},l4_qwen3_4b]")
    assert [place["profile_name"] for place in found["providers"]] == [str(file), "l4_qwen3_4b", str(file)]
    assert found["providers"][0]["profile"]["a_s"] == found["providers"][2]["profile"]["a_s"] == 0.0123


def test_all_stay_when_told_to() -> None:
    words = ["env=leave", "seed=1"]
    composed = compose([*words, "stay=true"], "rehearse")
    stage, _, _ = prepare(plain(composed.values, "x"), composed.files)
    loose = compose(words, "rehearse")
    free, _, _ = prepare(plain(loose.values, "x"), loose.files)
    assert any(group.online.leave_s is not None for group in free.scenario.providers)
    assert all((g.online.leave_s, g.online.up_s, g.online.join_s) == (None, None, 0.0) for g in stage.scenario.providers)


def test_arranging_nothing_leaves_the_scenario_as_it_is() -> None:
    composed = compose(["env=wwwserve"], "rehearse")
    stage, _, _ = prepare(plain(composed.values, "x"), composed.files)
    from agents.rehearse import Settings
    from envs.wwwserve import load as conf

    own = conf.scenario("wwwserve")
    kept = arrange(own, Settings([], 0, 1, None, [], 1.0, False, ""), [])
    assert [group.demand for group in kept.providers] == [group.demand for group in own.providers for _ in range(group.count)]
    assert kept == stage.scenario


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["policies=[papr]"], "command line: policies[0] there is no papr; did you mean paper?"),
        (["policies=[paper,paper]"], "command line: policies names paper twice"),
        (["replays=0"], "command line: replays must be an integer in [1, 200] replays, got 0"),
        (["load=0"], "command line: load must be a number in [0.001, 1000] times the scenario's rates, got 0"),
        (["profiles=[nowhere.yaml]"], "command line: profiles[0] cannot be read"),
        (["profiles=[l4_qwen]"], "conf/serving: has no l4_qwen.yaml"),
        (["env=paper2"], "command line: env=paper2 names no file of conf/env"),
        (["sede=1"], "command line: sede is not a setting; did you mean seed?"),
        (["env.horizon_s=7.5"], "horizon_s must be a multiple of control_s = 1, got 7.5"),
    ],
)
def test_a_slip_is_refused_by_name(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env=tiny", *words]) == 2
    said = capsys.readouterr().err
    assert text in said and "Traceback" not in said


def test_a_trace_cannot_be_played_at_another_load(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n1,10,20\n")
    words = ["env=tiny", f"env.providers.0.demand.trace={trace}", "load=2"]
    composed = compose(words, "rehearse")
    with pytest.raises(SettingsError, match="load must be 1 with a recorded trace, got 2"):
        prepare(plain(composed.values, "x"), composed.files)


def test_the_command_writes_one_strict_json_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write_folder: Callable[..., Path]
) -> None:
    file = tmp_path / "deep" / "r.json"
    folder = write_folder()
    assert main(["env=tiny", f"policies=[paper,{folder}]", "replays=2", f"out={file}"]) == 0
    assert capsys.readouterr().out == f"wrote {file}\n"
    found = json.loads(file.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert list(found["policies"]) == ["paper", "tiny"] and found["format"] == 1
    assert found["terms"]["duel_rate"] == 0.1 and set(found["source"]) == {"commit", "dirty"}
    lengths = {len(column) for column in found["demand"].values()}
    assert lengths == {len(found["policies"]["tiny"]["replays"][1]["latency_s"])}


def test_help_shows_examples_and_scenarios(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "python -m agents.rehearse" in said and "paper-2" in said
