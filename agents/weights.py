"""Networks and optimisers as plain arrays and back, for checkpoints and for policies to start from."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


def weights_of(network: torch.nn.Module) -> Arrays:
    """Copy the weights and buffers of a network, by name."""
    return {name: tensor.numpy(force=True).copy() for name, tensor in network.state_dict().items()}


def put_weights(network: torch.nn.Module, weights: Mapping[str, NDArray[Any]]) -> None:
    """Put weights into a network of the same form.

    errors   KeyError naming the weights that one of them lacks
    """
    lacking = network.state_dict().keys() ^ weights.keys()
    if lacking:
        raise KeyError(", ".join(sorted(lacking)))
    network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})


def moments_of(optimizer: torch.optim.Optimizer) -> Arrays:
    """Copy the moments of Adam, named INDEX/PART."""
    return {
        f"{index}/{name}": tensor.numpy(force=True).copy()
        for index, state in optimizer.state_dict()["state"].items()
        for name, tensor in state.items()
    }


def put_moments(optimizer: torch.optim.Optimizer, moments: Mapping[str, NDArray[Any]]) -> None:
    """Put moments into an Adam over the same weights; its learning rate stays."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in moments.items():
        index, _, part = name.partition("/")
        state.setdefault(int(index), {})[part] = torch.from_numpy(np.array(value))
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
