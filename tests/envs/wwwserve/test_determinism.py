"""Same seed, same bytes: whole episodes compared across processes, threads, batch positions, modes, and interfaces."""

import copy
import io
import json
import os
import pickle
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest

from envs.wwwserve.env import parallel_env, raw_env
from envs.wwwserve.gym import GymMarket
from envs.wwwserve.sb3 import SB3Market
from market.chance import key_of
from market.terms import put
from tests.envs.wwwserve.play import (
    ROGUES,
    ROUGH,
    SCENARIOS,
    Players,
    draw_legal,
    episode_digests,
    make,
    same,
    scenario_of,
    terms_of,
)

SEED = 11


@cache
def digests_here(name: str) -> list[str]:
    """Of two networks through one episode and into the next."""
    batch = make(name, networks=2, seed=SEED)
    return episode_digests(batch, batch.steps_per_episode + 3)


@pytest.mark.parametrize("rules", ["compiled", "python"])
@pytest.mark.parametrize("name", [ROUGH, ROGUES, "tiny"])
def test_another_process_plays_the_same_episode_in_either_mode(name: str, rules: str) -> None:
    words = [sys.executable, "-m", "tests.envs.wwwserve.play", name, str(SEED)]
    found = subprocess.run(
        words, env=os.environ | {"RULES": rules, "PYTHONHASHSEED": "5"}, capture_output=True, text=True, check=True
    )
    assert json.loads(found.stdout) == digests_here(name)


@pytest.mark.parametrize("name", [*SCENARIOS, ROGUES])
def test_a_scenario_plays_the_same_episode_twice(name: str) -> None:
    batch = make(name, networks=2, seed=SEED)
    first = episode_digests(batch, batch.steps_per_episode // 4)
    batch.reset(SEED)
    assert episode_digests(batch, batch.steps_per_episode // 4) == first
    batch.reset(SEED + 1)
    assert episode_digests(batch, 3) != first


def test_threads_change_nothing() -> None:
    one, two = make(ROUGH, networks=5, seed=SEED), make(ROUGH, networks=5, seed=SEED, threads=2)
    steps = one.steps_per_episode + 3
    assert episode_digests(one, steps) == episode_digests(two, steps)
    assert same(one.save(), two.save())
    two.close()


def test_a_network_plays_the_same_in_a_batch_of_any_size() -> None:
    batch = make(ROUGH, networks=5, seed=SEED)
    assert episode_digests(batch, batch.steps_per_episode + 3)[:2] == digests_here(ROUGH)


def test_a_network_plays_the_same_alone() -> None:
    steps = scenario_of(ROUGH).steps + 3
    together = episode_digests(make(ROUGH, networks=3, seed=SEED), steps)
    alone = make(ROUGH, networks=1, seed=0)
    put(alone.world.net[0], "base_key", key_of(SEED, 2))
    put(alone.world.net[0], "episode", 0)
    alone.reset()
    assert episode_digests(alone, steps, first=2) == together[2:]


def test_networks_and_episodes_differ() -> None:
    batch = make(ROUGH, networks=3, seed=SEED)
    first = episode_digests(batch, 20)
    batch.reset()
    assert len({*first, *episode_digests(batch, 20)}) == 6


def test_a_record_changes_nothing() -> None:
    batch = make(ROUGH, networks=2, seed=SEED, record=True)
    assert episode_digests(batch, batch.steps_per_episode + 3) == digests_here(ROUGH)


def through_parallel(name: str, steps: int) -> list[Any]:
    env, players = parallel_env(scenario_of(name), market=terms_of(name)), Players(1)
    env.reset(seed=SEED)
    course: list[Any] = []
    for _ in range(steps):
        actions = dict(zip(env.agents, players.act(env.action_masks()[None])[0], strict=True))
        seen, rewards, _, truncations, infos = env.step(actions)
        course.append((list(seen.values()), list(rewards.values()), list(truncations.values()), list(infos.values())))
        if not env.agents:
            env.reset()
    return course


def through_turns(name: str, steps: int) -> list[Any]:
    env, players = raw_env(scenario_of(name), market=terms_of(name)), Players(1)
    env.reset(seed=SEED)
    course: list[Any] = []
    for _ in range(steps):
        for action in players.act(env.action_masks()[None])[0]:
            env.step(action)
        seen = [env.observe(agent) for agent in env.agents]
        course.append((seen, list(env.rewards.values()), list(env.truncations.values()), list(env.infos.values())))
        if all(env.truncations.values()):
            for _ in env.possible_agents:
                env.step(None)
            env.reset()
    return course


def through_batch(name: str, steps: int) -> list[Any]:
    batch, players = make(name, networks=1, seed=SEED), Players(1)
    course: list[Any] = []
    for _ in range(steps):
        batch.step(players.act(batch.masks))
        over = bool(batch.truncated[0])
        seen = (batch.final_observations if over else batch.observations)[0].copy()
        course.append((seen, batch.masks[0].copy(), batch.rewards[0].tolist(), over, batch.reward_parts[0].tolist()))
    return course


@pytest.mark.parametrize("name", [ROUGH, "tiny"])
def test_all_interfaces_play_the_same_episodes(name: str) -> None:
    steps = scenario_of(name).steps + 5
    courses = through_batch(name, steps), through_parallel(name, steps), through_turns(name, steps)
    for (seen, masks, rewards, over, parts), *views in zip(*courses, strict=True):
        for sights, view_rewards, truncations, infos in views:
            assert np.stack([sight["observation"] for sight in sights]).tobytes() == seen.tobytes()
            assert over or np.stack([sight["action_mask"] for sight in sights]).tobytes() == masks.tobytes()
            assert view_rewards == rewards and truncations == [over] * len(rewards)
            assert [list(info.values()) for info in infos] == parts


def stored(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state after a way through a file."""
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    return dict(np.load(file, allow_pickle=False))


@pytest.mark.parametrize("name", [ROUGH, ROGUES, "tiny"])
def test_a_batch_restored_in_mid_episode_has_the_same_future(name: str) -> None:
    batch = make(name, networks=3, seed=SEED, record=True)
    episode_digests(batch, batch.steps_per_episode // 2)
    state = stored(batch.save())
    other = make(name, networks=3, seed=SEED + 1, record=True)
    other.restore(state)
    assert same(other.save(), state)
    steps = batch.steps_per_episode
    assert episode_digests(batch, steps) == episode_digests(other, steps)
    assert same(batch.save(), other.save())
    assert batch.outcomes().tobytes() == other.outcomes().tobytes()


def test_a_state_of_another_size_is_refused_by_name() -> None:
    state = make("tiny", networks=2).save()
    with pytest.raises(
        ValueError, match=r"saved state: net must be .* of shape \(3,\); it is of another scenario, size or version"
    ):
        make("tiny", networks=3).restore(state)
    del state["wake"]
    with pytest.raises(ValueError, match="saved state: wake must be"):
        make("tiny", networks=2).restore(state)


@pytest.mark.parametrize("kind", [parallel_env, raw_env])
def test_an_environment_restored_in_mid_episode_has_the_same_future(kind: Any) -> None:
    env, other = kind("tiny", max_cycles=30), kind("tiny", max_cycles=30)
    random, again = np.random.default_rng(1), np.random.default_rng(1)
    env.reset(seed=SEED)
    advance(env, random, 12)
    state = stored(env.save())
    other.restore(state)
    again.bit_generator.state = random.bit_generator.state
    assert advance(env, random, 40) == advance(other, again, 40) == 18
    assert same(env.save(), other.save())


def advance(env: Any, random: np.random.Generator, most: int) -> int:
    """Play up to `most` steps of the market or to the end of the episode; says how many."""
    for step in range(most):
        if not env.agents or any(getattr(env, "truncations", {}).values()):
            return step
        actions = draw_legal(env.action_masks(), random)
        if hasattr(env, "agent_selection"):
            for action in actions:
                env.step(action)
        else:
            env.step(dict(zip(env.agents, actions, strict=True)))
    return most


def test_slots_restored_in_mid_episode_have_the_same_future() -> None:
    view, other = SB3Market(make("tiny", networks=2, seed=SEED, stagger=True)), SB3Market(make("tiny", networks=2))
    random = np.random.default_rng(2)
    view.reset()
    for _ in range(20):
        view.step(random.integers(0, 5, (6, 3)))
    other.restore(stored(view.save()))
    for _ in range(60):
        actions = random.integers(0, 5, (6, 3))
        for one, two in zip(view.step(actions), other.step(actions), strict=True):
            assert str(one) == str(two) if isinstance(one, list) else one.tobytes() == two.tobytes()


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_copy_has_the_same_future_and_leaves_the_original_alone(copy_of: Any, threads: int) -> None:
    batch = make(ROUGH, networks=2, seed=SEED, record=True, threads=threads)
    episode_digests(batch, 30)
    twin, state = copy_of(batch), batch.save()
    future = episode_digests(twin, 60)
    assert same(batch.save(), state)
    assert episode_digests(batch, 60) == future and same(batch.save(), twin.save())


def test_a_copied_view_has_the_same_future() -> None:
    for view in (SB3Market(make("tiny", networks=2, seed=SEED)), GymMarket(make("tiny", networks=2, seed=SEED), masked="idle")):
        view.reset()
        twin = copy.deepcopy(view)
        for _ in range(70):
            one, two = view.step(np.full((6, 3), 2)), twin.step(np.full((6, 3), 2))
            assert one[0].tobytes() == two[0].tobytes() and one[1].tobytes() == two[1].tobytes()
    env = parallel_env("tiny")
    env.reset(seed=SEED)
    twin_env, random = copy.deepcopy(env), np.random.default_rng(0)
    assert advance(env, random, 60) == advance(twin_env, np.random.default_rng(0), 60) == 60
    assert same(env.save(), twin_env.save())


def test_the_tables_alone_are_not_copied() -> None:
    with pytest.raises(TypeError, match="World: cannot be copied"):
        copy.deepcopy(make("tiny").world)
