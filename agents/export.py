"""Writes a learned policy to disk: policy.onnx, which runs without torch, and card.yaml, which says where it comes from.

A folder appears under its name whole and checked, or not at all. Knows Stable-Baselines3's policies, our own actors, and no
environment.
"""

import copy
import hashlib
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml
from gymnasium.spaces import Box, MultiDiscrete
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy

from agents.card import ACTION_LEVELS, CARD_FILE, CARD_VERSION, POLICY_FILE, Memory, PolicyError
from agents.networks import RecurrentActor
from agents.policy import INPUT, MEMORY, NEXT_MEMORY, OUTPUT, OnnxPolicy
from agents.provenance import Source
from agents.publish import whole_folder, write_synced, write_whole
from market.action import ACTION_NVEC, ACTION_VERSION
from market.observation import OBSERVATION_NAMES, OBSERVATION_SIZE, OBSERVATION_TABLE, OBSERVATION_VERSION

TOLERANCE = 1e-5
"""Largest difference between a logit of torch and of ONNX."""
CHECKED_ROWS = 10_000
CHECKED_DECISIONS = 8
"""Of a policy that remembers: one after another, each with the memory that the one before has left."""

Scores = Mapping[str, Mapping[str, Mapping[str, Sequence[float] | None]]]
"""Scenario -> metric -> policy -> [point, low, high], the interquartile mean over seeds and its 95 % interval; null: no value."""


SB3Policy = ActorCriticPolicy | MaskableActorCriticPolicy


@dataclass(frozen=True)
class Origin:
    """Where a policy comes from: what its card says of its training."""

    config: Mapping[str, Any]  # the run's resolved config, plain
    seeds: Mapping[str, Any]  # {"train": 0, "evaluation": [1000, ...]}
    source: Source
    control_s: float  # between two decisions in training, which is the pace of a memory
    agent_steps: int
    wall_s: float  # of the training
    wandb: str | None  # address or id of the W&B run
    command: str  # the one command that makes this policy again
    scores: Scores


class Actor(torch.nn.Module):
    """The part of an actor-critic policy that a provider needs: observation -> logits of all heads."""

    def __init__(self, policy: SB3Policy) -> None:
        super().__init__()
        self.features = policy.pi_features_extractor
        self.hidden = policy.mlp_extractor.policy_net
        self.heads = policy.action_net

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """(n, OBSERVATION_SIZE) float32 -> (n, MASK_SIZE) float32."""
        logits: torch.Tensor = self.heads(self.hidden(self.features(observation)))
        return logits


def export(policy: torch.nn.Module, folder: str | Path, origin: Origin) -> Path:
    """Write policy.onnx and card.yaml, check them, and put them under `folder` in one move; a former policy there is replaced.

    policy   of PPO or MaskablePPO with "MlpPolicy", or an actor: observation -> logits of all heads, or of agents.networks with
             a memory; left as it is
    folder   policies_trained/NAME; its last part becomes the policy's name
    returns  folder
    errors   PolicyError for a policy of another layout, weights that are not finite, or an ONNX file that computes anything else
    """
    target = Path(folder)
    actor = _actor(policy, target.name)
    content = to_onnx(actor)
    with whole_folder(target, (POLICY_FILE, CARD_FILE)) as staging:
        write_synced(staging / POLICY_FILE, content)
        write_synced(staging / CARD_FILE, _card(target.name, origin, hashlib.sha256(content).hexdigest(), actor).encode())
        found = gap(OnnxPolicy(staging), actor)
        if not found <= TOLERANCE:
            raise PolicyError(f"{target.name}: ONNX and torch must agree to {TOLERANCE:g}, got {found:g}; report this network")
    return target


def add_scores(folder: str | Path, scores: Scores) -> None:
    """Write the scores of an evaluation into the card of a policy on disk, in one move; former scores of a scenario are replaced.

    errors   PolicyError when the folder holds no policy that can be served
    """
    card = OnnxPolicy(folder).card
    card["scores"] = card["scores"] | plain(scores)
    write_whole(Path(folder) / CARD_FILE, _dump(card).encode())


def to_onnx(actor: torch.nn.Module) -> bytes:
    """Translate an actor to one self-contained ONNX file with any number of rows; the same actor gives the same bytes."""
    remembered = {MEMORY: actor.memory} if isinstance(actor, RecurrentActor) else {}
    inputs = {INPUT: OBSERVATION_SIZE, **remembered}
    rows = torch.export.Dim("n", min=1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _Quiet("torch.onnx", "onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        warnings.filterwarnings("ignore", "# The axis name: n will not be used", UserWarning)  # for a second input has it, too
        path = Path(folder) / POLICY_FILE
        torch.onnx.export(
            actor,
            tuple(torch.zeros(2, width) for width in inputs.values()),
            path,
            input_names=list(inputs),
            output_names=[OUTPUT, *(NEXT_MEMORY for _ in remembered)],
            dynamic_shapes=tuple({0: rows} for _ in inputs),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        model = onnx.load(path)
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def plain(value: Any) -> Any:
    """Turn mappings, sequences and NumPy's numbers into what YAML and JSON know."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _actor(policy: torch.nn.Module, name: str) -> torch.nn.Module:
    """Copy the actor out of a policy, after checking its layout and weights."""
    if isinstance(policy, ActorCriticPolicy | MaskableActorCriticPolicy):
        _check_layout(policy, name)
        policy = Actor(policy)
    actor = copy.deepcopy(policy).to("cpu", torch.float32).eval()
    for key, weight in actor.state_dict().items():
        if not torch.isfinite(weight).all():
            bad = weight[~torch.isfinite(weight)][0].item()
            raise PolicyError(f"{name}: weights must be finite, got {bad} in {key}; train again with a lower learning rate")
    return actor


def _check_layout(policy: SB3Policy, name: str) -> None:
    spaces = policy.observation_space, policy.action_space
    fits = isinstance(spaces[0], Box) and spaces[0].shape == (OBSERVATION_SIZE,)
    if not fits or not isinstance(spaces[1], MultiDiscrete) or tuple(spaces[1].nvec) != ACTION_NVEC:
        expected = f"Box({OBSERVATION_SIZE},) to MultiDiscrete({list(ACTION_NVEC)})"
        raise PolicyError(f"{name}: the policy must map {expected}, got {spaces[0]} to {spaces[1]}")


def _card(name: str, origin: Origin, digest: str, actor: torch.nn.Module) -> str:
    """Write the card of a policy as YAML; of memory it speaks where there is one."""
    memory = Memory(actor.memory, float(origin.control_s))._asdict() if isinstance(actor, RecurrentActor) else None
    return _dump(
        {
            "format": CARD_VERSION,
            "name": name,
            "reproduce": origin.command,
            "commit": origin.source.commit,
            "dirty": origin.source.dirty,
            "policy_sha256": digest,
            "training": {"agent_steps": origin.agent_steps, "wall_s": round(float(origin.wall_s), 1)},
            "wandb": origin.wandb,
            "seeds": plain(origin.seeds),
            "scores": plain(origin.scores),
            "observation": {"version": OBSERVATION_VERSION, "names": list(OBSERVATION_NAMES)},
            "action": {"version": ACTION_VERSION, "levels": plain(ACTION_LEVELS)},
            **({"memory": memory} if memory else {}),
            "config": plain(origin.config),
        }
    )


def _dump(card: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(card), sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)


def gap(policy: OnnxPolicy, actor: torch.nn.Module) -> float:
    """Find the largest difference of a logit or a memory from torch's, on observations drawn over the whole table."""
    low, high = (np.array([getattr(entry, end) for entry in OBSERVATION_TABLE]) for end in ("low", "high"))
    random, widest = np.random.default_rng(0), 0.0
    held, kept = None, torch.zeros(CHECKED_ROWS, policy.memory.units if policy.memory else 0)
    for _ in range(CHECKED_DECISIONS if policy.memory else 1):
        rows = random.uniform(low, high, (CHECKED_ROWS, OBSERVATION_SIZE)).astype(np.float32)
        found, held = policy.step(rows, held)
        with torch.inference_mode():
            seen = torch.from_numpy(rows)
            expected, kept = actor(seen, kept) if policy.memory else (actor(seen), kept)
        pairs = [(found, expected), *([] if held is None else [(held, kept)])]
        widest = float(np.max([widest, *(np.abs(mine - theirs.numpy()).max() for mine, theirs in pairs)]))
    return widest


def _strip(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes about the machine and the source it ran on."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


class _Quiet:
    """Keep libraries that log to the terminal from doing so, unless it is an error."""

    def __init__(self, *names: str) -> None:
        self._loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)
