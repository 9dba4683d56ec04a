"""A round comes back from disk as it was, and a damaged one is named."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from stand_ins import SmallMarket

from agents import rounds
from agents.evaluate import play
from agents.policy import load
from agents.scores import Played, Round


def one(policy: str = "paper", seed: int = 7) -> Round:
    """Play a small market."""
    who = load(policy)
    return play(SmallMarket(networks=3, seed=seed, dispatch=who.dispatch), who)


def test_every_field_comes_back_bit_for_bit(tmp_path: Path) -> None:
    written = one()
    rounds.write(tmp_path / "deep" / "x.npz", written)
    found = rounds.read(tmp_path / "deep" / "x.npz")
    assert (found.scenario, found.horizon_s, found.axis.relative, found.axis.slo) == ("small", 40.0, False, 10.0)
    assert np.array_equal(found.axis.thresholds, written.axis.thresholds) and np.array_equal(found.times_s, written.times_s)
    for field in fields(Played):
        before, after = getattr(written.played, field.name), getattr(found.played, field.name)
        if isinstance(before, np.ndarray):
            assert np.array_equal(before, after, equal_nan=True), field.name
        elif field.name == "latencies_s":
            assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        elif isinstance(before, dict):
            assert all(np.array_equal(before[name], after[name], equal_nan=True) for name in before), field.name
        else:
            assert before == after, field.name


def test_the_same_round_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        rounds.write(tmp_path / name, one())
    rounds.write(tmp_path / "c", one(seed=8))
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a", "b", "c"))
    assert a == b != c


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", None])
def test_a_damaged_file_is_named_with_the_way_out(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    rounds.write(path, one())
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(ValueError, match=r"x\.npz: is not a whole round .*; remove it, and it is played again"):
        rounds.read(path)


def test_a_file_without_a_part_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    rounds.write(path, one())
    with np.load(path) as file:
        less = {name: file[name] for name in file.files if name != "curve"}
    np.savez(path, **less)
    with pytest.raises(ValueError, match="curve"):
        rounds.read(path)
