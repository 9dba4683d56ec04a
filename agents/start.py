"""Starts learning from a policy on disk: the weights of its ONNX file become those of an actor, which must then compute the same.

Only the actor is on disk; a critic begins anew.
"""

from collections.abc import Mapping

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from agents.card import POLICY_FILE, PolicyError
from agents.export import TOLERANCE, gap
from agents.names import folder_of
from agents.networks import RecurrentActor
from agents.policy import OnnxPolicy
from agents.settings import Learner


def put_start(settings: Learner, parts: Mapping[str, torch.nn.Module], memory: Mapping[str, torch.nn.Linear]) -> None:
    """Put the weights of the policy `settings.start` into an actor.

    parts    "hidden", the layers before the last, and "heads", the last one
    memory   "seen", "kept" and "recall" of agents.networks.RecurrentActor, or nothing; from a policy that remembers nothing they
             are left as they are, but for "recall", which becomes 0: the actor then acts as that policy
    errors   PolicyError for a policy that is not there, cannot be served, or has other layers than `settings.hidden`
    """
    policy = OnnxPolicy(_folder(str(settings.start)))
    _check_memory(policy, memory["recall"].in_features if memory else 0)
    weights = read_weights(policy)
    sizes = [len(weights[name]) for name in weights if name.startswith("hidden.") and name.endswith(".bias")]
    actor = torch.nn.ModuleDict({**parts, **(memory if policy.memory else {})})
    expected = {name: tuple(tensor.shape) for name, tensor in actor.state_dict().items()}
    if expected != {name: value.shape for name, value in weights.items()}:
        raise PolicyError(
            f"agents.start: {policy.name} has hidden layers {sizes}, and agents.hidden is {list(settings.hidden)}; "
            f"write agents.hidden={str(sizes).replace(' ', '')}, or start from another policy"
        )
    actor.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.items()})
    if memory and not policy.memory:
        torch.nn.init.zeros_(memory["recall"].weight)
    found = gap(policy, _whole(actor, settings, policy))
    if not found <= TOLERANCE:
        raise PolicyError(
            f"agents.start: the layers of {policy.name} compute something else in this learner (logits differ by {found:g}); "
            "start from a policy of agents=ppo, maskable_ppo, mappo, league or recurrent"
        )


def _check_memory(policy: OnnxPolicy, units: int) -> None:
    """Refuse a policy that remembers otherwise than the learner, which has so many units, 0 for none."""
    if policy.memory and policy.memory.units != units:
        mine = f"agents.memory is {units}" if units else "this learner remembers nothing"
        raise PolicyError(
            f"agents.start: {policy.name} remembers with {policy.memory.units} units, and {mine}; "
            f"write agents=recurrent agents.memory={policy.memory.units}, or start from another policy"
        )


def _whole(actor: torch.nn.ModuleDict, settings: Learner, policy: OnnxPolicy) -> torch.nn.Module:
    """Put the parts of an actor together."""
    if policy.memory is None:
        return torch.nn.Sequential(actor["hidden"], actor["heads"])
    whole = RecurrentActor(settings.hidden, policy.memory.units)
    whole.load_state_dict(actor.state_dict())
    return whole


def read_weights(policy: OnnxPolicy) -> dict[str, NDArray[np.float32]]:
    """Read the weights of a policy's file, by the names that agents.export gives them, in the order of the layers."""
    model = onnx.load(policy.folder / POLICY_FILE)
    found = {weight.name: onnx.numpy_helper.to_array(weight) for weight in model.graph.initializer}
    return dict(sorted(found.items(), key=lambda item: (not item[0].startswith("hidden."), item[0])))


def _folder(name: str) -> str:
    folder = folder_of(name)
    if folder is None:
        raise PolicyError(f"agents.start: there is no trained policy {name}; name a folder in policies_trained, or give its path")
    return str(folder)
