"""The benchmark of the batched environment measures the market that it names."""

import dataclasses

import numpy as np
import pytest

from benchmarks import simulator
from envs.wwwserve import load


def test_a_decision_every_tick_is_all_that_differs_from_the_shipped_scenario() -> None:
    shipped, every_tick = simulator.default(every_tick=False), simulator.default(every_tick=True)
    assert dataclasses.replace(every_tick, control_s=shipped.control_s) == shipped == load.scenario("wwwserve")
    assert every_tick.control_s == shipped.tick_s and every_tick.population == 8


def test_the_crowd_is_the_same_market_with_more_of_everything() -> None:
    small = simulator.default(every_tick=True)
    large = simulator.crowd(small)
    assert large.population == simulator.CROWD == 64
    assert large.requests_max / large.population == small.requests_max / small.population
    assert large.duels_max / large.population == small.duels_max / small.population


def test_play_takes_the_levels_that_the_masks_allow_and_counts_agent_steps() -> None:
    batch = simulator.batch_of(load.scenario("tiny"), 3)
    before = batch.save()["net"]["step"]
    rate = simulator.play(batch, simulator.BEHAVIOURS["busy"], 4 * batch.networks * batch.providers)
    assert rate.wall > 0.0 and rate.cpu > 0.0
    assert (batch.save()["net"]["step"] - before == 4).all()
    online = batch.save()["node"]["online"] == 1
    forced = batch.save()["node"]["accept_ceiling"] > 0.0
    assert forced[online].any()


@pytest.mark.parametrize("view", [simulator.market_view, simulator.turn_view])
def test_views_are_stepped_past_the_end_of_an_episode(view: object, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = load.scenario("tiny")
    monkeypatch.setattr(simulator, "default", lambda *, every_tick: tiny)
    rate = view(tiny.steps + 3)
    assert np.isfinite(rate.wall) and rate.wall > 0.0


def test_a_peer_is_stepped_past_the_end_of_an_episode() -> None:
    pytest.importorskip("mpe2")
    assert simulator.spread_view(3)(1_005).wall > 0.0
