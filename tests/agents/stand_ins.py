"""Small policies on disk and a small market that stand in for trained ones and for the simulator."""

import hashlib
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from agents.card import ACTION_LEVELS
from market.action import ACTION_VERSION, MASK_SIZE
from market.observation import OBSERVATION_NAMES, OBSERVATION_SIZE, OBSERVATION_VERSION


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


def counting_onnx(step: float = 1.0) -> bytes:
    """A policy whose memory grows by `step` and the first entry of what it sees, and whose levels are what it has counted to."""
    given = {
        "step": np.array([step]),
        "first": np.eye(OBSERVATION_SIZE)[:, :1],
        "levels": np.tile(np.arange(5.0), 3),
        "sharpness": np.array([-50.0]),
        "most": np.array([9.0]),
    }
    nodes = [
        helper.make_node("MatMul", ["observation", "first"], ["extra"]),
        helper.make_node("Add", ["extra", "step"], ["more"]),
        helper.make_node("Add", ["memory", "more"], ["next_memory"]),
        helper.make_node("Min", ["next_memory", "most"], ["count"]),
        helper.make_node("Sub", ["levels", "count"], ["apart"]),
        helper.make_node("Mul", ["apart", "apart"], ["square"]),
        helper.make_node("Mul", ["square", "sharpness"], ["logits"]),
    ]
    widths = {"observation": OBSERVATION_SIZE, "memory": 1, "logits": MASK_SIZE, "next_memory": 1}
    ends = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name, width in widths.items()}
    graph = helper.make_graph(
        nodes,
        "policy",
        [ends["observation"], ends["memory"]],
        [ends["logits"], ends["next_memory"]],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in given.items()],
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
        "training": {"agent_steps": 1000},
        "observation": {"version": OBSERVATION_VERSION, "names": list(OBSERVATION_NAMES)},
        "action": {"version": ACTION_VERSION, "levels": {head: list(levels) for head, levels in ACTION_LEVELS.items()}},
    }


OUTCOME = np.dtype(
    [
        ("network", "i8"),
        ("origin", "i8"),
        ("executor", "i8"),
        ("arrival_s", "f8"),
        ("prompt_tokens", "i8"),
        ("output_tokens", "i8"),
        ("latency_s", "f8"),
        ("ttft_s", "f8"),
        ("slo_s", "f8"),
        ("status", "i8"),
        ("delegated", "i8"),
    ]
)


class Scene(NamedTuple):
    """What an evaluation reads of a scenario."""

    name: str
    horizon_s: float
    control_s: float


class SmallMarket:
    """A market in which the mean accept level, the paper's rules and the schedulers each make requests faster by a fixed factor."""

    def __init__(
        self,
        *,
        networks: int,
        seed: int,
        dispatch: str,
        providers: int = 3,
        slos_s: tuple[float, ...] = (10.0,),
        arrivals: int = 120,
        first_arrival_s: float = 0.0,
    ) -> None:
        self.scenario = Scene("small", 40.0, 2.0)
        self.networks, self.providers, self.steps_per_episode = networks, providers, 20
        self.dispatch, self.brain, self.steps = dispatch, "policy", 0
        self.level_sum = np.zeros(networks)
        self.observations = np.zeros((networks, providers, OBSERVATION_SIZE), np.float32)
        self.masks = np.ones((networks, providers, MASK_SIZE), np.int8)
        self.masks[:, 0, 5:10] = (1, 0, 0, 0, 0)  # provider 0 cannot forward
        self.rewards = np.zeros((networks, providers))
        self.luck = [np.random.default_rng((seed, n)) for n in range(networks)]
        self._arrivals = np.concatenate([self._arrive(n, arrivals, slos_s, first_arrival_s) for n in range(networks)])

    def _arrive(self, network: int, count: int, slos_s: tuple[float, ...], first_s: float) -> np.ndarray:
        random, rows = self.luck[network], np.zeros(count, OUTCOME)
        rows["network"] = network
        rows["origin"] = rows["executor"] = random.integers(self.providers, size=count)
        rows["arrival_s"] = np.sort(random.uniform(first_s, 38.0, count))
        rows["output_tokens"] = random.integers(2, 50, count)
        rows["slo_s"] = np.array(slos_s)[rows["origin"] % len(slos_s)]
        rows["latency_s"] = random.uniform(0.8, 1.2) * rows["slo_s"] * random.gamma(2.0, 0.55, count)
        return rows

    def pin(self, brain: str, providers: list[int]) -> None:
        assert self.steps == 0
        self.brain = brain

    def step(self, actions: np.ndarray) -> None:
        assert self.steps < self.steps_per_episode, "an evaluation never plays past the end"
        assert actions.shape == (self.networks, self.providers, 3) and actions.dtype == np.int64
        at = actions + np.arange(0, MASK_SIZE, 5)
        assert np.take_along_axis(self.masks, at, axis=2).all(), "a masked action was taken"
        self.level_sum += actions[..., 0].mean(axis=1)
        self.steps += 1
        self.rewards[:] = self.gain()[:, None]

    def gain(self) -> np.ndarray:
        """The share of the latency that policy and dispatch save, (networks,)."""
        market = np.full(self.networks, 0.1) if self.brain == "paper" else 0.1 * self.level_sum / max(self.steps, 1)
        return (
            market if self.dispatch == "market" else np.full(self.networks, {"paper_central": 0.2, "central": 0.5}[self.dispatch])
        )

    def outcomes(self) -> np.ndarray:
        rows = self._arrivals.copy()
        rows["latency_s"] *= 1 - self.gain()[rows["network"]]
        ended = rows["arrival_s"] + rows["latency_s"] <= self.scenario.horizon_s
        rows["status"], rows["delegated"] = ended, self.brain == "paper"
        rows["ttft_s"] = np.where(ended, 0.3 * rows["latency_s"], np.inf)
        rows["latency_s"][~ended] = np.inf
        return rows

    def accounts(self) -> dict[str, np.ndarray]:
        credit = 100.0 + self.steps * self.gain()[:, None] * np.arange(self.providers)
        return {"credit": credit, "stake": np.ones_like(credit), "wealth": credit + 1.0}

    def counters(self) -> dict[str, np.ndarray]:
        shape = (self.networks, self.providers)
        received = np.full(shape, 4 if self.brain == "paper" else 0)
        return {"offers_received": received, "offers_declined": received // 4, "duels_won": np.zeros(shape, np.int64)}
