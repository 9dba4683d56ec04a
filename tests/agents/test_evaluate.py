"""Every policy plays the same seeds once, and the command line refuses a slip by name before anything is played."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_ins import SmallMarket

from agents.evaluate import evaluate, main, write
from agents.policy import Baseline, LevelsPolicy, load
from agents.scores import Evaluation

FIRST_SEED = 1_000_000


def play(*names: str, seeds: int = 6, **market: Any) -> Evaluation:
    return evaluate(partial(SmallMarket, **market), [load(name) for name in names], seeds, FIRST_SEED)


def test_every_policy_plays_one_market_of_all_seeds_under_its_own_brain_and_dispatch() -> None:
    made: list[SmallMarket] = []

    def make(**asked: Any) -> SmallMarket:
        made.append(SmallMarket(**asked))
        return made[-1]

    names = ["single", "paper", "paper_central", "central", "uniform", "fixed:4-4-4"]
    evaluate(make, [load(name) for name in names], 3, FIRST_SEED)
    assert [market.dispatch for market in made] == ["market", "market", "paper_central", "central", "market", "market"]
    assert [market.brain for market in made] == ["policy", "paper", "policy", "policy", "policy", "policy"]
    assert {(market.networks, market.steps) for market in made} == {(3, 20)}


def test_all_policies_meet_the_same_requests() -> None:
    found = play("single", "paper", "central")
    counts = {name: played.metrics["requests"].tolist() for name, played in found.played.items()}
    assert counts["single"] == counts["paper"] == counts["central"]
    assert len(set(counts["single"])) > 1


def test_a_seed_has_the_same_scores_however_many_are_played_beside_it() -> None:
    few, many = (play("single", "paper", "uniform", seeds=seeds) for seeds in (3, 8))
    for name in few.played:
        for metric, values in few.played[name].metrics.items():
            assert np.array_equal(values, many.played[name].metrics[metric][:3], equal_nan=True)


def test_the_same_evaluation_twice_gives_the_same_numbers() -> None:
    first, second = play("single", "paper", "uniform"), play("single", "paper", "uniform")
    assert all(first.summary(name) == second.summary(name) for name in first.played)


def test_a_seed_that_counts_for_all_is_taken_out_of_a_difference() -> None:
    found = play("single", "paper", seeds=12)
    gain = found.difference("paper", "single", "latency_s_mean")
    alone = found.estimate("paper", "latency_s_mean")
    assert gain is not None and alone is not None
    assert gain.low < gain.high < 0
    assert gain.high - gain.low < 0.5 * (alone.high - alone.low)


def test_an_improvement_is_above_one_half_for_the_better_policy_whichever_way_is_better() -> None:
    found = play("paper", "central", seeds=10)
    for metric in ("slo_attainment", "latency_s_mean"):
        better, worse = (found.improvement(*pair, metric) for pair in (("central", "paper"), ("paper", "central")))
        assert better is not None and worse is not None
        assert better.point > 0.5 > worse.point
    assert found.improvement("central", "paper", "delegated_share") is None


def test_the_price_of_anarchy_is_the_schedulers_welfare_over_the_markets() -> None:
    found = play("paper", "central", "single")
    assert found.price_of_anarchy("paper") == pytest.approx((5.0, 5.0, 5.0))
    assert found.price_of_anarchy("single") is None  # a welfare of 0
    assert play("paper", "single").price_of_anarchy("paper") is None


def test_a_metric_that_an_episode_does_not_give_has_no_estimate() -> None:
    found = play("single", "paper")
    assert found.estimate("single", "offers_declined_share") is None
    assert found.estimate("paper", "offers_declined_share") == (0.25, 0.25, 0.25)
    assert found.difference("paper", "single", "offers_declined_share") is None


def test_wealth_is_noted_from_the_first_moment_to_the_last() -> None:
    found = play("paper", seeds=2)
    assert found.times_s[0] == 0 and found.times_s[-1] == found.horizon_s
    assert found.played["paper"].wealth.shape == (len(found.times_s), 2, 3)
    assert found.played["paper"].wealth[0].tolist() == [[101.0] * 3] * 2


def test_progress_is_told_of_every_step() -> None:
    steps: list[int] = []
    evaluate(SmallMarket, [load("single"), load("paper")], 2, FIRST_SEED, on_step=lambda: steps.append(1))
    assert len(steps) == 2 * 20


def test_thresholds_are_seconds_around_a_common_slo_and_multiples_of_different_ones() -> None:
    common, mixed = play("paper"), play("paper", slos_s=(4.0, 10.0))
    assert (common.relative, common.slo, mixed.relative, mixed.slo) == (False, 10.0, True, 1.0)
    assert common.thresholds[[0, -1]] == pytest.approx([4.0, 18.0])
    assert mixed.thresholds[[0, -1]] == pytest.approx([0.4, 1.8])


def test_thresholds_that_fall_due_after_the_episode_are_left_out() -> None:
    assert play("paper", slos_s=(30.0,)).thresholds.max() < 0.9 * 40.0


def test_an_episode_without_a_due_request_is_an_error_not_a_zero() -> None:
    with pytest.raises(ValueError, match="none of 120 requests is due within 40 s"):
        play("paper", first_arrival_s=37.0)


@pytest.mark.parametrize(
    ("policies", "seeds", "text"),
    [
        ([], 5, "policies: none given"),
        (["paper", "single", "paper"], 5, "paper, single, paper are not all different"),
        (["paper"], 1, "seeds must be >= 2 for an interval, got 1"),
    ],
)
def test_an_evaluation_that_cannot_be_compared_is_refused(policies: list[str], seeds: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        play(*policies, seeds=seeds)


def test_a_trained_policy_is_played_and_known_as_learned(write_folder: Callable[..., Path]) -> None:
    folder = write_folder(change=lambda card: card.update(training={"agent_steps": 77}))
    found = evaluate(SmallMarket, [load("paper"), load(folder)], 2, FIRST_SEED)
    assert found.played["tiny"].agent_steps == 77
    assert found.played["paper"].agent_steps is None


def test_the_results_are_written_as_two_json_files_and_a_picture(tmp_path: Path) -> None:
    found = evaluate(
        SmallMarket, [load("paper"), Baseline("bold", "policy", "market", LevelsPolicy("bold", (4, 0, 0)))], 2, FIRST_SEED
    )
    paths = write(found, tmp_path / "deep" / "x", config={"env": {"name": "small"}})
    assert sorted(path.name for path in (tmp_path / "deep" / "x").iterdir()) == sorted(path.name for path in paths)
    assert [path.name for path in paths] == ["evaluation.json", "marl_eval.json", "report.png"]
    assert json.loads(paths[0].read_text())["config"] == {"env": {"name": "small"}}
    assert list(json.loads(paths[1].read_text())["wwwserve"]["small"]) == ["paper", "bold"]
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_help_shows_examples_groups_and_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "env=paper-2 policies=[single,paper,paper_central,central,policies_trained/ppo_wwwserve]" in text
    assert "wwwserve " in text and "market=..." in text


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["policies=[papr]"], ["command line: policies[0] there is no papr; did you mean paper?"]),
        (["policies=[paper,centrl,zz]"], ["policies[1] there is no centrl; did you mean central?", "policies[2] there is no zz"]),
        (["policies=[paper,paper]"], ["command line: policies names paper twice"]),
        (["policies=[]"], ["command line: policies must name at least one"]),
        (["policies=[fixed:9-0-0]"], ["policies[0] fixed:9-0-0 must be fixed:ACCEPT-FORWARD-COMMIT with levels in [0, 4]"]),
        (["seeds=one"], ["command line: seeds must be an integer in [2, 100000] seeds, got 'one'"]),
        (["seeds=1"], ["command line: seeds must be an integer in [2, 100000] seeds, got 1"]),
        (["sedes=3"], ["command line: sedes is not a setting; did you mean seeds?"]),
        (["+sedes=3"], ["command line: sedes is not a setting; did you mean seeds?"]),
        (["env=wwwserv"], ["command line: env=wwwserv names no file of conf/env; did you mean wwwserve?"]),
        (["env.horizon=9"], ["command line: env.horizon is not a setting; did you mean horizon_s?"]),
        (["market.duel_rate=2"], ["command line: market.duel_rate must be a share in [0, 1], got 2"]),
        (["seeds"], ["seeds is not KEY=VALUE or GROUP=OPTION; see --help"]),
    ],
)
def test_a_slip_on_the_command_line_is_refused_by_name(
    words: list[str], texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert all(text in said for text in texts), said
    assert "Traceback" not in said


def test_the_command_line_plays_a_scenario_and_writes_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["env=wwwserve", "policies=[single,central,fixed:3-2-2]", "seeds=2", f"output={tmp_path / 'x'}"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "fixed:3-2-2 against single, seed by seed: attainment" in said and f"wrote {tmp_path / 'x' / 'report.png'}" in said
    found = json.loads((tmp_path / "x" / "evaluation.json").read_text())
    assert found["scenario"] == "wwwserve" and found["config"]["env"]["name"] == "wwwserve"
    assert found["policies"]["single"]["summary"]["delegated_share"] == [0, 0, 0]
    assert found["policies"]["central"]["summary"]["delegated_share"][0] > 0
