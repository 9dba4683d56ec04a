"""Gymnasium's view. Gymnasium has no checker for vector environments, so what its documentation promises is checked here."""

from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import ClipReward, DictInfoToList, RecordEpisodeStatistics

from envs.wwwserve.batch import PART_NAMES
from envs.wwwserve.gym import GymMarket
from tests.envs.wwwserve.play import draw_legal, make


def view(name: str = "tiny", networks: int = 2, **arguments: Any) -> GymMarket:
    return GymMarket(make(name, networks=networks), **arguments)


def play(market: Any, steps: int, seed: int = 1) -> list[Any]:
    """Random legal actions; all that comes back."""
    random, (seen, infos) = np.random.default_rng(seed), market.reset(seed=seed)
    course: list[Any] = [(seen, infos)]
    for _ in range(steps):
        course.append(market.step(draw_legal(course[-1][-1]["action_mask"], random)))
    return course


def test_it_says_what_gymnasium_asks_for() -> None:
    market = view(networks=3)
    assert isinstance(market, VectorEnv) and market.num_envs == 9
    assert market.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert market.observation_space.shape == (9, *market.single_observation_space.shape)
    assert market.action_space.shape == (9, 3) and market.action_space.contains(market.action_space.sample())
    assert str(market) == "GymMarket(num_envs=9)" and market.unwrapped is market


def test_every_value_is_of_its_space_and_kind() -> None:
    market = view()
    (seen, infos), *steps = play(market, 70)
    assert market.observation_space.contains(seen) and not (set(infos) & {"final_obs", "final_info"})
    for seen, rewards, terminations, truncations, infos in steps:
        assert market.observation_space.contains(seen)
        assert rewards.shape == (6,) and rewards.dtype == np.float64 and np.isfinite(rewards).all()
        assert terminations.dtype == truncations.dtype == np.bool_ and not terminations.any()
        assert all(f"_{name}" in infos and infos[f"_{name}"].dtype == np.bool_ for name in infos if not name.startswith("_"))
        assert infos["action_mask"].shape == (6, 15) and infos["action_mask"].dtype == np.int8


def test_same_seed_same_course_and_nothing_is_reused() -> None:
    market = view()
    one = play(market, 65)
    again = play(market, 65)
    assert all(data_equivalence(a, b, exact=True) for a, b in zip(one, again, strict=True))
    assert data_equivalence(one, play(view(), 65), exact=True) and not data_equivalence(one, play(view(), 65, seed=2))
    assert market.np_random_seed == 1


def test_the_step_that_ends_an_episode_begins_the_next() -> None:
    market, twin = view(), make("tiny", networks=2, autoreset=False)
    twin.reset(1)
    random = np.random.default_rng(1)
    market.reset(seed=1)
    for _ in range(60):
        actions = draw_legal(twin.masks.reshape(6, 15), random)
        seen, rewards, _, truncations, infos = market.step(actions)
        twin.step(actions.reshape(2, 3, 3))
    assert truncations.all() and infos["_final_obs"].all() and rewards.tolist() == twin.rewards.reshape(-1).tolist()
    assert np.stack(infos["final_obs"]).tolist() == twin.observations.reshape(6, -1).tolist() != seen.tolist()
    for column, name in enumerate(PART_NAMES):
        assert infos["final_info"][name].tolist() == twin.reward_parts[..., column].reshape(-1).tolist()
        assert not infos[name].any()
    market.step(np.zeros((6, 3), int))
    assert "final_obs" not in market.step(np.zeros((6, 3), int))[-1]


def test_reset_without_a_seed_goes_on_with_the_next_episodes() -> None:
    market = view()
    first, _ = market.reset(seed=1)
    second, _ = market.reset()
    assert (first != second).any() and (market.reset(seed=1)[0] == first).all() and (market.reset()[0] == second).all()


def test_it_works_below_the_wrappers_of_gymnasium() -> None:
    market = DictInfoToList(RecordEpisodeStatistics(ClipReward(view(), -1.0, 1.0)))
    market.reset(seed=1)
    for _ in range(60):
        seen, _, _, truncations, infos = market.step(np.zeros((6, 3), int))
    assert truncations.all() and market.observation_space.contains(seen)
    assert len(infos) == 6 and {info["episode"]["l"] for info in infos} == {60}


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        (np.zeros((6, 3)), r"GymMarket: actions must be integers of shape \(6, 3\), got float64"),
        (np.zeros((3, 6), int), r"got int64 of shape \(3, 6\)"),
        (np.full((6, 3), 9), "accept must be one of the levels"),
    ],
)
@pytest.mark.parametrize("masked", ["refuse", "idle"])
def test_hostile_actions_are_refused(actions: np.ndarray, words: str, masked: str) -> None:
    market = view(masked=masked)
    market.reset(seed=1)
    with pytest.raises(ValueError, match=words):
        market.step(actions)


def test_masked_actions_are_refused_or_idle_as_asked() -> None:
    strict, kind = view("join"), view("join", masked="idle")
    strict.reset(seed=1)
    kind.reset(seed=1)
    with pytest.raises(ValueError, match=r"network 0, provider 1: accept must be one of the levels \[0\]"):
        strict.step(np.full((8, 3), 1))
    kind.step(np.full((8, 3), 1))
    assert (kind.action_masks().sum(axis=1) == [15, 3, 3, 3] * 2).all()


def test_hostile_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="batch must be made with autoreset=True"):
        GymMarket(make("tiny", autoreset=False))
    with pytest.raises(ValueError, match="masked must be one of refuse, idle, got 'clip'"):
        view(masked="clip")
    with pytest.raises(ValueError, match="reset_mask is for autoreset mode DISABLED"):
        view().reset(options={"reset_mask": np.ones(6, bool)})


def test_render_gives_a_picture_of_the_first_network() -> None:
    market = view(render_mode="rgb_array")
    market.reset(seed=1)
    (picture,) = market.render()
    assert picture.shape == (640, 960, 3)
    market.close()
    assert market.closed and view().render() is None
