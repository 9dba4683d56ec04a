"""PettingZoo's view: its own tests on every scenario, the registry, the end of episodes, and hostile input."""

import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pettingzoo
import pytest

import envs.wwwserve as package
from envs.wwwserve import load
from envs.wwwserve.env import TurnMarket, env, parallel_env, raw_env
from market.action import IDLE, MASK_SIZE
from market.observation import OBSERVATION_SIZE, OBSERVATION_TABLE
from settings import SettingsError
from tests.envs.wwwserve.play import SCENARIOS, draw_legal

with warnings.catch_warnings():  # PettingZoo's tests import an environment of its own in the way that it has itself deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    from pettingzoo.test import (
        api_test,
        max_cycles_test,
        parallel_api_test,
        parallel_seed_test,
        render_test,
        seed_test,
        state_test,
    )

PLAIN = {"actions": "flat", "mask": "info"}
"""Spaces of the kinds that PettingZoo's api_test knows."""
KNOWN_WARNINGS = {
    "Observation is not a NumPy array",
    "Observation space for each agent probably should be gymnasium.spaces.box or gymnasium.spaces.discrete",
    "Action space for each agent probably should be gymnasium.spaces.box or gymnasium.spaces.discrete",
}
"""What api_test says of every observation that holds a mask, and of MultiDiscrete, but of some environments of its own by name."""

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def _quiet(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    capsys.readouterr()


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_passes_parallel_api_test(name: str) -> None:
    parallel_api_test(parallel_env(name, max_cycles=12), num_cycles=30)
    parallel_api_test(parallel_env(name, max_cycles=4, actions="flat"), num_cycles=30)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_passes_api_test(name: str) -> None:
    api_test(env(name, max_cycles=5, **PLAIN), num_cycles=12)


@pytest.mark.parametrize("arguments", [{}, {"actions": "flat"}, {"mask": "info"}])
def test_every_form_passes_api_test_with_warnings_about_its_spaces_only(arguments: dict[str, str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        api_test(env("tiny", max_cycles=5, **arguments), num_cycles=12)
    assert {str(warning.message) for warning in caught} <= KNOWN_WARNINGS


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_passes_the_seed_tests(name: str) -> None:
    parallel_seed_test(lambda: parallel_env(name, masked="idle"))  # it samples without the mask
    seed_test(lambda: env(name, max_cycles=12), num_cycles=8)
    seed_test(lambda: env(name, max_cycles=12, **PLAIN), num_cycles=8)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_passes_max_cycles_and_render_and_state_test(name: str) -> None:
    def blind(make: Any) -> Any:  # max_cycles_test and state_test sample without the mask
        return lambda **arguments: make(name, masked="idle", **arguments)

    max_cycles_test(types.SimpleNamespace(env=blind(env), parallel_env=blind(parallel_env)))
    render_test(lambda **arguments: env(name, **arguments))
    state_test(blind(env)(max_cycles=5), blind(parallel_env)(), num_cycles=5)


def test_the_registry_makes_both_interfaces() -> None:
    for kind, cls in (("parallel", pettingzoo.ParallelEnv), ("aec", pettingzoo.AECEnv)):
        made = pettingzoo.make(kind, "wwwserve/market-v0", scenario="paper-2", max_cycles=7)
        assert isinstance(made, cls) and str(made) == "wwwserve_market_v0"
        made.reset(seed=1)
        assert made.agents == made.possible_agents == [f"provider_{p}" for p in range(4)]
    assert pettingzoo.spec("parallel", "wwwserve/market").entry_point == "envs.wwwserve.env:parallel_env"


def test_importing_the_package_brings_in_no_simulator() -> None:
    assert package.__doc__
    words = "import sys, envs.wwwserve; print(sorted(sys.modules))"
    found = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert "envs.wwwserve" in found.stdout
    assert not [name for name in ("numba", "torch", "stable_baselines3", "envs.wwwserve.step") if f"'{name}'" in found.stdout]


def test_spaces_are_the_tables() -> None:
    market = parallel_env("tiny")
    space = market.observation_space("provider_0")
    assert space is market.observation_space("provider_0") and space is not market.observation_space("provider_1")
    assert space["observation"].low.tolist() == [entry.low for entry in OBSERVATION_TABLE]
    assert space["observation"].high.tolist() == [entry.high for entry in OBSERVATION_TABLE]
    assert space["action_mask"].shape == (MASK_SIZE,) and market.action_space("provider_0").nvec.tolist() == [5, 5, 5]
    flat = parallel_env("tiny", actions="flat", mask="info")
    assert flat.action_space("provider_0").n == 125 and flat.observation_space("provider_0").shape == (OBSERVATION_SIZE,)
    assert market.state_space.shape == (3 * OBSERVATION_SIZE,) and market.state_space.contains(market.state())


@pytest.mark.parametrize("arguments", [{}, PLAIN])
def test_an_episode_is_truncated_at_the_horizon_for_all_at_once(arguments: dict[str, str]) -> None:
    market, random = parallel_env("tiny", **arguments), np.random.default_rng(0)
    seen, infos = market.reset(seed=3)
    assert [list(info)[:4] for info in infos.values()] == [["attained", "missed", "wealth", "energy"]] * 3
    steps = 0
    while market.agents:
        if arguments:
            masks = np.stack([infos[agent]["action_mask"] for agent in market.agents])
            assert (masks == market.action_masks()).all()
            actions = {agent: market.action_space(agent).sample(mask) for agent, mask in zip(market.agents, masks, strict=True)}
        else:
            masks = np.stack([seen[agent]["action_mask"] for agent in market.agents])
            assert (masks == market.action_masks()).all()
            actions = dict(zip(market.agents, draw_legal(masks, random), strict=True))
        seen, _, terminations, truncations, infos = market.step(actions)
        steps += 1
        assert not any(terminations.values())
        assert set(truncations.values()) == {steps == load.scenario("tiny").steps}
    assert steps == 60 and set(seen) == set(market.possible_agents)
    with pytest.raises(RuntimeError, match=r"no episode is under way; call reset\(\) first"):
        market.step({})


def test_the_reward_is_the_sum_of_its_parts_by_the_scenarios_weights() -> None:
    reward = replace(load.scenario("tiny").reward, energy=1e-4)
    market, random = parallel_env(replace(load.scenario("tiny"), reward=reward)), np.random.default_rng(0)
    market.reset(seed=3)
    total = 0.0
    while market.agents:
        agents = market.agents
        _, rewards, _, _, infos = market.step(dict(zip(agents, draw_legal(market.action_masks(), random), strict=True)))
        for agent in agents:
            part = infos[agent]
            gain = reward.value * part["attained"] - reward.penalty * part["missed"]
            assert rewards[agent] == pytest.approx(
                gain + reward.exchange * part["wealth"] - reward.energy * part["energy"], abs=1e-12
            )
        total += sum(part["attained"] + part["missed"] for part in infos.values())
    assert total > 20


def test_rows_handed_out_stay_as_they_are() -> None:
    market = parallel_env("tiny")
    seen, _ = market.reset(seed=3)
    before = {agent: sight["observation"].copy() for agent, sight in seen.items()}
    for _ in range(20):
        market.step(dict.fromkeys(market.agents, IDLE))
    assert all((seen[agent]["observation"] == row).all() for agent, row in before.items())


def test_a_provider_that_is_offline_stays_a_live_agent_that_may_only_idle() -> None:
    market = parallel_env("join")
    market.reset(seed=0)
    masks = market.action_masks()
    assert masks[0].all() and np.flatnonzero(masks[1]).tolist() == [0, 5, 10]
    market.step(dict.fromkeys(market.agents, IDLE))
    assert len(market.agents) == 4
    with pytest.raises(
        ValueError, match=r"provider 2: accept must be one of the levels \[0\] that its action mask allows now, got 4"
    ):
        market.step(dict.fromkeys(market.agents, IDLE) | {"provider_2": (4, 0, 0)})
    forgiving = parallel_env("join", masked="idle")
    forgiving.reset(seed=0)
    forgiving.step(dict.fromkeys(forgiving.agents, (4, 4, 4)))
    assert forgiving.batch.accounts()["stake"][0, 0] > forgiving.batch.accounts()["stake"][0, 1]


def test_an_unseeded_environment_begins_by_chance_and_a_seeded_one_goes_on() -> None:
    def first_row(market: Any, seed: int | None) -> bytes:
        return b"".join(sight["observation"].tobytes() for sight in market.reset(seed=seed)[0].values())

    one, two = parallel_env("tiny"), parallel_env("tiny")
    assert first_row(one, None) != first_row(two, None)
    assert first_row(one, 4) == first_row(two, 4)
    assert first_row(one, None) == first_row(two, None) != first_row(two, None)


IDLES = {"provider_0": [0, 0, 0], "provider_1": [0, 0, 0], "provider_2": [0, 0, 0]}


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        ({"provider_0": [0, 0, 0]}, "one action for every agent in env.agents; provider_1, provider_2 missing"),
        (IDLES | {"provider_9": [0, 0, 0]}, "provider_9 unknown; they are provider_0, provider_1, provider_2"),
        ([[0, 0, 0]] * 3, "a dict of one action an agent, got list"),
        (IDLES | {"provider_1": [0, 0, 5]}, r"provider 1: commit must be one of the levels .* got 5"),
        (IDLES | {"provider_1": [-1, 0, 0]}, r"provider 1: accept must be one of the levels .* got -1"),
        (
            IDLES | {"provider_1": [0, 0]},
            r"provider_1: action must be 3 integers \(accept, forward, commit\), each in \[0, 5\), got ",
        ),
        (IDLES | {"provider_2": [0.0, float("nan"), 0.0]}, "provider_2: action must be 3 integers .* got .0.0, nan, 0.0."),
        (IDLES | {"provider_2": None}, "provider_2: action must be 3 integers .* got None"),
        (IDLES | {"provider_2": "abc"}, "provider_2: action must be 3 integers .* got 'abc'"),
    ],
)
def test_hostile_actions_are_refused_and_nothing_moves(actions: Any, words: str) -> None:
    market = parallel_env("tiny")
    market.reset(seed=0)
    before = market.state().tobytes()
    with pytest.raises(ValueError, match=words):
        market.step(actions)
    assert market.state().tobytes() == before and len(market.agents) == 3


@pytest.mark.parametrize("action", [125, -1, 0.5, float("nan"), None, [0, 0, 0]])
def test_hostile_flat_actions_are_refused(action: Any) -> None:
    market = parallel_env("tiny", actions="flat")
    market.reset(seed=0)
    with pytest.raises(ValueError, match=r"provider_1: action must be one integer in \[0, 125\), got"):
        market.step({"provider_0": 0, "provider_1": action, "provider_2": 0})
    turns = raw_env("tiny", actions="flat")
    turns.reset(seed=0)
    with pytest.raises(ValueError, match=r"provider_0: action must be one integer in \[0, 125\), got"):
        turns.step(action)


@pytest.mark.parametrize("action", [[0, 0, 5], [0, -1, 0], [0, 0], [0.0, float("nan"), 0.0], None, "abc", 7])
def test_hostile_turns_are_refused_at_once_and_by_name(action: Any) -> None:
    market = raw_env("tiny")
    market.reset(seed=0)
    market.step([0, 0, 0])
    with pytest.raises(ValueError, match=r"provider_1: action must be 3 integers .* got"):
        market.step(action)
    assert market.agent_selection == "provider_1"
    absent = raw_env("join")
    absent.reset(seed=0)
    absent.step([4, 4, 4])
    with pytest.raises(
        ValueError, match=r"provider_1: accept must be one of the levels \[0\] that its action mask allows now, got 2"
    ):
        absent.step([2, 0, 0])


def test_the_market_moves_when_the_last_has_acted() -> None:
    market = raw_env("tiny")
    market.reset(seed=0)
    first = market.observe("provider_0")
    market.step([0, 0, 0])
    market.step([0, 0, 0])
    assert market.observe("provider_0") is first and not any(market.rewards.values())
    market.step([0, 0, 0])
    assert market.observe("provider_0") is not first and market.agent_selection == "provider_0"
    assert market.last()[1] == market.rewards["provider_0"] == market.batch.rewards[0, 0]


def test_turns_are_saved_between_steps_of_the_market_only() -> None:
    market = raw_env("tiny")
    market.reset(seed=0)
    market.step([0, 0, 0])
    with pytest.raises(RuntimeError, match="it is the turn of provider_1; save between two steps"):
        market.save()


@pytest.mark.parametrize("kind", [parallel_env, raw_env])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"actions": "deep"}, "actions must be one of levels, flat, got 'deep'"),
        ({"mask": "both"}, "mask must be one of observation, info, got 'both'"),
        ({"masked": "clip"}, "masked must be one of refuse, idle, got 'clip'"),
        ({"max_cycles": 0}, "max_cycles must be >= 1 or None, got 0"),
        ({"render_mode": "opengl"}, "render_mode must be one of ansi, human, rgb_array or None, got 'opengl'"),
    ],
)
def test_hostile_arguments_are_refused(kind: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kind("tiny", **arguments)


def test_an_unknown_scenario_and_a_negative_seed_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"conf/env: has no wwserve.yaml; did you mean .?wwwserve"):
        parallel_env("wwserve")
    with pytest.raises(ValueError, match="seed must be >= 0, got -1"):
        parallel_env("tiny").reset(seed=-1)
    with pytest.raises(RuntimeError, match="call reset"):
        raw_env("tiny").step([0, 0, 0])
    assert isinstance(env("tiny").unwrapped, TurnMarket)
