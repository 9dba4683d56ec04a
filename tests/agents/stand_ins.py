"""Small policies on disk and a small market that stand in for trained ones and for the simulator."""

import hashlib
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from agents.policy import ACTION_LEVELS
from market.action import ACTION_VERSION
from market.observation import OBSERVATION_NAMES, OBSERVATION_VERSION


def linear_onnx(weight: np.ndarray, bias: np.ndarray, *, rows: str | int = "n", output: str = "logits") -> bytes:
    """logits = observation @ weight + bias, as an ONNX file."""
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["observation", "weight", "bias"], [output])],
        "policy",
        [helper.make_tensor_value_info("observation", TensorProto.FLOAT, [rows, weight.shape[0]])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [rows, weight.shape[1]])],
        [numpy_helper.from_array(weight.astype(np.float32), "weight"), numpy_helper.from_array(bias.astype(np.float32), "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def card_of(content: bytes) -> dict[str, Any]:
    return {
        "format": 1,
        "name": "tiny",
        "commit": "1f2c9ab",
        "policy_sha256": hashlib.sha256(content).hexdigest(),
        "scores": {},
        "observation": {"version": OBSERVATION_VERSION, "names": list(OBSERVATION_NAMES)},
        "action": {"version": ACTION_VERSION, "levels": {head: list(levels) for head, levels in ACTION_LEVELS.items()}},
    }
