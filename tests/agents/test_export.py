"""An exported policy is the actor that was trained, small, whole, and says where it comes from."""

import hashlib
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import onnx
import pytest
import torch
import yaml
from gymnasium.spaces import Box, MultiDiscrete
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO

from agents import export as exporting
from agents.card import CARD_FILE, POLICY_FILE, PolicyError
from agents.export import Origin, add_scores, export
from agents.policy import OnnxPolicy, load
from agents.provenance import Source
from market.action import MASK_SIZE
from market.observation import OBSERVATION_SIZE

ORIGIN = Origin(
    config={"env": {"name": "paper-2"}, "agents": {"hidden": (64, 64), "learning_rate": np.float64(5e-4)}, "limit": None},
    seeds={"train": 0, "evaluation": np.arange(1000, 1003)},
    source=Source("1f2c9ab", dirty=True),
    control_s=20,
    agent_steps=6_000_000,
    wall_s=181.26,
    wandb=None,
    command="python train.py env=paper-2 agents=ppo seed=0",
    scores={},
)


class Still(gymnasium.Env[np.ndarray, np.ndarray]):
    """Nothing ever happens: only its spaces count."""

    def __init__(self, width: int = OBSERVATION_SIZE, levels: int = 5) -> None:
        self.observation_space = Box(-1, 1, (width,), np.float32)
        self.action_space = MultiDiscrete([levels] * 3)

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(self.observation_space.shape or (), np.float32), {}

    def action_masks(self) -> np.ndarray:
        return np.ones(MASK_SIZE, bool)


def learner(kind: type = PPO, width: int = OBSERVATION_SIZE, levels: int = 5, **policy: Any) -> Any:
    made = kind("MlpPolicy", Still(width, levels), seed=0, device="cpu", policy_kwargs=policy or None)
    with torch.no_grad():  # SB3 starts with heads near zero: any wrong translation would pass
        for weight in made.policy.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return made


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[PPO, Path]:
    model = learner()
    return model, export(model.policy, tmp_path_factory.mktemp("trained") / "ppo_tiny", ORIGIN)


def observations(count: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (count, OBSERVATION_SIZE)).astype(np.float32)


def agrees(model: Any, policy: OnnxPolicy) -> bool:
    """Compare with what SB3 itself would do, distribution by distribution."""
    rows = observations(10_000)
    with torch.no_grad():
        heads = model.policy.get_distribution(torch.from_numpy(rows))
    parts = heads.distribution if hasattr(heads, "distribution") else heads.distributions
    expected = np.concatenate([torch.softmax(part.logits, -1).numpy() for part in parts], axis=1)
    logits = torch.from_numpy(policy.logits(rows)).reshape(-1, 3, 5)
    found = torch.softmax(logits, -1).reshape(-1, MASK_SIZE).numpy()
    greedy, _ = model.predict(rows, deterministic=True)
    same = (policy.act(rows, np.ones((len(rows), MASK_SIZE), np.int8)) == greedy).mean()
    return bool(np.abs(found - expected).max() < 1e-5 and same > 0.9995)  # two logits may lie within rounding of each other


def test_the_exported_policy_acts_as_the_trained_one(exported: tuple[PPO, Path]) -> None:
    assert agrees(exported[0], OnnxPolicy(exported[1], sample_seed=None))


def test_a_maskable_learner_with_another_network_is_exported_too(tmp_path: Path) -> None:
    model = learner(MaskablePPO, net_arch=[32], activation_fn=torch.nn.ReLU)
    assert agrees(model, OnnxPolicy(export(model.policy, tmp_path / "maskable", ORIGIN), sample_seed=None))


def test_the_folder_holds_one_small_self_contained_file_and_its_card(exported: tuple[PPO, Path]) -> None:
    folder = exported[1]
    assert sorted(path.name for path in folder.iterdir()) == [CARD_FILE, POLICY_FILE]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert (folder / POLICY_FILE).stat().st_size < 1_000_000
    model = onnx.load(folder / POLICY_FILE, load_external_data=False)
    assert all(weight.data_location == onnx.TensorProto.DEFAULT for weight in model.graph.initializer)


def test_the_file_says_nothing_of_the_machine_that_wrote_it(exported: tuple[PPO, Path]) -> None:
    content = (exported[1] / POLICY_FILE).read_bytes()
    assert b"site-packages" not in content and str(Path.home()).encode() not in content and b".py" not in content


def test_the_card_says_where_the_policy_comes_from(exported: tuple[PPO, Path]) -> None:
    card = yaml.safe_load((exported[1] / CARD_FILE).read_text())
    assert card["name"] == "ppo_tiny"
    assert card["policy_sha256"] == hashlib.sha256((exported[1] / POLICY_FILE).read_bytes()).hexdigest()
    assert (card["commit"], card["dirty"], card["wandb"]) == ("1f2c9ab", True, None)
    assert card["training"] == {"agent_steps": 6_000_000, "wall_s": 181.3}
    assert card["seeds"] == {"train": 0, "evaluation": [1000, 1001, 1002]}
    assert card["reproduce"] == "python train.py env=paper-2 agents=ppo seed=0"
    assert card["config"]["agents"] == {"hidden": [64, 64], "learning_rate": 0.0005}
    assert load(exported[1]).name == "ppo_tiny"


def test_the_same_weights_give_the_same_bytes_and_export_leaves_them_as_they_are(
    exported: tuple[PPO, Path], tmp_path: Path
) -> None:
    model, folder = exported
    before = {key: weight.clone() for key, weight in model.policy.state_dict().items()}
    again = export(model.policy, tmp_path / "again", ORIGIN)
    assert (again / POLICY_FILE).read_bytes() == (folder / POLICY_FILE).read_bytes()
    assert all(torch.equal(weight, before[key]) for key, weight in model.policy.state_dict().items())


def test_scores_are_added_to_a_card_without_touching_the_rest(exported: tuple[PPO, Path], tmp_path: Path) -> None:
    folder = export(exported[0].policy, tmp_path / "scored", ORIGIN)
    before = yaml.safe_load((folder / CARD_FILE).read_text())
    add_scores(folder, {"paper-2": {"slo_attainment": {"scored": (0.9, 0.8, np.float64(0.95)), "paper": None}}})
    add_scores(folder, {"paper-1": {}})
    after = yaml.safe_load((folder / CARD_FILE).read_text())
    assert after.pop("scores") == {"paper-2": {"slo_attainment": {"scored": [0.9, 0.8, 0.95], "paper": None}}, "paper-1": {}}
    assert before | {"scores": {}} == after | {"scores": {}}
    assert sorted(path.name for path in folder.iterdir()) == [CARD_FILE, POLICY_FILE]


def test_a_weight_that_is_not_a_number_is_refused_and_the_former_policy_stays(exported: tuple[PPO, Path], tmp_path: Path) -> None:
    folder = export(exported[0].policy, tmp_path / "x", ORIGIN)
    before = (folder / CARD_FILE).read_bytes()
    broken = learner()
    with torch.no_grad():
        broken.policy.action_net.weight[3, 3] = torch.nan
    with pytest.raises(PolicyError, match="x: weights must be finite, got nan in heads.weight; train again"):
        export(broken.policy, folder, ORIGIN)
    assert (folder / CARD_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_file_that_computes_something_else_is_never_published(
    exported: tuple[PPO, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = exporting.to_onnx(exporting.Actor(learner(net_arch=[8]).policy).eval())
    monkeypatch.setattr(exporting, "to_onnx", lambda actor: other)
    with pytest.raises(PolicyError, match="x: ONNX and torch must agree to 1e-05, got "):
        export(exported[0].policy, tmp_path / "x", ORIGIN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("width", "levels"), [(OBSERVATION_SIZE + 1, 5), (OBSERVATION_SIZE, 4)])
def test_a_policy_of_another_layout_is_refused(tmp_path: Path, width: int, levels: int) -> None:
    with pytest.raises(PolicyError, match=rf"must map Box\({OBSERVATION_SIZE},\) to MultiDiscrete\(\[5, 5, 5\]\), got Box"):
        export(learner(width=width, levels=levels).policy, tmp_path / "x", ORIGIN)
    assert list(tmp_path.iterdir()) == []
