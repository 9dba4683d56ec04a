"""Starts learning from a policy on disk: the weights of its ONNX file become those of an actor, which must then compute the same.

Only the actor is on disk; a critic begins anew.
"""

from collections.abc import Mapping

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from agents.export import CHECKED_ROWS, TOLERANCE
from agents.policy import POLICY_FILE, OnnxPolicy, PolicyError, folder_of
from agents.settings import Learner
from market.observation import OBSERVATION_SIZE


def put_start(settings: Learner, parts: Mapping[str, torch.nn.Module]) -> None:
    """Put the weights of the policy `settings.start` into an actor.

    parts    "hidden", the layers before the last, and "heads", the last one
    errors   PolicyError for a policy that is not there, cannot be served, or has other layers than `settings.hidden`
    """
    policy = OnnxPolicy(_folder(str(settings.start)))
    weights = read_weights(policy)
    sizes = [len(weights[name]) for name in weights if name.startswith("hidden.") and name.endswith(".bias")]
    actor = torch.nn.ModuleDict(dict(parts))
    expected = {name: tuple(tensor.shape) for name, tensor in actor.state_dict().items()}
    if expected != {name: value.shape for name, value in weights.items()}:
        raise PolicyError(
            f"agents.start: {policy.name} has hidden layers {sizes}, and agents.hidden is {list(settings.hidden)}; "
            f"write agents.hidden={str(sizes).replace(' ', '')}, or start from another policy"
        )
    actor.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.items()})
    rows = np.random.default_rng(0).uniform(-1, 1, (CHECKED_ROWS, OBSERVATION_SIZE)).astype(np.float32)
    with torch.inference_mode():
        found = actor["heads"](actor["hidden"](torch.from_numpy(rows))).numpy()
    gap = float(np.abs(policy.logits(rows) - found).max())
    if not gap <= TOLERANCE:
        raise PolicyError(
            f"agents.start: the layers of {policy.name} compute something else in this learner (logits differ by {gap:g}); "
            "start from a policy of agents=ppo, maskable_ppo, mappo or league"
        )


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
