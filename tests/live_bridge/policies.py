"""Policies on disk for tests: small ones that are well, one whose mood is in the engine's hands, and some that mean harm."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper
from stand_ins import card_of, counting_onnx, linear_onnx

from agents.card import CARD_FILE, POLICY_FILE
from market.action import MASK_SIZE
from market.observation import OBSERVATION_SIZE

WELL, NOT_FINITE, SHORT, STALLED, FAILING = 0.0, 0.25, 0.42, 0.65, 0.85
"""Share of KV blocks in use at which the moody policy is so."""
ZONES = {NOT_FINITE: (0.2, 0.3), SHORT: (0.4, 0.45), STALLED: (0.6, 0.7), FAILING: (0.8, 0.9)}
STALL_SIZE = 1400
"""Rows of the matrices that are multiplied to waste some 0.1 s."""


def folder_of(place: Path, content: bytes | None = None, **card: Any) -> Path:
    """Write a policy; one that is well unless `content` says otherwise."""
    content = well() if content is None else content
    place.mkdir(parents=True, exist_ok=True)
    (place / POLICY_FILE).write_bytes(content)
    (place / CARD_FILE).write_text(yaml.safe_dump(card_of(content) | card), encoding="utf-8")
    return place


def remembering(place: Path) -> Path:
    """Write a policy whose levels are how often its memory has moved, once in 20 s of the market."""
    return folder_of(place, counting_onnx(), memory={"units": 1, "control_s": 20.0})


def well(levels: tuple[int, int, int] = (3, 0, 2)) -> bytes:
    """A policy that says the same always."""
    bias = np.full(MASK_SIZE, -50.0)
    for head, level in enumerate(levels):
        bias[5 * head + level] = 50.0
    return linear_onnx(np.zeros((OBSERVATION_SIZE, MASK_SIZE)), bias)


def sick() -> bytes:
    """A policy whose weights are not numbers."""
    return linear_onnx(np.full((OBSERVATION_SIZE, MASK_SIZE), np.nan), np.zeros(MASK_SIZE))


def moody() -> bytes:
    """A policy that is well unless the KV usage, its first entry, lies in one of ZONES."""
    nodes = [
        helper.make_node("Gemm", ["observation", "weight", "bias"], ["well"]),
        helper.make_node("Gather", ["observation", "first"], ["column"], axis=1),
        helper.make_node("ReduceMax", ["column"], ["usage"], keepdims=0),
    ]
    last = "well"
    for k, (mood, (low, high)) in enumerate(ZONES.items()):
        nodes += [
            helper.make_node("Constant", [], [f"low{k}"], value=_scalar(low)),
            helper.make_node("Constant", [], [f"high{k}"], value=_scalar(high)),
            helper.make_node("Greater", ["usage", f"low{k}"], [f"above{k}"]),
            helper.make_node("Less", ["usage", f"high{k}"], [f"below{k}"]),
            helper.make_node("And", [f"above{k}", f"below{k}"], [f"in{k}"]),
        ]
        out = "logits" if k == len(ZONES) - 1 else f"step{k}"
        branches = _branch(_fault(mood, last, k), f"bad{k}"), _branch([("Identity", [last], {})], f"good{k}")
        nodes.append(helper.make_node("If", [f"in{k}"], [out], then_branch=branches[0], else_branch=branches[1]))
        last = out
    bias = np.zeros(MASK_SIZE)
    bias[[3, 5, 12]] = 50.0
    given = [
        numpy_helper.from_array(np.zeros((OBSERVATION_SIZE, MASK_SIZE), np.float32), "weight"),
        numpy_helper.from_array(bias.astype(np.float32), "bias"),
        numpy_helper.from_array(np.array([0]), "first"),
    ]
    return _model(nodes, given)


def _fault(mood: float, last: str, k: int) -> list[tuple[str, list[Any], dict[str, Any]]]:
    """Steps of a branch: operation, inputs (arrays are constants, `None` the step before), attributes."""
    if mood == NOT_FINITE:
        return [("Mul", [last, np.array(np.nan, np.float32)], {})]
    if mood == SHORT:
        return [("Slice", [last, np.array([0]), np.array([10]), np.array([1])], {})]
    if mood == STALLED:
        grown = np.array([STALL_SIZE, STALL_SIZE])
        return [
            ("Expand", ["usage", grown], {}),
            ("MatMul", [None, None], {}),
            ("ReduceMax", [None], {"keepdims": 0}),
            ("Mul", [None, np.array(0.0, np.float32)], {}),
            ("Add", [last, None], {}),
        ]
    return [
        ("Mul", ["usage", np.array(1000.0, np.float32)], {}),
        ("Cast", [None], {"to": TensorProto.INT64}),
        ("Unsqueeze", [None, np.array([0])], {}),
        ("Gather", [last, None], {"axis": 1}),
    ]


def _branch(steps: list[tuple[str, list[Any], dict[str, Any]]], name: str) -> Any:
    nodes, before = [], ""
    for k, (operation, inputs, attributes) in enumerate(steps):
        words = []
        for at, value in enumerate(inputs):
            if isinstance(value, np.ndarray):
                words.append(f"{name}_{k}_{at}")
                nodes.append(helper.make_node("Constant", [], [words[-1]], value=numpy_helper.from_array(value)))
            else:
                words.append(before if value is None else value)
        before = f"{name}_{k}"
        nodes.append(helper.make_node(operation, words, [before], **attributes))
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(before, TensorProto.FLOAT, None)])


def _scalar(value: float) -> Any:
    return numpy_helper.from_array(np.array(value, np.float32))


def _model(nodes: list[Any], given: list[Any]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["n", OBSERVATION_SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", MASK_SIZE])],
        given,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def outside(location: str) -> bytes:
    """A policy whose weights lie in another file."""
    model = onnx.load_from_string(well())
    [weight] = [one for one in model.graph.initializer if one.name == "weight"]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * OBSERVATION_SIZE * MASK_SIZE))):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    return bytes(model.SerializeToString())


def bomb(count: int = 40_000_000_000) -> bytes:
    """A policy of some hundred bytes that takes 160 GB to ask."""
    nodes = [
        helper.make_node("ConstantOfShape", ["count"], ["much"]),
        helper.make_node("ReduceSum", ["much"], ["nothing"], keepdims=0),
        helper.make_node("Gemm", ["observation", "weight", "bias"], ["well"]),
        helper.make_node("Add", ["well", "nothing"], ["logits"]),
    ]
    given = [
        numpy_helper.from_array(np.array([count]), "count"),
        numpy_helper.from_array(np.zeros((OBSERVATION_SIZE, MASK_SIZE), np.float32), "weight"),
        numpy_helper.from_array(np.zeros(MASK_SIZE, np.float32), "bias"),
    ]
    return _model(nodes, given)


def endless() -> bytes:
    """A policy that counts to 2^62 before it says anything."""
    again = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Identity", ["held_in"], ["held_out"]),
        ],
        "again",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held_in", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held_out", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("Gemm", ["observation", "weight", "bias"], ["well"]),
        helper.make_node("Loop", ["turns", "go", "well"], ["logits"], body=again),
    ]
    given = [
        numpy_helper.from_array(np.array(1 << 62), "turns"),
        numpy_helper.from_array(np.array(True), "go"),
        numpy_helper.from_array(np.zeros((OBSERVATION_SIZE, MASK_SIZE), np.float32), "weight"),
        numpy_helper.from_array(np.zeros(MASK_SIZE, np.float32), "bias"),
    ]
    return _model(nodes, given)


class Harm:
    """What a pickle could do."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.trace}",))


def pickled(trace: Path) -> bytes:
    """A pickle that leaves a trace when it is loaded."""
    return pickle.dumps(Harm(trace))
