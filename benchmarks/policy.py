"""Latency of a policy on disk: `python -m benchmarks.policy [--quick] [--json PATH]`.

One observation at a time, as a node asks. A freshly exported policy of the shipped size, with random weights, beside torch and SB3
with the same weights, in turn; then the policies in policies_trained/, if there are any; then what an import brings.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import onnxruntime
import torch

from agents.card import CARD_FILE, POLICY_FILE
from agents.export import Actor, Origin, export
from agents.names import FOLDER
from agents.policy import INPUT, OUTPUT, OnnxPolicy
from agents.ppo import build
from agents.provenance import source
from agents.settings import SB3Learner
from benchmarks.measure import ROOT, child, command_line, report, show, spread
from benchmarks.training import NothingVec, plan_of
from market.action import MASK_SIZE
from market.observation import OBSERVATION_SIZE

CHECKED_ROWS = 10_000
CONTROL_S = 5.0  # between decisions of a node
BLOCK = 100
IMPORT = """
import json, sys, time
start = time.perf_counter()
import agents.policy
print(json.dumps({"s": time.perf_counter() - start, "loaded": [n for n in ("torch", "numba", "hydra") if n in sys.modules]}))
"""


class Latency(NamedTuple):
    """Of one call (us)."""

    p50: float
    p99: float


def latencies(
    calls: Mapping[str, Callable[[np.ndarray], object]], before: Mapping[str, Callable[[], object]], count: int
) -> dict[str, Latency]:
    """Time calls on one observation each, in blocks that take turns: a node asks one policy, so each finds its own cache warm.

    before   what is done ahead of a call of that name, and not timed: nobody waits for it
    """
    rows = np.random.default_rng(0).random((BLOCK, 1, OBSERVATION_SIZE), np.float32)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(-(-count // BLOCK)):
        for name, call in calls.items():
            call(rows[0])
            for row in rows:
                if name in before:
                    before[name]()
                start = time.perf_counter_ns()
                call(row)
                taken[name].append((time.perf_counter_ns() - start) / 1e3)
    return {name: Latency(*np.percentile(values, (50, 99)).tolist()) for name, values in taken.items()}


def forward_of(folder: Path) -> Callable[[np.ndarray], Any]:
    """Open the ONNX file alone, without the checks around it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / POLICY_FILE, options, providers=["CPUExecutionProvider"])
    return lambda row: session.run([OUTPUT], {INPUT: row})


def calls_of(folder: Path) -> tuple[dict[str, Callable[[np.ndarray], Any]], dict[str, Callable[[], object]]]:
    """List what a node does with a policy on disk, and what it does before that: the forward pass alone, and the whole act.

    returns   calls: masked, and greedy, drawn, or drawn with a generator made beforehand as a node does; what goes before them
    """
    mask = np.ones((1, MASK_SIZE), np.int8)
    mask[0, 1:5] = 0
    drawn, prepared, greedy = OnnxPolicy(folder), OnnxPolicy(folder), OnnxPolicy(folder, sample_seed=None)
    for one in (drawn, prepared, greedy):
        one.begin(CONTROL_S)
    calls = {
        "ONNX forward": forward_of(folder),
        "act, greedy": lambda row: greedy.act(row, mask),
        "act, drawn": lambda row: drawn.act(row, mask),
        "act, drawn, prepared": lambda row: prepared.act(row, mask),
    }
    return calls, {"act, drawn, prepared": prepared.prepare}


def fresh(folder: Path) -> tuple[Path, Any]:
    """Export a policy of the shipped size with random weights; returns its folder and the learner that holds the same weights."""
    shipped = plan_of("ppo", 1).agents
    assert isinstance(shipped, SB3Learner)
    model = build(NothingVec(1), shipped, seed=0)
    with torch.no_grad():  # an untrained head is a hundredth of that, and so would be the differences that are looked for
        cast("torch.nn.Linear", model.policy.action_net).weight.mul_(100.0)
    origin = Origin({}, {}, source(), CONTROL_S, 0, 0.0, None, "python -m benchmarks.policy", {})
    return export(model.policy, folder / "fresh", origin), model


def beside(folder: Path, model: Any, count: int) -> tuple[dict[str, Latency], float]:
    """Measure a policy beside torch and SB3, and find the largest difference of a logit over 10,000 random observations."""
    actor = Actor(model.policy).eval()

    def eager(row: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(actor(torch.from_numpy(row)))

    rows = np.random.default_rng(1).uniform(-1, 1, (CHECKED_ROWS, OBSERVATION_SIZE)).astype(np.float32)
    difference = float(np.abs(OnnxPolicy(folder).logits(rows) - eager(rows)).max())
    calls, before = calls_of(folder)
    calls |= {"torch eager forward": eager, "SB3 predict": lambda row: model.predict(row, deterministic=True)}
    return latencies(calls, before, count), difference


def imports(repeats: int) -> dict[str, Any]:
    """Import agents.policy in fresh processes, as a node does."""
    done = [child([sys.executable, "-c", IMPORT], RULES="python") for _ in range(repeats)]
    found = [json.loads(one.out) for one in done]
    return {
        "import_s": spread([one["s"] for one in found]),
        "process_s": spread([one.wall_s for one in done]),
        "loaded": found[0]["loaded"],
        "peak_mb": max(one.peak_bytes for one in done) / 1e6,
    }


def print_latencies(title: str, found: Mapping[str, Latency]) -> None:
    """Print latencies, and how many times longer than the ONNX forward pass each takes."""
    least = found["ONNX forward"].p50
    rows = [(name, f"{one.p50:.1f}", f"{one.p99:.1f}", f"{one.p50 / least:.1f}") for name, one in found.items()]
    show(title, ("call", "p50, us", "p99, us", "over ONNX forward"), rows)


def main() -> None:
    """Print the tables and one JSON line."""
    parser = command_line("policy", __doc__, "fewer repeats")
    arguments = parser.parse_args()
    count, repeats = (2_000, 2) if arguments.quick else (20_000, 5)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        policy, model = fresh(Path(folder))
        found, difference = beside(policy, model, count)
    print_latencies("A fresh policy, one observation", found)
    trained = {path.parent.name: path.parent for path in sorted((ROOT / FOLDER).glob(f"[!.]*/{CARD_FILE}"))}
    ours = {name: latencies(*calls_of(path), count) for name, path in trained.items()}
    for name, each in ours.items():
        print_latencies(f"{FOLDER}/{name}, one observation", each)
    brought = imports(repeats)
    rows = [
        ("largest difference of a logit from torch", f"{difference:.1e}"),
        ("import agents.policy, s", brought["import_s"].text(".2f")),
        ("process that only imports it, s", brought["process_s"].text(".2f")),
        ("of torch, numba, hydra it brings", ", ".join(brought["loaded"]) or "none"),
    ]
    show("Beside the latency", ("what", "found"), rows)
    figures = {name: one._asdict() for name, one in found.items()}
    trained_figures = {name: {call: one._asdict() for call, one in each.items()} for name, each in ours.items()}
    report("policy", {"fresh_us": figures, "trained_us": trained_figures, "logits": difference, "import": brought}, arguments.json)


if __name__ == "__main__":
    main()
