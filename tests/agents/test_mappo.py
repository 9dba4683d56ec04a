"""Our own learner learns, keeps to the masks, estimates advantages as the formula says, and goes on after a stop bit for bit."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_batch import FakeBatch
from notes import Notes
from test_export import ORIGIN

from agents import checkpoint as disk
from agents.checkpoint import CheckpointError
from agents.export import export
from agents.iterations import Iterations, LearningError, Trained
from agents.mappo import Mappo, advantages, learn
from agents.metrics import TRAINING_METRICS
from agents.policy import OnnxPolicy
from agents.progress import LearningProgress
from agents.settings import MappoLearner
from market.action import MASK_SIZE
from market.observation import OBSERVATION_SIZE

NETWORKS, PROVIDERS, ROLLOUT = 4, 2, 16
ROWS = NETWORKS * PROVIDERS * ROLLOUT
"""Agent-steps of one iteration."""

SETTINGS = MappoLearner(
    name="mappo",
    start=None,
    networks=NETWORKS,
    steps=4 * ROWS,
    control_s=None,
    rollout=ROLLOUT,
    minibatch=64,
    epochs=2,
    learning_rate=0.003,
    critic_learning_rate=0.003,
    schedule="linear",
    warmup=0,
    league=None,
    gamma=0.9,
    gae_lambda=0.95,
    clip=0.2,
    ent_coef=0.0,
    max_grad_norm=0.5,
    hidden=(16, 16),
    critic_hidden=(16, 16),
    torch_threads=1,
    checkpoint_every=ROWS,
    time_limit_s=None,
)


def train(folder: Path, market: FakeBatch | None = None, notes: Notes | None = None, **changes: Any) -> Trained:
    options = {key: changes.pop(key) for key in ("resume", "probe", "seed") if key in changes}
    folder.mkdir(exist_ok=True)
    market = market or FakeBatch(NETWORKS, PROVIDERS)
    return learn(market, replace(SETTINGS, **changes), notes or Notes(), folder=folder, **({"seed": 3} | options))


def weights(trained: Trained) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in trained.policy.state_dict().items()}


def same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def stored(folder: Path) -> dict[str, np.ndarray]:
    return dict(disk.read(folder).arrays)


def test_learning_raises_the_reward(tmp_path: Path) -> None:
    notes = Notes()
    train(tmp_path, FakeBatch(16, 2), notes, steps=40 * 32 * ROLLOUT, minibatch=128, epochs=4, learning_rate=0.01)
    rewards = [row["train/reward_mean"] for _, row in notes.rows]
    assert rewards[0] < 0.3 and np.mean(rewards[-3:]) > 0.6


def test_the_critic_learns_what_a_return_is(tmp_path: Path) -> None:
    notes = Notes()
    train(tmp_path, FakeBatch(16, 2), notes, steps=40 * 32 * ROLLOUT, minibatch=128, epochs=4, gamma=0.0)
    assert notes.rows[-1][1]["learner/explained_variance"] > notes.rows[0][1]["learner/explained_variance"]
    assert notes.rows[-1][1]["learner/value_loss"] < 1.0


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    first = train(tmp_path / "a")
    torch.rand(5)  # chance elsewhere does not matter
    assert same(weights(first), weights(train(tmp_path / "b")))
    assert not same(weights(first), weights(train(tmp_path / "c", seed=4)))


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path, schedule: str) -> None:
    whole = train(tmp_path / "whole", schedule=schedule)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "part", FakeBatch(NETWORKS, PROVIDERS, stopped_at=2 * ROLLOUT + 3), schedule=schedule)
    assert disk.read(tmp_path / "part").facts["steps"] == 2 * ROWS
    rest = train(tmp_path / "rest", schedule=schedule, resume=tmp_path / "part")
    assert rest.steps == whole.steps == 4 * ROWS and rest.wall_s > 0
    assert same(weights(rest), weights(whole))
    assert same(stored(tmp_path / "rest"), stored(tmp_path / "whole"))


def test_a_forbidden_level_is_never_drawn(tmp_path: Path) -> None:
    market = FakeBatch(NETWORKS, PROVIDERS, forbidden=2)
    train(tmp_path, market)
    assert set(np.unique(np.concatenate(market.taken))) == {0, 1, 3, 4}


@pytest.mark.parametrize(("networks", "providers"), [(1, 1), (3, 5), (2, 40)])
def test_any_number_of_networks_and_providers_can_be_learned_from(tmp_path: Path, networks: int, providers: int) -> None:
    trained = train(tmp_path, FakeBatch(networks, providers), steps=1)
    assert trained.steps == networks * providers * ROLLOUT
    assert all(np.isfinite(value).all() for value in weights(trained).values())


def naive(rewards: Any, values: Any, after: Any, ended: Any, gamma: float, lam: float) -> np.ndarray:
    """The sum over later surprises, written out."""
    steps, networks, providers = rewards.shape
    out = np.zeros(rewards.shape)
    for n in range(networks):
        for p in range(providers):
            for t in range(steps):
                weight = 1.0
                for later in range(t, steps):
                    surprise = rewards[later, n, p] + gamma * after[later, n, p] - values[later, n, p]
                    out[t, n, p] += weight * surprise
                    if ended[later, n]:
                        break
                    weight *= gamma * lam
    return out


@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 0.95), (1.0, 1.0), (0.99, 0.0), (0.0, 0.5)])
def test_advantages_are_what_a_plain_loop_computes(gamma: float, lam: float) -> None:
    random = np.random.default_rng(0)
    rewards, values, after = (random.normal(size=(12, 3, 2)) for _ in range(3))
    ended = random.random((12, 3)) < 0.2
    found = advantages(*map(torch.from_numpy, (rewards, values, after, ended)), gamma, lam)
    np.testing.assert_allclose(found.numpy(), naive(rewards, values, after, ended, gamma, lam), rtol=0, atol=1e-5)


def test_the_end_of_an_episode_is_valued_by_its_last_sight_and_not_by_the_next_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Mappo(FakeBatch(NETWORKS, PROVIDERS, horizon=5), replace(SETTINGS, gae_lambda=0.0, gamma=1.0), 0)
    learner._collect(iterations())
    rollout = learner._rollout
    rollout.finals = [100 + sights for sights in rollout.finals]
    monkeypatch.setattr(learner.critic, "values", lambda seen: seen[..., 0])
    target = learner._judge().target.reshape(rollout.rewards.shape)
    returns = target * learner.critic.deviation + learner.critic.mean
    following = torch.cat([rollout.observations[1:], rollout.last[None]])[..., 0]
    following[rollout.ended] += 100  # the stand-in's last sight is its next one
    assert 0 < rollout.ended.sum() < rollout.ended.numel()
    torch.testing.assert_close(returns, rollout.rewards + following, rtol=0, atol=1e-3)


def iterations() -> Iterations:
    return Iterations(SETTINGS, Notes(), LearningProgress("x", 0, 1), None, lambda _: None, steps=0, spent_s=0.0)


def test_the_actor_waits_while_the_critic_warms_up(tmp_path: Path) -> None:
    untrained = Mappo(FakeBatch(NETWORKS, PROVIDERS), SETTINGS, 3)
    warmed = train(tmp_path / "a", warmup=10**6)
    assert same(weights(warmed), {name: value.numpy() for name, value in untrained.actor.state_dict().items()})
    critic = disk.below(stored(tmp_path / "a"), "critic")
    assert not same(critic, {name: value.numpy() for name, value in untrained.critic.state_dict().items()})
    assert not same(weights(train(tmp_path / "b", warmup=ROWS)), weights(warmed))


def test_a_checkpoint_names_its_parts_and_resumes_only_its_own_shape(tmp_path: Path) -> None:
    trained = train(tmp_path / "a")
    parts = {name.partition("/")[0] for name in stored(tmp_path / "a")}
    assert parts == {"actor", "critic", "actor_moments", "critic_moments", "environment", "random"}
    assert disk.read(tmp_path / "a").facts["tracker_id"] == "run-1" and trained.checkpoint.exists()
    with pytest.raises(CheckpointError, match=r"agents\.critic_hidden was \[16, 16\], is \[8\]"):
        train(tmp_path / "b", resume=tmp_path / "a", critic_hidden=(8,))
    with pytest.raises(CheckpointError, match=r"agents\.control_s was None, is 20\.0"):
        train(tmp_path / "b", resume=tmp_path / "a", control_s=20.0)
    with pytest.raises(CheckpointError, match="providers was 2, is 3"):
        train(tmp_path / "b", FakeBatch(NETWORKS, 3), resume=tmp_path / "a")


@pytest.mark.parametrize("lost", ["critic/value.bias", "random", "environment/word"])
def test_a_checkpoint_that_lacks_a_part_is_refused_by_name(tmp_path: Path, lost: str) -> None:
    before = disk.read(train(tmp_path / "a").checkpoint)
    arrays = {name: value for name, value in before.arrays.items() if name != lost}
    disk.write(tmp_path / "a" / disk.FILE, before._replace(arrays=arrays))
    with pytest.raises(CheckpointError, match=f"lacks '{lost.partition('/')[2] or lost}'"):
        train(tmp_path / "b", resume=tmp_path / "a")


def test_learning_stops_at_the_time_limit_with_a_checkpoint(tmp_path: Path) -> None:
    trained = train(tmp_path, steps=10**9, time_limit_s=0.001)
    assert trained.steps == ROWS == disk.read(tmp_path).facts["steps"]


def test_a_finished_run_that_is_resumed_has_nothing_to_do_or_is_made_longer(tmp_path: Path) -> None:
    whole = train(tmp_path / "a")
    again = train(tmp_path / "b", resume=tmp_path / "a")
    assert again.steps == whole.steps and same(weights(again), weights(whole)) and again.checkpoint.exists()
    assert train(tmp_path / "c", resume=tmp_path / "a", steps=6 * ROWS).steps == 6 * ROWS


def test_every_iteration_is_logged_once_under_known_names(tmp_path: Path) -> None:
    notes = Notes()
    train(tmp_path, notes=notes, probe=lambda: {"reward_attained": 0.5})
    assert [step for step, _ in notes.rows] == [ROWS, 2 * ROWS, 3 * ROWS, 4 * ROWS]
    for _, row in notes.rows:
        assert all(np.isfinite(value) for value in row.values())
        assert all(name.startswith("learner/") or name.removeprefix("train/") in TRAINING_METRICS for name in row)
        assert row["train/reward_attained"] == 0.5 and {"learner/approx_kl", "learner/entropy_loss"} <= row.keys()
    rates = [row["learner/learning_rate"] for _, row in notes.rows]
    assert rates == pytest.approx([0.003, 0.00225, 0.0015, 0.00075])


def test_a_learner_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(LearningError, match=r"lower agents\.learning_rate"):
        train(tmp_path, FakeBatch(NETWORKS, PROVIDERS, broken_at=ROLLOUT + 2), steps=20 * ROWS)


def test_the_exported_policy_is_the_actor(tmp_path: Path) -> None:
    trained = train(tmp_path / "run", learning_rate=0.05)
    policy = OnnxPolicy(export(trained.policy, tmp_path / "trained" / "mappo_x", ORIGIN), sample_seed=None)
    rows = np.random.default_rng(1).uniform(-1, 1, (5_000, OBSERVATION_SIZE)).astype(np.float32)
    with torch.inference_mode():
        expected = trained.policy(torch.from_numpy(rows)).numpy()
    assert np.abs(policy.logits(rows) - expected).max() < 1e-5 and np.abs(expected).max() > 0.1
    masks = np.random.default_rng(2).integers(0, 2, (5_000, MASK_SIZE)).astype(np.int8)
    masks[:, ::5] = 1
    levels = policy.act(rows, masks)
    assert np.take_along_axis(masks.reshape(-1, 3, 5), levels[..., None], axis=2).all()
