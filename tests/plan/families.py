"""Small configurations of every family, sizes pairwise different so that no two are mixed up unnoticed."""

from __future__ import annotations

from typing import Any

SIZES = {"hidden_size": 96, "intermediate_size": 280, "num_hidden_layers": 3, "num_attention_heads": 8}
TEXT = SIZES | {
    "vocab_size": 131,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = TEXT | {"num_key_value_heads": 4}
GPT2 = {
    "n_embd": 96, "n_layer": 3, "n_head": 8, "n_inner": 280, "vocab_size": 131, "n_positions": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "llama-biased": GROUPED | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "llama-wide-heads": GROUPED | {"head_dim": 20},
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 16},
    "mistral": GROUPED,
    "gemma": GROUPED | {"head_dim": 16},
    "gemma2": GROUPED | {"head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": GROUPED | {"head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3_text-plain": TEXT | {"tie_word_embeddings": False, "attention_bias": True},
    "gpt2": GPT2,
    "gpt2-untied": GPT2 | {"tie_word_embeddings": False},
    "bert": TEXT,
    "roberta": TEXT,
    "vit": SIZES | {"image_size": 32, "patch_size": 8},
    "vit-oblong": SIZES | {"image_size": [32, 48], "patch_size": [8, 16], "num_channels": 1, "qkv_bias": False},
}


def config_of(name: str, **changes: Any) -> dict[str, Any]:
    """A ``config.json`` as a dictionary."""
    return {"model_type": name.split("-")[0], **CONFIGS[name], **changes}


def tasks_of(name: str) -> tuple[str, ...]:
    family = name.split("-")[0]
    if family == "vit":
        return ("image-classification",)
    return ("classification",) if family in ("bert", "roberta") else ("causal-lm", "classification")
