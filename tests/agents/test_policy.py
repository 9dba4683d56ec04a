"""Policies never break a mask, and a policy on disk is served whole and of this layout, or refused by name."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import linear_onnx

from agents.card import CARD_FILE, POLICY_FILE, PolicyError
from agents.policy import LevelsPolicy, OnnxPolicy, Policy, UniformPolicy, _Draws, load
from market.action import ACTION_NVEC, IDLE, MASK_SIZE
from market.observation import OBSERVATION_NAMES, OBSERVATION_SIZE, OBSERVATION_VERSION

WriteFolder = Callable[..., Path]
ROOT = Path(__file__).parents[2]


def observations(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (count, OBSERVATION_SIZE)).astype(np.float32)


def masks(count: int, seed: int = 0) -> np.ndarray:
    """Random masks that leave level 0 of each head possible, as the market's do."""
    mask = (np.random.default_rng(seed).random((count, MASK_SIZE)) < 0.4).astype(np.int8)
    mask[:, ::5] = 1
    return mask


def chosen_is_possible(actions: np.ndarray, mask: np.ndarray) -> bool:
    at = actions + np.arange(0, MASK_SIZE, ACTION_NVEC[0])
    return bool(np.take_along_axis(mask, at, axis=1).all())


ALL_POSSIBLE = np.ones((1, MASK_SIZE), np.int8)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40))
def test_no_baseline_ever_takes_a_masked_level(seed: int, count: int) -> None:
    policies: list[Policy] = [LevelsPolicy("fixed", (4, 4, 4)), UniformPolicy(seed)]
    mask = masks(count, seed)
    for policy in policies:
        actions = policy.act(observations(count, seed), mask)
        assert actions.shape == (count, 3) and actions.dtype == np.int64
        assert chosen_is_possible(actions, mask)


@pytest.mark.parametrize("sample_seed", [None, 5])
def test_a_trained_policy_never_takes_a_masked_level(write_folder: WriteFolder, sample_seed: int | None) -> None:
    policy = OnnxPolicy(write_folder(), sample_seed=sample_seed)
    for seed in range(30):
        mask = masks(64, seed)
        assert chosen_is_possible(policy.act(observations(64, seed), mask), mask)


def test_a_trained_policy_takes_the_most_probable_possible_level(write_folder: WriteFolder) -> None:
    bias = np.array([0, 1, 2, 3, 4, 9, 0, 0, 0, 8, 0, 0, 7, 0, 6], np.float32)
    policy = OnnxPolicy(write_folder(linear_onnx(np.zeros((OBSERVATION_SIZE, MASK_SIZE)), bias)), sample_seed=None)
    mask = ALL_POSSIBLE.copy()
    assert policy.act(observations(1), mask).tolist() == [[4, 0, 2]]
    mask[0, [4, 5, 12]] = 0
    assert policy.act(observations(1), mask).tolist() == [[3, 4, 4]]


def test_a_row_is_answered_the_same_alone_and_in_a_batch(write_folder: WriteFolder) -> None:
    policy, rows = OnnxPolicy(write_folder(), sample_seed=None), observations(50)
    together = policy.logits(rows)
    alone = np.concatenate([policy.logits(rows[k : k + 1]) for k in range(50)])
    assert np.abs(together - alone).max() < 1e-5


def test_sampling_repeats_with_its_seed_and_follows_the_probabilities(write_folder: WriteFolder) -> None:
    bias = np.log(np.array([0.1, 0.2, 0.3, 0.4, 1e-9] * 3))
    folder = write_folder(linear_onnx(np.zeros((OBSERVATION_SIZE, MASK_SIZE)), bias))
    rows, mask = observations(20_000), np.ones((20_000, MASK_SIZE), np.int8)
    first, again = (OnnxPolicy(folder, sample_seed=7).act(rows, mask) for _ in range(2))
    assert (first == again).all()
    assert np.bincount(first[:, 1], minlength=5) / 20_000 == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.0], abs=0.02)


def test_uniform_draws_every_possible_level_equally_often_and_repeats_with_its_seed() -> None:
    mask = np.ones((20_000, MASK_SIZE), np.int8)
    mask[:, 7] = 0
    first, again = (UniformPolicy(3).act(observations(20_000), mask) for _ in range(2))
    assert (first == again).all()
    assert np.bincount(first[:, 1], minlength=5) / 20_000 == pytest.approx([0.25, 0.25, 0.0, 0.25, 0.25], abs=0.02)


def test_a_row_draws_the_same_however_many_rows_are_asked_for(write_folder: WriteFolder) -> None:
    folder, rows = write_folder(), observations(9)
    few: list[Policy] = [UniformPolicy(3), OnnxPolicy(folder, sample_seed=3)]
    many: list[Policy] = [UniformPolicy(3), OnnxPolicy(folder, sample_seed=3)]
    for policy, other in zip(few, many, strict=True):
        for _ in range(5):
            assert (policy.act(rows[:2], masks(9)[:2]) == other.act(rows, masks(9))[:2]).all()


@pytest.mark.parametrize("times", [1, 3])
def test_what_is_prepared_beforehand_changes_no_answer(write_folder: WriteFolder, times: int) -> None:
    folder, rows = write_folder(), observations(9)
    plain: list[Policy] = [UniformPolicy(3), OnnxPolicy(folder, sample_seed=3), OnnxPolicy(folder, sample_seed=None)]
    ready: list[Policy] = [UniformPolicy(3), OnnxPolicy(folder, sample_seed=3), OnnxPolicy(folder, sample_seed=None)]
    for policy, other in zip([*plain, LevelsPolicy("fixed", (4, 4, 4))], [*ready, LevelsPolicy("fixed", (4, 4, 4))], strict=True):
        for call in range(6):
            for _ in range(times if call % 2 else 0):
                other.prepare()
            assert (policy.act(rows, masks(9)) == other.act(rows, masks(9))).all()


def test_a_generator_that_was_made_beforehand_is_used_once() -> None:
    draws, calls = _Draws(7), []
    for call in range(1, 5):
        ahead = draws.prepare()
        calls.append(next(draws))
        assert calls[-1] is ahead
        assert ahead.gumbel(size=15).tolist() == np.random.default_rng((7, call)).gumbel(size=15).tolist()
    assert len({id(one) for one in calls}) == 4


def test_a_fixed_level_that_is_masked_becomes_idle() -> None:
    mask = np.ones((2, MASK_SIZE), np.int8)
    mask[1, 6:10] = 0  # no credit: cannot forward
    assert LevelsPolicy("fixed", (3, 2, 1)).act(observations(2), mask).tolist() == [[3, 2, 1], [3, 0, 1]]


def test_a_mask_that_leaves_nothing_is_refused_by_head_and_row() -> None:
    mask = np.ones((4, MASK_SIZE), np.int8)
    mask[2, 5:10] = 0
    with pytest.raises(PolicyError, match="a level of forward possible, got none in row 2"):
        UniformPolicy(0).act(observations(4), mask)


def test_a_mask_of_another_number_of_rows_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"mask must have shape \(4, 15\).*got \(3, 15\)"):
        UniformPolicy(0).act(observations(4), masks(3))


def test_an_observation_that_is_not_finite_is_refused_by_row_and_entry(write_folder: WriteFolder) -> None:
    rows = observations(3)
    rows[1, 4] = np.nan
    with pytest.raises(PolicyError, match=f"observation must be finite, got nan in row 1, {OBSERVATION_NAMES[4]}"):
        OnnxPolicy(write_folder()).act(rows, masks(3))


def test_an_observation_of_another_length_is_refused(write_folder: WriteFolder) -> None:
    with pytest.raises(PolicyError, match=rf"observation must have shape \(n, {OBSERVATION_SIZE}\), got \(3, 9\)"):
        OnnxPolicy(write_folder()).act(np.zeros((3, 9), np.float32), masks(3))


@pytest.mark.parametrize("missing", [CARD_FILE, POLICY_FILE])
def test_a_missing_file_is_named(write_folder: WriteFolder, missing: str) -> None:
    folder = write_folder()
    (folder / missing).unlink()
    with pytest.raises(PolicyError, match=f"{missing}: does not exist; a policy is a folder with {POLICY_FILE} and {CARD_FILE}"):
        OnnxPolicy(folder)


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_onnx_file_is_refused(write_folder: WriteFolder, keep: int) -> None:
    folder = write_folder()
    whole = (folder / POLICY_FILE).read_bytes()
    (folder / POLICY_FILE).write_bytes(whole[:keep])
    with pytest.raises(PolicyError, match="policy.onnx: is cut off or not the file of its card .*; export it again"):
        OnnxPolicy(folder)


def test_a_file_that_is_no_onnx_is_refused_even_when_its_card_vouches_for_it(write_folder: WriteFolder) -> None:
    whole = linear_onnx(np.zeros((OBSERVATION_SIZE, MASK_SIZE)), np.zeros(MASK_SIZE))
    for name, content in {"text": b"not a policy", "cut": whole[: len(whole) // 2], "empty": b""}.items():
        with pytest.raises(PolicyError, match="policy.onnx: is not a whole ONNX file"):
            OnnxPolicy(write_folder(content, name=name))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda card: card["observation"].update(version=OBSERVATION_VERSION + 2),
            f"observation.version is {OBSERVATION_VERSION + 2}, this build makes {OBSERVATION_VERSION}; retrain it or check out",
        ),
        (lambda card: card["observation"]["names"].__setitem__(3, "warp"), r"observation.names\[3\] is warp, this build makes "),
        (
            lambda card: card["observation"]["names"].pop(),
            f"names has {OBSERVATION_SIZE - 1} entries, this build makes",
        ),
        (lambda card: card["action"].update(version=9), "action.version is 9, this build makes 1"),
        (
            lambda card: card["action"]["levels"]["commit"].__setitem__(4, 0.9),
            r"action.levels.commit\[4\] is 0.9, this build makes",
        ),
        (lambda card: card.update(format=7), "format is 7, this build makes 1"),
        (lambda card: card.pop("observation"), "has no observation.version; export the policy again"),
        (lambda card: card.pop("policy_sha256"), "has no policy_sha256; export the policy again"),
        (lambda card: card["observation"].update(names="all"), "names has 0 entries"),
        (lambda card: card.pop("training"), "has no training.agent_steps; export the policy again"),
        (lambda card: card["training"].update(agent_steps="many"), "agent_steps must be an integer >= 0, got 'many'"),
    ],
)
def test_a_card_of_another_layout_is_refused_with_the_way_out(
    write_folder: WriteFolder, change: Callable[[dict], object], text: str
) -> None:
    with pytest.raises(PolicyError, match=f"card.yaml: .*{text}"):
        OnnxPolicy(write_folder(change=change))


@pytest.mark.parametrize("content", [b"a: [1", b"\xff\xfe\x00", b"", b"- 1\n"])
def test_a_damaged_card_is_refused(write_folder: WriteFolder, content: bytes) -> None:
    folder = write_folder()
    (folder / CARD_FILE).write_bytes(content)
    with pytest.raises(PolicyError, match="card.yaml: (is not YAML|has no commit)"):
        OnnxPolicy(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused_at_loading(write_folder: WriteFolder, value: float) -> None:
    weight = np.zeros((OBSERVATION_SIZE, MASK_SIZE))
    weight[5, 5] = value
    with pytest.raises(PolicyError, match="policy.onnx: logits must be finite, got .*; export it again"):
        OnnxPolicy(write_folder(linear_onnx(weight, np.zeros(MASK_SIZE))))


def test_a_network_of_another_width_name_or_fixed_batch_is_refused(write_folder: WriteFolder) -> None:
    narrow = linear_onnx(np.zeros((OBSERVATION_SIZE - 1, MASK_SIZE)), np.zeros(MASK_SIZE))
    renamed = linear_onnx(np.zeros((OBSERVATION_SIZE, MASK_SIZE)), np.zeros(MASK_SIZE), output="q")
    single = linear_onnx(np.zeros((OBSERVATION_SIZE, MASK_SIZE)), np.zeros(MASK_SIZE), rows=1)
    for name, content, text in (
        ("narrow", narrow, "input must be observation"),
        ("renamed", renamed, "output must be logits"),
        ("single", single, "input must be observation"),
    ):
        with pytest.raises(PolicyError, match=f"policy.onnx: {text}, float of shape"):
            OnnxPolicy(write_folder(content, name=name))


@pytest.mark.parametrize(
    ("name", "brain", "dispatch"),
    [
        ("single", "policy", "market"),
        ("paper", "paper", "market"),
        ("paper_central", "policy", "paper_central"),
        ("central", "policy", "central"),
        ("uniform", "policy", "market"),
        ("fixed:3,2,1", "policy", "market"),
        ("fixed:3-2-1", "policy", "market"),
    ],
)
def test_a_named_policy_says_what_steers_and_what_dispatches(name: str, brain: str, dispatch: str) -> None:
    found = load(name)
    assert (found.name, found.brain, found.dispatch) == (name, brain, dispatch)
    assert chosen_is_possible(found.policy.act(observations(3), masks(3)), masks(3))


def test_single_is_idle_and_fixed_has_its_levels() -> None:
    assert load("single").policy.act(observations(1), ALL_POSSIBLE).tolist() == [list(IDLE)]
    assert load("fixed:3,2,1").policy.act(observations(1), ALL_POSSIBLE).tolist() == [[3, 2, 1]]


def test_a_trained_policy_is_found_by_folder_and_by_name(write_folder: WriteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(name="ppo_tiny")
    assert load(folder).name == "ppo_tiny"
    monkeypatch.chdir(folder.parents[1])
    assert load("ppo_tiny").name == load("policies_trained/ppo_tiny/").name == "ppo_tiny"
    monkeypatch.chdir(folder)
    assert load(".").name == "ppo_tiny"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("papr", "there is no papr; did you mean paper[?]"),
        ("centrl", "did you mean central[?]"),
        ("policies_trained/ppo_tny", "there is no policies_trained/ppo_tny; did you mean ppo_tiny[?]"),
        ("zzz", "choose from single, paper, paper_central, central, uniform, fixed:3-2-2, ppo_tiny, or give a folder"),
        ("fixed:9,0,0", r"must be fixed:ACCEPT-FORWARD-COMMIT with levels in \[0, 4\]"),
        ("fixed:1,2", "must be fixed:ACCEPT-FORWARD-COMMIT"),
        ("fixed", "must be fixed:ACCEPT-FORWARD-COMMIT"),
        ("fixed:a,b,c", "must be fixed:ACCEPT-FORWARD-COMMIT"),
        ("fixed:-1,0,0", "must be fixed:ACCEPT-FORWARD-COMMIT"),
    ],
)
def test_an_unknown_policy_is_refused_with_what_was_probably_meant(
    write_folder: WriteFolder, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.chdir(write_folder(name="ppo_tiny").parents[1])
    with pytest.raises(PolicyError, match=text):
        load(name)


def test_a_serving_node_loads_and_asks_a_policy_without_learners_compilers_and_environments(write_folder: WriteFolder) -> None:
    program = f"""
import sys
import numpy as np
from agents.policy import load
policy = load({str(write_folder())!r}).policy
print(policy.act(np.zeros((2, {OBSERVATION_SIZE}), np.float32), np.ones((2, {MASK_SIZE}), np.int8)).shape)
heavy = ("torch", "numba", "hydra", "omegaconf", "gymnasium", "pettingzoo", "stable_baselines3", "onnx", "envs", "scipy", "pandas")
print([name for name in heavy if name in sys.modules])
"""
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=os.environ | {"RULES": "python"}, capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines() == ["(2, 3)", "[]"]
