"""Strangers take their share of seats, play as they are, teach nothing, and sit where they sat after a resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_batch import FakeBatch
from test_export import ORIGIN
from test_mappo import ROWS, SETTINGS, Notes, iterations, same, stored, train, weights

from agents import checkpoint as disk
from agents.card import PolicyError
from agents.checkpoint import CheckpointError
from agents.export import export
from agents.league import IDLE, NOBODY, WANTED, League, member
from agents.mappo import Mappo
from agents.networks import Actor, draw
from agents.policy import OnnxPolicy
from agents.settings import LeagueSettings
from market.action import MASK_SIZE
from market.observation import OBSERVATION_SIZE

LEAGUE = LeagueSettings(networks=0.5, seats=0.5, past=0.5, pool=("paper", "fixed:3-2-1"), snapshots=2, snapshot_every=ROWS)
ALWAYS = replace(LEAGUE, networks=1.0, past=0.0)


def league(count: int = 4, providers: int = 4, **changes: Any) -> tuple[League, FakeBatch]:
    batch = FakeBatch(count, providers)
    made = League(replace(LEAGUE, **changes), batch, torch.Generator().manual_seed(0))
    made.start(Actor((4,)))
    return made, batch


@pytest.mark.parametrize(("seats", "providers", "strangers"), [(0.5, 8, 4), (0.25, 8, 2), (0.0, 8, 1), (1.0, 8, 7), (0.5, 1, 0)])
def test_strangers_take_their_share_of_seats_and_leave_one_to_the_learner(seats: float, providers: int, strangers: int) -> None:
    made, _ = league(providers=providers, seats=seats, networks=1.0)
    assert ((~made.own).sum(1) == strangers).all()


def test_strangers_play_in_their_share_of_networks() -> None:
    made, _ = league(2000)
    assert (made.playing != NOBODY).mean() == pytest.approx(0.5, abs=0.05)
    assert np.array_equal((~made.own).any(1).numpy(), made.playing != NOBODY)
    kinds = np.bincount(made.playing[made.playing != NOBODY], minlength=3) / (made.playing != NOBODY).sum()
    assert kinds == pytest.approx([0.25, 0.25, 0.5], abs=0.05)
    seats = (~made.own).float().mean(0)
    assert seats == pytest.approx([0.25] * 4, abs=0.05)


def test_the_papers_rules_are_played_by_the_environment_in_their_seats_alone() -> None:
    made, batch = league(50, pool=("paper",), past=0.0)
    assert np.array_equal(batch.pinned, ~made.own.numpy()) and batch.pinned.any()
    made.settings = replace(made.settings, networks=0.0)
    made.seat(np.ones(50, bool))
    assert not batch.pinned.any() and made.own.all() and (made.playing == NOBODY).all()


def test_seats_change_only_where_an_episode_begins() -> None:
    made, batch = league(40, networks=1.0)
    own, playing, pinned = made.own.clone(), made.playing.copy(), batch.pinned.copy()
    anew = np.arange(40) < 10
    made.seat(anew)
    assert torch.equal(made.own[10:], own[10:]) and not torch.equal(made.own[:10], own[:10])
    assert np.array_equal(made.playing[10:], playing[10:]) and np.array_equal(batch.pinned[10:], pinned[10:])


def test_strangers_overrule_the_learner_in_their_own_seats_alone() -> None:
    made, _ = league(200, pool=("fixed:3-2-1", "uniform"), networks=0.7)
    seen, logits = torch.rand(200, 4, OBSERVATION_SIZE), torch.full((200, 4, MASK_SIZE), 7.0)
    made.overrule(seen, logits)
    assert (logits[made.own] == 7).all()
    for index, expected in ((1, torch.zeros(MASK_SIZE)), (2, made.snapshots[0](seen))):
        rows = ~made.own & torch.from_numpy(made.playing == index)[:, None]
        assert rows.any()
        wanted = expected.expand(200, 4, MASK_SIZE)[rows]
        torch.testing.assert_close(logits[rows], wanted, rtol=0, atol=1e-5)


def test_fixed_levels_are_certain_and_idle_where_the_mask_forbids_them() -> None:
    logits = member("fixed:3-2-1").logits(torch.zeros(1000, OBSERVATION_SIZE))
    masks = torch.ones(1000, MASK_SIZE, dtype=torch.bool)
    masks[500:, 5 + 2] = False
    levels = draw(logits, masks, torch.Generator().manual_seed(0))
    assert levels[:500].unique(dim=0).tolist() == [[3, 2, 1]] and levels[500:].unique(dim=0).tolist() == [[3, 0, 1]]
    assert WANTED > IDLE > 0


def test_a_policy_on_disk_plays_by_its_own_logits(tmp_path: Path) -> None:
    folder = export(Actor((8,)), tmp_path / "trained" / "expert", ORIGIN)
    seen = torch.rand(20, OBSERVATION_SIZE)
    np.testing.assert_array_equal(member(str(folder)).logits(seen).numpy(), OnnxPolicy(folder).logits(seen.numpy()))
    with pytest.raises(PolicyError, match="there is no nobody"):
        member("nobody")


def test_past_selves_are_taken_when_due_kept_frozen_and_replaced_when_the_pool_is_full() -> None:
    made, _ = league(snapshot_every=100, snapshots=2)
    actor = Actor((4,))
    first = made.snapshots[0].heads.weight.clone()
    made.remember(actor, 99)
    assert len(made.snapshots) == 1
    made.remember(actor, 100)
    assert len(made.snapshots) == 2
    with torch.no_grad():
        kept = actor.heads.weight.clone()
        actor.heads.weight.add_(1)
    assert torch.equal(made.snapshots[1].heads.weight, kept) and torch.equal(made.snapshots[0].heads.weight, first)
    made.remember(actor, 150)
    made.remember(actor, 200)
    assert len(made.snapshots) == 2
    assert sum(torch.equal(snapshot.heads.weight, actor.heads.weight) for snapshot in made.snapshots) == 1


def test_without_past_selves_only_the_pool_plays_and_without_a_pool_only_they() -> None:
    assert set(league(300, snapshots=0)[0].playing) == {NOBODY, 0, 1}
    assert set(league(300, pool=(), past=0.0)[0].playing) == {NOBODY, 0}


def test_the_rows_of_strangers_are_left_out_of_the_loss() -> None:
    steps = []
    for noise in (0.0, 50.0):
        learner = Mappo(FakeBatch(4, 2), replace(SETTINGS, league=ALWAYS, steps=10**6), 3)
        assert learner.league
        learner.league.start(learner.actor)
        learner._collect(iterations())
        batches = learner._judge()
        strangers = ~batches.own
        assert strangers.sum() == batches.own.sum() == batches.own.numel() // 2
        actions = torch.where(strangers[..., None] & (noise > 0), 4 - batches.actions, batches.actions)
        marred = {name: getattr(batches, name) + noise * strangers for name in ("advantage", "target", "log_chance")}
        learner._learn(batches._replace(actions=actions, **marred))
        steps.append({**learner.actor.state_dict(), **disk.above(learner.critic.state_dict(), "critic")})
    assert all(torch.equal(steps[0][name], steps[1][name]) for name in steps[0])


def test_advantages_and_the_scale_of_values_come_from_the_learners_own_rows() -> None:
    learner = Mappo(FakeBatch(4, 2), replace(SETTINGS, league=ALWAYS), 3)
    assert learner.league
    learner.league.start(learner.actor)
    learner._collect(iterations())
    own = learner._rollout.own
    learner._rollout.rewards[~own] = 1e4
    batches = learner._judge()
    mine = batches.advantage[batches.own]
    assert float(mine.mean()) == pytest.approx(0, abs=1e-4) and float(mine.std()) == pytest.approx(1, abs=1e-3)
    assert float(learner.critic.mean) < 100


def test_the_reward_that_is_logged_is_the_learners_own(tmp_path: Path) -> None:
    notes = Notes()
    only = replace(ALWAYS, pool=("fixed:0-0-0",), snapshots=0)
    batch = FakeBatch(4, 2)
    batch.word[:] = batch.word[0, 0]
    train(tmp_path, batch, notes, league=only, steps=1, learning_rate=1e-9)
    taken = np.stack(batch.taken)
    assert (taken == 0).all(axis=-1).any(axis=2).all()  # a stranger in each network
    assert 0.1 < notes.rows[0][1]["train/reward_mean"] < 0.3


def test_a_league_that_resumes_equals_one_that_never_stopped(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", FakeBatch(4, 2, horizon=9), name="league", league=LEAGUE)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "part", FakeBatch(4, 2, horizon=9, stopped_at=37), name="league", league=LEAGUE)
    rest = train(tmp_path / "rest", FakeBatch(4, 2, horizon=9), name="league", league=LEAGUE, resume=tmp_path / "part")
    assert same(weights(rest), weights(whole))
    assert same(stored(tmp_path / "rest"), stored(tmp_path / "whole"))
    assert int(stored(tmp_path / "rest")["league/snapshots"]) == 2


def test_a_checkpoint_of_another_league_or_without_its_parts_is_refused(tmp_path: Path) -> None:
    trained = train(tmp_path / "a", league=LEAGUE)
    with pytest.raises(CheckpointError, match=r"agents\.league was .*paper.*, is None"):
        train(tmp_path / "b", resume=tmp_path / "a")
    before = disk.read(trained.checkpoint)
    arrays = {name: value for name, value in before.arrays.items() if name != "league/playing"}
    disk.write(trained.checkpoint, before._replace(arrays=arrays))
    with pytest.raises(CheckpointError, match="lacks 'playing'"):
        train(tmp_path / "b", resume=tmp_path / "a", league=LEAGUE)


def test_learning_among_strangers_still_raises_the_reward(tmp_path: Path) -> None:
    notes = Notes()
    train(tmp_path, FakeBatch(16, 2), notes, league=LEAGUE, steps=30 * 512, minibatch=128, epochs=4, learning_rate=0.01)
    rewards = [row["train/reward_mean"] for _, row in notes.rows]
    assert rewards[0] < 0.3 and np.mean(rewards[-3:]) > 0.45
