"""A learner that remembers learns what one without memory cannot, forgets where an episode ends, and resumes bit for bit."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fake_batch import FakeBatch
from notes import Notes
from test_export import ORIGIN
from test_mappo import NETWORKS, PROVIDERS, ROLLOUT, ROWS, iterations, same, stored, weights
from test_mappo import SETTINGS as MAPPO

from agents import checkpoint as disk
from agents import mappo, recurrent
from agents.card import CARD_FILE, PolicyError
from agents.checkpoint import CheckpointError
from agents.export import export
from agents.iterations import Trained
from agents.networks import Actor, RecurrentActor
from agents.policy import OnnxPolicy
from agents.recurrent import Recurrent
from agents.settings import LeagueSettings, RecurrentLearner
from market.action import MASK_SIZE
from market.observation import OBSERVATION_SIZE

UNITS = 8
SETTINGS = RecurrentLearner(
    **{field.name: getattr(MAPPO, field.name) for field in fields(MAPPO)} | {"name": "recurrent"}, memory=UNITS
)


class LateBatch(FakeBatch):
    """A provider's reward counts the heads that hit the target it saw a decision ago, and sees no more."""

    def __init__(self, networks: int, providers: int) -> None:
        super().__init__(networks, providers)
        self.seen = super().target
        self.now = self.seen

    @property
    def target(self) -> Any:
        """What is rewarded now: (networks, providers)."""
        return self.now

    def _observe(self) -> None:
        self.now, self.seen = getattr(self, "seen", super().target), super().target
        self.observations[:] = 0
        self.observations[..., 0] = self.seen / 2 - 1


def train(
    folder: Path, market: FakeBatch | None = None, notes: Notes | None = None, learn: Any = recurrent.learn, **changes: Any
) -> Trained:
    options = {key: changes.pop(key) for key in ("resume", "seed") if key in changes}
    folder.mkdir(exist_ok=True)
    market = market or FakeBatch(NETWORKS, PROVIDERS, horizon=7)
    trained: Trained = learn(market, replace(SETTINGS, **changes), notes or Notes(), folder=folder, **({"seed": 3} | options))
    return trained


def played(horizon: int = 5, rollouts: int = 3) -> Recurrent:
    """A learner whose memory speaks, after some rollouts."""
    learner = Recurrent(FakeBatch(NETWORKS, PROVIDERS, horizon=horizon), SETTINGS, 0)
    torch.nn.init.orthogonal_(learner.actor.recall.weight)
    for _ in range(rollouts):
        learner._collect(iterations())
    return learner


def actor() -> RecurrentActor:
    torch.manual_seed(0)
    return RecurrentActor((16,), UNITS)


def observations(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, OBSERVATION_SIZE, generator=torch.Generator().manual_seed(1))


# -- what it learns


def test_a_learner_that_remembers_hits_what_was_seen_before_and_one_without_memory_stays_at_chance(tmp_path: Path) -> None:
    settings = {"steps": 20 * 32 * ROLLOUT, "minibatch": 512, "epochs": 8, "learning_rate": 0.03, "gamma": 0.0}
    last = {}
    for name, learn in {"recurrent": recurrent.learn, "mappo": mappo.learn}.items():
        notes = Notes()
        train(tmp_path / name, LateBatch(16, 2), notes, learn, **settings)
        last[name] = float(np.mean([row["train/reward_mean"] for _, row in notes.rows][-3:]))
    assert last["recurrent"] > 0.6 and abs(last["mappo"] - 0.2) < 0.05, last


# -- where memory begins and ends


def test_an_episode_that_begins_in_mid_rollout_is_played_as_if_nothing_had_been_before() -> None:
    made, seen, memory = actor(), observations(3, 10, 2), torch.randn(3, 2, UNITS)
    begins = torch.zeros(3, 10, dtype=torch.bool)
    begins[1, 4] = begins[2, 0] = True
    found = made.unroll(seen, memory, begins)
    other = seen.clone()
    other[1, :4] = 0.5
    elsewhere = made.unroll(other, -memory, begins)
    assert torch.equal(found[1, 4:], elsewhere[1, 4:]) and torch.equal(found[2], elsewhere[2])
    assert not torch.equal(found[0, 4:], elsewhere[0, 4:]), "where no episode begins, what was before counts"
    fresh = made.unroll(seen[1:, 4:], torch.zeros(2, 2, UNITS), torch.zeros(2, 6, dtype=torch.bool))
    torch.testing.assert_close(found[1, 4:], fresh[0], rtol=0, atol=1e-6)


def test_a_gradient_flows_back_to_where_the_episode_began_and_no_further() -> None:
    made, seen = actor(), observations(1, 10, 2).requires_grad_()
    begins = torch.zeros(1, 10, dtype=torch.bool)
    begins[0, 4] = True
    made.unroll(seen, torch.zeros(1, 2, UNITS), begins)[0, 9].sum().backward()
    assert seen.grad is not None
    reached = seen.grad[0].abs().sum((-1, -2)) > 0
    assert reached.tolist() == [False] * 4 + [True] * 6


def test_the_whole_sequence_at_once_is_the_decisions_one_by_one() -> None:
    made, seen = actor(), observations(3, 10, 2)
    memory, one_by_one = torch.zeros(3, 2, UNITS), []
    for t in range(10):
        logits, memory = made(seen[:, t], memory)
        one_by_one.append(logits)
    whole = made.unroll(seen, torch.zeros(3, 2, UNITS), torch.zeros(3, 10, dtype=torch.bool))
    torch.testing.assert_close(whole, torch.stack(one_by_one, 1), rtol=0, atol=1e-6)


def test_what_is_learned_from_is_what_was_played() -> None:
    learner = played()
    rollout = learner._rollout
    assert 0 < rollout.ended.sum() < rollout.ended.numel()
    batches = learner._judge()
    assert batches.observations.shape == (NETWORKS, ROLLOUT, PROVIDERS, OBSERVATION_SIZE)
    found = learner._logits(batches, ...).detach()
    torch.testing.assert_close(found, rollout.logits.transpose(0, 1), rtol=0, atol=1e-6)
    some = torch.tensor([2, 0])
    part = type(batches)(*(column[some] for column in batches))
    torch.testing.assert_close(learner._logits(part, ...).detach(), found[some], rtol=0, atol=1e-6)
    before = learner._first
    learner._first = torch.zeros_like(before)
    assert not torch.allclose(learner._logits(batches, ...), found), "the memory before the rollout counts"


def test_memory_is_empty_where_an_episode_has_just_ended_and_nowhere_else() -> None:
    learner = played(horizon=4, rollouts=1)
    ended = learner._rollout.ended[-1]
    assert 0 < ended.sum() < NETWORKS
    assert (learner.memory[ended] == 0).all() and (learner.memory[~ended] != 0).any(-1).all()


@pytest.mark.parametrize(("minibatch", "networks"), [(1, 1), (2 * ROLLOUT * PROVIDERS, 2), (10**9, NETWORKS)])
def test_a_gradient_step_takes_whole_sequences_of_whole_networks(minibatch: int, networks: int, monkeypatch: Any) -> None:
    learner = Recurrent(FakeBatch(NETWORKS, PROVIDERS), replace(SETTINGS, minibatch=minibatch, epochs=1), 0)
    learner._collect(iterations())
    sizes: list[tuple[int, ...]] = []
    step = learner._step
    monkeypatch.setattr(learner, "_step", lambda batch: sizes.append(tuple(batch.target.shape)) or step(batch))
    learner._learn(learner._judge())
    assert sizes == [(networks, ROLLOUT, PROVIDERS)] * (NETWORKS // networks)


def test_a_forbidden_level_is_never_drawn(tmp_path: Path) -> None:
    market = FakeBatch(NETWORKS, PROVIDERS, forbidden=2)
    train(tmp_path, market)
    assert set(np.unique(np.concatenate(market.taken))) == {0, 1, 3, 4}


@pytest.mark.parametrize(("networks", "providers"), [(1, 1), (3, 5)])
def test_any_number_of_networks_and_providers_can_be_learned_from(tmp_path: Path, networks: int, providers: int) -> None:
    trained = train(tmp_path, FakeBatch(networks, providers), steps=1)
    assert trained.steps == networks * providers * ROLLOUT
    assert all(np.isfinite(value).all() for value in weights(trained).values())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    first = train(tmp_path / "a")
    torch.rand(5)  # chance elsewhere does not matter
    assert same(weights(first), weights(train(tmp_path / "b")))
    assert not same(weights(first), weights(train(tmp_path / "c", seed=4)))


# -- stopped and resumed


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path: Path, schedule: str) -> None:
    whole = train(tmp_path / "whole", schedule=schedule)
    with pytest.raises(KeyboardInterrupt):
        stops = FakeBatch(NETWORKS, PROVIDERS, horizon=7, stopped_at=2 * ROLLOUT + 3)
        train(tmp_path / "part", stops, schedule=schedule)
    assert disk.read(tmp_path / "part").facts["steps"] == 2 * ROWS
    assert np.abs(stored(tmp_path / "part")["memory"]).max() > 0
    rest = train(tmp_path / "rest", schedule=schedule, resume=tmp_path / "part")
    assert rest.steps == whole.steps == 4 * ROWS
    assert same(weights(rest), weights(whole))
    assert same(stored(tmp_path / "rest"), stored(tmp_path / "whole"))


def test_a_checkpoint_without_its_memory_or_of_another_one_is_refused(tmp_path: Path) -> None:
    before = disk.read(train(tmp_path / "a").checkpoint)
    assert before.arrays["memory"].shape == (NETWORKS, PROVIDERS, UNITS)
    with pytest.raises(CheckpointError, match=r"agents\.memory was 8, is 4"):
        train(tmp_path / "b", resume=tmp_path / "a", memory=4)
    arrays = {name: value for name, value in before.arrays.items() if name != "memory"}
    disk.write(tmp_path / "a" / disk.FILE, before._replace(arrays=arrays))
    with pytest.raises(CheckpointError, match="lacks 'memory'"):
        train(tmp_path / "b", resume=tmp_path / "a")


# -- on disk


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    folder = tmp_path_factory.mktemp("recurrent")
    trained = train(folder / "run", learning_rate=0.05)
    return trained, export(trained.policy, folder / "trained" / "recurrent_x", replace(ORIGIN, control_s=20))


def test_the_exported_policy_is_the_actor_decision_by_decision(exported: tuple[Trained, Path]) -> None:
    trained, policy = exported[0], OnnxPolicy(exported[1], sample_seed=None)
    held, memory = None, torch.zeros(500, UNITS)
    for t in range(20):
        rows = np.random.default_rng(t).uniform(-1, 1, (500, OBSERVATION_SIZE)).astype(np.float32)
        logits, held = policy.step(rows, held)
        with torch.inference_mode():
            expected, memory = trained.policy(torch.from_numpy(rows), memory)
        assert held is not None and np.abs(held - memory.numpy()).max() < 1e-5
        assert np.abs(logits - expected.numpy()).max() < 1e-5
    assert np.abs(policy.logits(rows) - logits).max() > 1e-3, "what was seen before counts"


def test_the_card_says_how_much_is_remembered_and_at_which_pace(exported: tuple[Trained, Path]) -> None:
    said = {"units": UNITS, "control_s": 20.0}
    assert yaml.safe_load((exported[1] / CARD_FILE).read_text())["memory"] == said
    memory = OnnxPolicy(exported[1]).memory
    assert memory is not None and memory._asdict() == said


def test_a_policy_that_is_served_acts_as_it_did_while_learning(exported: tuple[Trained, Path]) -> None:
    """One call a decision, the rows of all networks: (networks x providers, ...)."""
    policy, mask = OnnxPolicy(exported[1], sample_seed=None), np.ones((NETWORKS * PROVIDERS, MASK_SIZE), np.int8)
    rows = observations(10, NETWORKS * PROVIDERS)
    policy.begin(20.0)
    served = [policy.act(seen.numpy(), mask) for seen in rows]
    sequence = exported[0].policy.unroll(
        rows[None], torch.zeros(1, NETWORKS * PROVIDERS, UNITS), torch.zeros(1, 10, dtype=torch.bool)
    )
    assert np.array_equal(np.stack(served), sequence[0].reshape(10, -1, 3, 5).argmax(-1).numpy())


def test_a_file_whose_memory_is_not_torchs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agents import export as exporting

    other = actor()
    with torch.no_grad():
        other.kept.weight.add_(0.1)  # it shows from the second decision on
    content = exporting.to_onnx(other.eval())
    monkeypatch.setattr(exporting, "to_onnx", lambda _: content)
    with pytest.raises(PolicyError, match="x: ONNX and torch must agree to 1e-05, got "):
        export(actor(), tmp_path / "trained" / "x", ORIGIN)
    assert not (tmp_path / "trained" / "x").exists()


# -- where it starts


def published(folder: Path, policy: torch.nn.Module) -> str:
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    return str(export(policy, folder / "trained" / "expert", ORIGIN))


LAYERS: dict[str, Any] = {"hidden": (16, 16)}


def test_it_starts_as_a_policy_without_memory_whose_logits_stay(tmp_path: Path) -> None:
    expert = Actor(**LAYERS)
    trained = train(tmp_path / "run", start=published(tmp_path, expert), warmup=10**6)
    rows = observations(50)
    logits, memory = trained.policy(rows, torch.zeros(50, UNITS))
    assert torch.equal(logits, expert(rows)) and (memory != 0).any(), "there is something to recall once that is learned"
    assert torch.equal(trained.policy(rows, memory)[0], expert(rows))


def test_it_starts_as_a_policy_that_remembers(tmp_path: Path) -> None:
    expert = RecurrentActor(**LAYERS, memory=UNITS)
    trained = train(tmp_path / "run", start=published(tmp_path, expert), warmup=10**6)
    assert all(torch.equal(value, trained.policy.state_dict()[name]) for name, value in expert.state_dict().items())


@pytest.mark.parametrize(
    ("learn", "units", "said"),
    [
        (lambda: train, 4, "expert remembers with 4 units, and agents.memory is 8; write agents=recurrent agents.memory=4, or"),
        (lambda: train_mappo, 8, "expert remembers with 8 units, and this learner remembers nothing; write agents=recurrent"),
    ],
)
def test_a_policy_that_remembers_otherwise_is_refused_with_the_way_out(
    tmp_path: Path, learn: Callable[[], Any], units: int, said: str
) -> None:
    start = published(tmp_path, RecurrentActor(**LAYERS, memory=units))
    with pytest.raises(PolicyError, match=rf"agents\.start: {said}"):
        learn()(tmp_path / "run", start=start)


def train_mappo(folder: Path, **changes: Any) -> Trained:
    return train(folder, learn=mappo.learn, **changes)


def test_a_league_is_refused() -> None:
    pool = LeagueSettings(networks=0.5, seats=0.5, past=0.5, pool=("paper",), snapshots=0, snapshot_every=1)
    with pytest.raises(ValueError, match="league must be null"):
        replace(SETTINGS, league=pool)
