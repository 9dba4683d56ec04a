"""Learning starts from a policy on disk, whichever learner made it, and refuses one that does not fit by name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_batch import FakeBatch
from fake_market import FakeMarket
from test_export import ORIGIN
from test_mappo import SETTINGS
from test_mappo import train as train_mappo
from test_ppo import train as train_ppo

from agents import checkpoint as disk
from agents.card import PolicyError
from agents.export import export
from agents.networks import Actor
from agents.start import put_start


def published(
    folder: Path, hidden: tuple[int, ...] = (16, 16), activation: type[torch.nn.Module] = torch.nn.Tanh
) -> tuple[Actor, str]:
    torch.manual_seed(1)
    actor = Actor(hidden)
    for place, part in enumerate(actor.hidden):
        if isinstance(part, torch.nn.Tanh):
            actor.hidden[place] = activation()
    return actor, str(export(actor, folder / "trained" / "expert", ORIGIN))


def test_an_actor_starts_as_the_policy_on_disk(tmp_path: Path) -> None:
    expert, folder = published(tmp_path, (16, 8, 4))
    actor = Actor((16, 8, 4))
    put_start(replace(SETTINGS, start=folder, hidden=(16, 8, 4)), {"hidden": actor.hidden, "heads": actor.heads}, {})
    assert all(torch.equal(value, actor.state_dict()[name]) for name, value in expert.state_dict().items())


def test_mappo_starts_from_a_policy_and_keeps_it_while_the_critic_warms_up(tmp_path: Path) -> None:
    expert, folder = published(tmp_path)
    trained = train_mappo(tmp_path / "run", start=folder, warmup=10**6)
    assert all(torch.equal(value, trained.policy.state_dict()[name]) for name, value in expert.state_dict().items())
    moved = train_mappo(tmp_path / "other", start=folder)
    assert not torch.equal(moved.policy.heads.weight, expert.heads.weight)


def test_ppo_starts_from_a_policy_of_mappo_and_mappo_from_one_of_ppo(tmp_path: Path) -> None:
    expert, folder = published(tmp_path)
    ppo = train_ppo(tmp_path / "ppo", FakeMarket(8), start=folder, learning_rate=1e-9)
    np.testing.assert_allclose(ppo.policy.action_net.weight.detach(), expert.heads.weight.detach(), rtol=0, atol=1e-6)
    back = str(export(ppo.policy, tmp_path / "trained" / "back", ORIGIN))
    mappo = train_mappo(tmp_path / "mappo", start=back, warmup=10**6)
    assert torch.equal(mappo.policy.heads.weight, ppo.policy.action_net.weight)


def test_a_resumed_run_takes_its_checkpoint_and_not_the_start(tmp_path: Path) -> None:
    _, folder = published(tmp_path)
    whole = train_mappo(tmp_path / "whole", start=folder)
    with pytest.raises(KeyboardInterrupt):
        train_mappo(tmp_path / "part", FakeBatch(4, 2, stopped_at=40), start=folder)
    train_mappo(tmp_path / "rest", start=folder, resume=tmp_path / "part")
    mine, theirs = disk.read(tmp_path / "rest").arrays, disk.read(whole.checkpoint).arrays
    assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)


def test_a_policy_with_other_layers_is_refused_with_the_way_out(tmp_path: Path) -> None:
    _, folder = published(tmp_path, (8,))
    said = r"agents\.start: expert has hidden layers \[8\], and agents\.hidden is \[16, 16\]; write agents\.hidden=\[8\], or"
    with pytest.raises(PolicyError, match=said):
        train_mappo(tmp_path / "run", start=folder)


def test_a_policy_whose_layers_mean_something_else_is_refused(tmp_path: Path) -> None:
    _, folder = published(tmp_path, activation=torch.nn.ReLU)
    with pytest.raises(PolicyError, match=r"agents\.start: the layers of expert compute something else in this learner"):
        train_mappo(tmp_path / "run", start=folder)


@pytest.mark.parametrize("name", ["nobody", "paper", "fixed:3-2-2"])
def test_what_is_no_trained_policy_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PolicyError, match=f"agents.start: there is no trained policy {name}; name a folder"):
        train_mappo(tmp_path / "run", start=name)
