"""Stable-Baselines3's view: what VecEnv promises, what its learners read, and what happens where episodes end."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, MultiDiscrete
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import _check_obs, _check_spaces, _check_unsupported_spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecCheckNan, VecMonitor, VecNormalize

from agents.ppo import learn
from agents.settings import SB3Learner, read_agents
from agents.tracking import NoTracker
from envs.wwwserve import load
from envs.wwwserve.sb3 import SB3Market
from tests.envs.wwwserve.play import draw_legal, make


def view(name: str = "tiny", networks: int = 2, **arguments: Any) -> SB3Market:
    return SB3Market(make(name, networks=networks, **arguments))


def idle(market: Any) -> np.ndarray:
    return np.zeros((market.num_envs, 3), np.int64)


def test_slots_are_the_providers_of_all_networks() -> None:
    market = view(networks=4)
    assert market.num_envs == 12
    assert market.observation_space == Box(0.0, 1.0, market.observation_space.shape, np.float32)
    assert market.action_space == MultiDiscrete([5, 5, 5])
    assert (market.reset().reshape(4, 3, -1) == market.batch.observations).all()


def test_its_spaces_and_values_pass_the_checks_of_sb3() -> None:
    market = view()
    _check_spaces(market)  # type: ignore[arg-type]
    assert not _check_unsupported_spaces(market, market.observation_space, market.action_space)  # type: ignore[arg-type]
    for row in market.reset():
        _check_obs(row, market.observation_space, "reset")
    checked = VecCheckNan(market, raise_exception=True)
    for _ in range(70):
        seen, rewards, dones, infos = checked.step(idle(market))
        assert seen.dtype == np.float32 and rewards.dtype == np.float32 and dones.dtype == np.bool_
        assert seen.shape[0] == rewards.shape[0] == dones.shape[0] == len(infos) == market.num_envs
        for row in seen:
            _check_obs(row, market.observation_space, "step")


def test_an_episode_ends_with_its_last_sight_and_a_new_one_begins() -> None:
    market, twin = view(seed=3), make("tiny", networks=2, seed=3, autoreset=False)
    market.reset()
    returns = np.zeros(6)
    for step in range(1, 61):
        seen, rewards, dones, infos = market.step(idle(market))
        twin.step(np.zeros((2, 3, 3), np.int64))
        returns += twin.rewards.reshape(-1)
        assert rewards.tolist() == twin.rewards.reshape(-1).astype(np.float32).tolist()
        assert dones.all() == dones.any() == (step == 60)
    last = twin.observations.reshape(6, -1)
    assert [info["terminal_observation"].tolist() for info in infos] == last.tolist()
    assert all(info["TimeLimit.truncated"] is True for info in infos)
    assert [info["episode"]["r"] for info in infos] == pytest.approx(returns.tolist()) and {
        info["episode"]["l"] for info in infos
    } == {60}
    assert seen.tolist() != last.tolist()
    again = market.step(idle(market))[3]
    assert again == [{}] * 6 and infos[0]["episode"]["l"] == 60


def test_one_list_of_infos_serves_all_steps_but_the_last() -> None:
    market = view(networks=3, stagger=True)
    market.reset()
    shared = market.step(idle(market))[3]
    ends = 0
    for _ in range(120):
        _, _, dones, infos = market.step(idle(market))
        assert (infos is shared) == (not dones.any())
        assert [bool(info) for info in infos] == dones.tolist()
        ends += int(dones.any())
    assert shared == [{}] * 9 and ends > 4


def test_staggered_networks_end_at_different_times() -> None:
    market = view(networks=4, stagger=True)
    market.reset()
    ends = [np.flatnonzero(market.step(idle(market))[2]).tolist() for _ in range(60)]
    assert [step for step, slots in enumerate(ends, 1) if slots] == [15, 30, 45, 60]


def test_what_is_handed_out_stays_as_it_is() -> None:
    market = view()
    first = market.reset()
    kept = first.copy()
    second, rewards, dones, _ = market.step(idle(market))
    rewards += 100.0
    dones[:] = True
    market.step(idle(market))
    assert (first == kept).all() and second is not first and not market.batch.truncated.any()
    assert (market.batch.rewards < 50).all()


def test_a_masked_level_is_taken_as_level_0() -> None:
    market, twin = view("join", seed=5), make("join", networks=2, seed=5)
    market.reset()
    random = np.random.default_rng(0)
    for _ in range(100):
        masks, wanted = market.action_masks(), random.integers(0, 5, (market.num_envs, 3))
        allowed = np.take_along_axis(masks.reshape(-1, 3, 5), wanted[..., None], 2)[..., 0]
        market.step(wanted)
        twin.step((wanted * allowed).reshape(2, 4, 3))
    assert (market.batch.observations == twin.observations).all() and not allowed.all()


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        (np.zeros((6, 3)), r"actions must be integers of shape \(6, 3\), got float64"),
        (np.zeros((6, 2), int), r"got int64 of shape \(6, 2\)"),
        (np.full((6, 3), 5), "network 0, provider 0: accept must be one of the levels"),
        (np.full((6, 3), -1), "network 0, provider 0: accept must be one of the levels .* got -1"),
    ],
)
def test_hostile_actions_are_refused(actions: np.ndarray, words: str) -> None:
    market = view()
    market.reset()
    with pytest.raises(ValueError, match=words):
        market.step(actions)


def test_a_batch_that_does_not_start_anew_is_refused() -> None:
    with pytest.raises(ValueError, match="batch must be made with autoreset=True"):
        view(autoreset=False)


def test_masks_are_found_by_sb3_contrib() -> None:
    market = view("join")
    market.reset()
    assert is_masking_supported(market)
    masks = get_action_masks(market)
    assert masks.shape == (8, 15) and (masks == market.batch.masks.reshape(8, 15)).all()
    assert np.stack(market.env_method("action_masks", indices=[1, 4])).tolist() == masks[[1, 4]].tolist()


def test_attributes_and_methods_of_slots() -> None:
    market = view()
    assert market.get_attr("render_mode") == [None] * 6 and market.get_attr("render_mode", 0) == [None]
    assert market.has_attr("action_masks") and not market.has_attr("reward_range")
    assert market.env_is_wrapped(Monitor) == [False] * 6 and market.env_is_wrapped(Monitor, indices=[0]) == [False]
    with pytest.raises(AttributeError, match="has no method fly for slots; there are action_masks, render"):
        market.env_method("fly")
    with pytest.raises(AttributeError, match="cannot set speed of slots"):
        market.set_attr("speed", 3)
    with pytest.raises(AttributeError, match="speed"):
        market.get_attr("speed")


def test_seed_chooses_the_next_reset_and_reset_goes_on_without() -> None:
    market = view(seed=3)
    first = market.reset()
    assert (first == view(seed=3).reset()).all()
    second = market.reset()
    market.seed(3)
    assert (market.reset() == first).all() and (market.reset() == second).all() and (first != second).any()
    with pytest.raises(ValueError, match="seed must be >= 0, got -1"):
        market.seed(-1)


def test_it_works_below_the_wrappers_of_sb3() -> None:
    wrapped = VecNormalize(VecMonitor(view(networks=2, stagger=True)))
    wrapped.reset()
    found = [wrapped.step(idle(wrapped))[3] for _ in range(60)]
    assert any("episode" in info for infos in found for info in infos)


@pytest.mark.parametrize("kind", [PPO, MaskablePPO])
def test_learners_learn_in_it_and_masks_hold(kind: Any) -> None:
    market = view("join", networks=2, stagger=True)
    taken: list[np.ndarray] = []
    step_async = market.step_async

    def watch(actions: np.ndarray) -> None:
        taken.append(np.take_along_axis(market.action_masks().reshape(-1, 3, 5), actions[..., None], 2))
        step_async(actions)

    market.step_async = watch  # type: ignore[method-assign]
    model = kind("MlpPolicy", market, n_steps=32, batch_size=128, n_epochs=1, seed=1, device="cpu")
    model.learn(2 * 32 * market.num_envs)
    assert model.num_timesteps == 512 and np.isfinite(model.logger.name_to_value["train/loss"])
    assert np.concatenate(taken).all() == (kind is MaskablePPO)


def test_pictures_are_of_the_first_network() -> None:
    market = SB3Market(make("tiny", networks=2), render_mode="rgb_array")
    market.reset()
    market.step(draw_legal(market.action_masks(), np.random.default_rng(0)))
    picture = market.render()
    assert picture is not None and picture.shape == (640, 960, 3) and picture.dtype == np.uint8
    market.close()


class StoppedMarket(SB3Market):
    """A market whose process is stopped after some steps."""

    left = 60

    def step_wait(self) -> Any:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().step_wait()


@pytest.mark.parametrize("name", ["ppo", "maskable_ppo"])
def test_a_resumed_training_run_equals_one_that_never_stopped(tmp_path: Path, name: str) -> None:
    learner = read_agents(
        {**load.values("agents", "ppo"), "name": name, "networks": 2, "rollout": 25, "minibatch": 50, "hidden": [8]}, "ppo.yaml"
    )
    assert isinstance(learner, SB3Learner)
    learner = replace(learner, steps=600, checkpoint_every=150)

    def run(kind: type[SB3Market], folder: str, resume: str | None = None) -> dict[str, Any]:
        (tmp_path / folder).mkdir()
        market = kind(make("tiny", networks=2, seed=4, stagger=True))
        trained = learn(
            market, learner, NoTracker(), seed=4, folder=tmp_path / folder, resume=tmp_path / resume if resume else None
        )
        return {key: value.numpy().tobytes() for key, value in trained.policy.state_dict().items()}

    whole = run(SB3Market, "whole")
    with pytest.raises(KeyboardInterrupt):
        run(StoppedMarket, "part")
    assert run(SB3Market, "rest", "part") == whole
