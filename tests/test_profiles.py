"""The serving profiles: every file is whole and plausible, and the page docs/serving.md shows what they say.

`python -m tests.test_profiles` writes the table of that page anew.
"""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from market import serving
from market.rule import fill, records

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "serving.md"
MARKS = ("<!-- profiles: written by `python -m tests.test_profiles` -->\n", "<!-- end of profiles -->\n")
NAMES = sorted(path.stem for path in (ROOT / "conf" / "serving").glob("*.yaml"))


def read(name: str) -> dict[str, Any]:
    """Read a profile as it stands."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "conf" / "serving" / f"{name}.yaml").read_text(encoding="utf-8"))
    return values


def decode_ms(values: dict[str, Any], batch: int) -> float:
    """Duration of an iteration that decodes `batch` requests of 1,024 tokens each (ms)."""
    table = records(serving.PROFILE, 1)
    fill(table, np.array([tuple(values[name] for name in serving.PROFILE.names or ())], serving.PROFILE))
    return 1e3 * float(serving.decode_s(table[0], batch, 1024 * batch))


def prefill_rate(values: dict[str, Any]) -> float:
    """Prompt tokens/s when every iteration is the one full chunk of a prompt."""
    tokens = values["max_num_batched_tokens"]
    chunk_s = max(values["a_s"], values["a2_s"] + values["b_s"] * tokens) + values["e_s"] + 0.5 * values["q_s"] * tokens**2
    return float(tokens / chunk_s)


def table() -> str:
    """Make the table of all profiles."""
    lines = [
        "| profile | prefill, tokens/s | decode ms, batch 1 | batch 32 | KV tokens | quality | kind | error |",
        "|---|---:|---:|---:|---:|---:|---|---:|",
    ]
    for name in NAMES:
        values = read(name)
        lines.append(
            f"| `{name}` | {prefill_rate(values):,.0f} | {decode_ms(values, 1):.1f} | {decode_ms(values, 32):.1f} "
            f"| {16 * values['kv_blocks']:,} | {values['quality']:.2f} | {values['kind']} | {values['error']:.0%} |"
        )
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """Put the table between the marks of the page."""
    before, rest = text.split(MARKS[0])
    return before + MARKS[0] + table() + MARKS[1] + rest.split(MARKS[1])[1]


def test_the_page_shows_the_profiles_as_they_are() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == with_table(text), "docs/serving.md is out of date: run `python -m tests.test_profiles`"


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_is_whole_and_plausible(name: str) -> None:
    values = read(name)
    assert list(values) == [*(serving.PROFILE.names or ()), "kind", "error", "source"]
    for field in serving.PROFILE.names or ():
        kind = int if serving.PROFILE[field].kind == "i" else float
        assert type(values[field]) is kind, f"{field} must be written as {kind.__name__}"
    assert all(values[field] >= 0 for field in values if field.endswith("_s")) and values["a_s"] > 0 and values["b_s"] > 0
    assert 1 <= values["max_num_seqs"] <= min(serving.SLOTS, values["max_num_batched_tokens"])
    assert values["kv_blocks"] >= 512
    assert values["kind"] in ("measured", "derived", "roofline") and 0 < values["error"] <= 0.5 and len(values["source"]) > 20
    assert 1.0 < decode_ms(values, 1) < decode_ms(values, 32) < 150.0
    text = (ROOT / "conf" / "serving" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ") and all("  # " in line for line in text.splitlines()[1:-1]), "every line needs its unit"


@pytest.mark.parametrize(("model", "win_rate"), [("qwen3_8b", 0.57), ("qwen3_4b", 0.53), ("qwen3_0_6b", 0.39)])
def test_quality_gives_the_published_win_rates_against_the_mean_opponent(model: str, win_rate: float) -> None:
    qualities = {read(name)["quality"] for name in NAMES if name.endswith(model)}
    assert len(qualities) == 1
    assert 1.0 / (1.0 + math.exp(-qualities.pop())) == pytest.approx(win_rate, abs=0.005)


def test_a_larger_model_is_better_and_slower_on_the_same_card() -> None:
    small = [read(f"a100_qwen3_{size}") for size in ("0_6b", "4b", "8b", "32b")]
    for left, right in itertools.pairwise(small):
        assert (
            left["quality"] < right["quality"]
            and prefill_rate(left) > prefill_rate(right)
            and left["kv_blocks"] > right["kv_blocks"]
        )
        assert decode_ms(left, 1) < decode_ms(right, 1)


@pytest.mark.parametrize(
    ("name", "rate", "one", "many", "kv_tokens"),
    [
        ("a100_qwen3_8b", 16_100, 12.0, 16.4, 400_000),
        ("h100_qwen3_8b", 46_000, 6.4, 8.7, 400_000),
        ("h200_qwen3_32b", 11_100, 18.3, 22.6, 227_000),
        ("l40s_qwen3_8b", 14_200, 21.7, 31.9, 190_000),
        ("rtx3090_qwen3_32b_int4", 1_000, 25.0, 35.0, 8_700),
        ("rtx3090_qwen3_4b", 8_300, 11.1, 17.0, 92_000),
        ("l4_qwen3_8b", 3_200, 58.0, 75.4, 35_000),
        ("rtx4090_llama31_8b", 10_700, 16.7, 23.9, 41_400),
    ],
)
def test_a_profile_meets_the_step_times_of_its_source(name: str, rate: float, one: float, many: float, kv_tokens: int) -> None:
    """Prefill tokens/s, decode ms at batch 1 and 32 (context 1,024), KV tokens; the max form is a fit, hence the tolerance."""
    values = read(name)
    assert prefill_rate(values) == pytest.approx(rate, rel=0.2)
    assert decode_ms(values, 1) == pytest.approx(one, rel=0.07) and decode_ms(values, 32) == pytest.approx(many, rel=0.07)
    assert 16 * values["kv_blocks"] == pytest.approx(kv_tokens, abs=16)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
