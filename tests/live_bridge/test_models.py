"""Small models: what is written is what was meant, bit by bit; that engines serve it is shown in tests/live_bridge/vllm."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from live_bridge import models


def read_back(path: Path) -> dict[str, torch.Tensor]:
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header: dict[str, Any] = json.loads(raw[8 : 8 + size])
    assert size % 8 == 0
    out = {}
    for name, place in header.items():
        if name != "__metadata__":
            begin, end = place["data_offsets"]
            part = bytearray(raw[8 + size + begin : 8 + size + end])
            out[name] = torch.frombuffer(part, dtype=torch.bfloat16).reshape(place["shape"])
    return out


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_rounding_to_bfloat16_is_torchs(values: list[float]) -> None:
    weight = np.array(values, np.float32)
    mine = torch.from_numpy(models.bfloat16(weight).view(np.int16)).view(torch.bfloat16)
    assert torch.equal(mine, torch.from_numpy(weight).to(torch.bfloat16))


def test_tensors_are_read_back_as_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {"a": rng.normal(size=(3, 5)).astype(np.float32), "b": rng.normal(size=7).astype(np.float32)}
    models.write_safetensors(tmp_path / "x.safetensors", tensors)
    found = read_back(tmp_path / "x.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {"a": (3, 5), "b": (7,)}
    for name, weight in tensors.items():
        assert torch.equal(found[name], torch.from_numpy(weight).to(torch.bfloat16))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_coarser_weights_take_few_values_and_stay_near(bits: int) -> None:
    weight = np.random.default_rng(1).normal(size=(4, 128)).astype(np.float32)
    rounded = models.coarse(weight, bits)
    for row in rounded.reshape(-1, models.GROUP):
        assert len(np.unique(np.abs(row))) <= 2 ** (bits - 1)
    step = np.abs(weight.reshape(-1, models.GROUP)).max(axis=1) / (2 ** (bits - 1) - 1)
    assert (np.abs(rounded - weight).reshape(-1, models.GROUP).max(axis=1) <= step / 2 + 1e-6).all()


def test_fewer_bits_are_further_off() -> None:
    weight = np.random.default_rng(2).normal(size=(8, 256)).astype(np.float32)
    errors = [float(np.abs(models.coarse(weight, bits) - weight).mean()) for bits in (8, 6, 4, 3, 2)]
    assert errors == sorted(errors)


@pytest.mark.parametrize("bits", [0, 1, 9])
def test_other_numbers_of_bits_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="bits: must be from 2 to 8"):
        models.coarse(np.ones((1, 64), np.float32), bits)


def test_rows_of_heads_are_put_back_in_order() -> None:
    heads, half, columns = 2, 3, 4
    right = np.arange(heads * 2 * half * columns, dtype=np.float32).reshape(heads * 2 * half, columns)
    # GGUF holds first half and second half of each head in turn
    turned = right.reshape(heads, 2, half, columns).swapaxes(1, 2).reshape(right.shape)
    assert (models.unpermuted(turned, heads) == right).all()
    assert not (turned == right).all()


def test_names_are_those_of_the_hub() -> None:
    assert models.hub_name("blk.7.attn_q.weight") == ("model.layers.7.self_attn.q_proj.weight", "attn_q")
    assert models.hub_name("output_norm.weight") == ("model.norm.weight", "output_norm")


def test_every_byte_has_a_letter_of_its_own() -> None:
    letters = models.byte_letters()
    assert len(set(letters)) == 256
    assert letters[ord("A")] == "A" and letters[ord(" ")] == "Ġ" and letters[ord("\n")] == "Ċ"
    assert all(letter.isprintable() and not letter.isspace() for letter in letters)


@pytest.mark.parametrize(("hidden", "heads", "keys"), [(128, 2, 2), (768, 12, 3), (256, 4, 1)])
def test_a_random_model_is_described_whole(hidden: int, heads: int, keys: int, tmp_path: Path) -> None:
    words = ["random", "--hidden", str(hidden), "--layers", "3", "--context", "512", "--out", str(tmp_path / "m")]
    assert models.main(words) == 0
    config, generation, tokenizer, settings = (
        json.loads((tmp_path / "m" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("config", "generation_config", "tokenizer", "tokenizer_config")
    )
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (heads, keys, 64)
    assert (config["num_hidden_layers"], config["max_position_embeddings"]) == (3, 512)
    assert config["vocab_size"] == len(tokenizer["model"]["vocab"])
    vocabulary = tokenizer["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    for pair in tokenizer["model"]["merges"]:
        assert {*pair, "".join(pair)} <= set(vocabulary)
    assert settings["eos_token"] == "</s>" and vocabulary["</s>"] == generation["eos_token_id"] == 1


def test_the_command_names_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        models.main(["random"])
    assert "--out" in capsys.readouterr().err
