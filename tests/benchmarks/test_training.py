"""The benchmark of training measures whole iterations, and its ceiling is SB3 over nothing."""

from dataclasses import replace

import numpy as np
import pytest

from agents.tracking import NoTracker
from benchmarks import training
from benchmarks.measure import Rate

SMALL = {"networks": 1, "rollout": 4, "minibatch": 8, "hidden": (8,)}


@pytest.mark.parametrize("name", ["ppo", "maskable_ppo"])
def test_a_ceiling_is_measured_over_all_iterations_but_the_first(name: str) -> None:
    settings = replace(training.settings_of(name, 1), **SMALL)
    settings = replace(settings, steps=3 * training.rows_of(settings))
    rate = training.ceiling(settings)
    assert rate.wall > 0.0 and rate.cpu > 0.0


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
