"""Write a model of Llama 3.2 1B's shape with random weights: 2.5 GB in shards, one tensor in memory at a time.

For measuring memory and time of segments of a large model without a download. The sizes are those of the published
config (16 layers, width 2048, 32 heads, 8 key/value heads, vocabulary 128,256, tied embedding), any of them can be made
smaller. Weights are normal with deviation 0.02, norms are one.

    python benchmarks/write_large_model.py /tmp/llama-1b
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fedsplit.seeds import generator

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "dtype": "bfloat16",
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "rope_type": "llama3",
    },
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
PIECE = 1 << 22
"""Numbers drawn at a time."""


def shapes(config: dict[str, object]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint, in the order of the layers."""
    sizes = {key: value for key, value in config.items() if type(value) is int}
    wide, inner, head = sizes["hidden_size"], sizes["intermediate_size"], sizes["head_dim"]
    queries, values = sizes["num_attention_heads"] * head, sizes["num_key_value_heads"] * head
    table: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (sizes["vocab_size"], wide)}
    for layer in range(sizes["num_hidden_layers"]):
        table |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "self_attn.q_proj": (queries, wide),
                "self_attn.k_proj": (values, wide),
                "self_attn.v_proj": (values, wide),
                "self_attn.o_proj": (wide, queries),
                "mlp.gate_proj": (inner, wide),
                "mlp.up_proj": (inner, wide),
                "mlp.down_proj": (wide, inner),
                "input_layernorm": (wide,),
                "post_attention_layernorm": (wide,),
            }.items()
        }
    return table | {"model.norm.weight": (wide,)}


def values(name: str, count: int, seed: int) -> Iterator[bytes]:
    """A tensor's bytes as bfloat16, drawn piece by piece."""
    random = generator(seed, name)
    for start in range(0, count, PIECE):
        size = min(PIECE, count - start)
        drawn = np.ones(size, np.float32) if "norm" in name else random.standard_normal(size, np.float32) * 0.02
        yield (drawn.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()


def write_shard(stream: BinaryIO, table: dict[str, tuple[int, ...]], seed: int) -> None:
    """One safetensors file: the header, then the tensors one after the other."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in table.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    stream.write(len(text).to_bytes(8, "little") + text)
    for name, shape in table.items():
        for piece in values(name, math.prod(shape), seed):
            stream.write(piece)


def write(folder: Path, config: dict[str, object], shards: int, seed: int) -> int:
    """Write the folder; returns the bytes of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    table = shapes(config)
    names = list(table)
    weight_map: dict[str, str] = {}
    size = math.ceil(len(names) / shards)
    groups = [names[start : start + size] for start in range(0, len(names), size)]
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        with (folder / file).open("wb") as stream:
            write_shard(stream, {name: table[name] for name in group}, seed)
        weight_map |= dict.fromkeys(group, file)
    total = sum(2 * math.prod(shape) for shape in table.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), "utf-8")
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=CONFIG[name])
    given = vars(parser.parse_args())
    config = {**CONFIG, **{key: given[key] for key in given if key in CONFIG}}
    total = write(given["folder"], config, given["shards"], given["seed"])
    print(f"{given['folder']}: {total / 1e9:.2f} GB of random weights in {given['shards']} files")


if __name__ == "__main__":
    main()
