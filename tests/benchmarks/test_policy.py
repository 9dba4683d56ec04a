"""The benchmark of policies times every call as often, and compares the same weights."""

from pathlib import Path

import numpy as np

from benchmarks import policy


def test_calls_take_turns_and_each_is_timed_as_often() -> None:
    seen: list[str] = []
    calls = {"a": lambda row: seen.append("a"), "b": lambda row: seen.append("b")}
    found = policy.latencies(calls, {"b": lambda: seen.append("before b")}, policy.BLOCK + 1)
    block = policy.BLOCK
    assert seen == (["a"] * (block + 1) + ["b"] + ["before b", "b"] * block) * 2
    assert 0.0 < found["a"].p50 <= found["a"].p99


def test_a_fresh_policy_answers_as_torch_does(tmp_path: Path) -> None:
    folder, model = policy.fresh(tmp_path)
    found, difference = policy.beside(folder, model, 20)
    assert difference < 1e-5
    assert set(found) == {"ONNX forward", "act, greedy", "act, drawn", "act, drawn, prepared", "torch eager forward", "SB3 predict"}
    row = np.zeros((1, policy.OBSERVATION_SIZE), np.float32)
    assert (policy.calls_of(folder)[0]["act, greedy"](row)[0, 0]) == 0, "the mask leaves one level of accept"


def test_an_import_brings_neither_torch_nor_numba() -> None:
    assert policy.imports(1)["loaded"] == []
