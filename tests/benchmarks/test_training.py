"""The benchmark of training measures whole iterations, and its ceiling is SB3 over nothing."""

from dataclasses import replace

import numpy as np
import pytest

from agents.settings import Learner
from agents.tracking import NoTracker
from benchmarks import training
from benchmarks.measure import Rate, Spread
from plan import Plan

SMALL = {"networks": 1, "rollout": 4, "minibatch": 8, "hidden": (8,)}


@pytest.mark.parametrize("name", ["ppo", "maskable_ppo"])
def test_a_ceiling_is_measured_over_all_iterations_but_the_first(name: str) -> None:
    rate = training.ceiling(small(name))
    assert rate.wall > 0.0 and rate.cpu > 0.0


def small(name: str) -> Plan:
    """A learner's plan with little to do in each of three iterations."""
    plan = training.plan_of(name, 1)
    assert isinstance(plan.agents, Learner)
    plan = replace(plan, agents=replace(plan.agents, **SMALL))
    return replace(plan, agents=replace(plan.agents, steps=3 * training.rows_of(plan)))


@pytest.mark.parametrize("name", ["ppo", *training.OURS])
def test_every_learner_is_timed_in_the_market_at_its_own_pace(name: str) -> None:
    plan = small(name)
    assert plan.school.control_s == plan.agents.control_s, "as train.py plans it"  # type: ignore[union-attr]
    rate = training.learning(plan)()
    assert rate.wall > 0.0 and rate.cpu > 0.0


def test_runs_are_compared_with_the_first_pair_by_pair(capsys: pytest.CaptureFixture[str]) -> None:
    rates = {
        "slow": iter([Rate(1.0, 1.0), Rate(2.0, 4.0), Rate(4.0, 4.0)]),
        "fast": iter([Rate(9.0, 9.0), Rate(4.0, 4.0), Rate(12.0, 8.0)]),
    }
    figures = training.compared("two", {name: lambda name=name: next(rates[name]) for name in rates}, "slow", 2)
    assert figures["fast"]["of slow, wall"] == Spread(2.5, 2.0, 3.0) and figures["fast"]["of slow, cpu"] == Spread(1.5, 1.0, 2.0)
    assert figures["slow"]["wall"] == Spread(3.0, 2.0, 4.0), "a first run warms up"
    assert "of slow" in capsys.readouterr().out


def test_an_iteration_has_a_sample_of_every_provider_at_every_decision() -> None:
    plan = training.plan_of("ppo", 4)
    assert training.rows_of(plan) == 128 * 32 * 8 and plan.agents.steps == 4 * training.rows_of(plan)  # type: ignore[union-attr]


def test_an_iteration_bears_its_share_of_a_checkpoint() -> None:
    stamps = training.Stamps(NoTracker())
    stamps.times_s = [(0.0, 0.0), (1.0, 0.5), (2.0, 1.0)]
    assert stamps.rate(100) == Rate(100.0, 200.0)
    assert stamps.rate(100, later_s=1.0) == Rate(50.0, 200.0 / 3.0)


def test_stamps_hand_on_what_they_do_not_note() -> None:
    stamps = training.Stamps(NoTracker())
    stamps.log({"a": 1.0}, 1)
    stamps.finish(failed=False)
    assert len(stamps.times_s) == 1 and stamps.id is None


def test_nothing_gives_the_same_arrays_every_step() -> None:
    env = training.NothingVec(3)
    first = env.reset()
    observations, rewards, dones, infos = env.step(np.zeros((3, 3), np.int64))
    assert observations is first and not rewards.any() and not dones.any() and infos == [{}, {}, {}]
    assert np.stack(env.env_method("action_masks")).all()


def test_train_is_started_where_it_leaves_nothing_behind() -> None:
    words = training.train_words("/tmp/x", "eval_seeds=8")
    assert "tracking=none" in words and "output=/tmp/x/policies" in words and words[-1] == "eval_seeds=8"
