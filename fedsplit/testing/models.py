"""Tiny random models of every family, written as real folders: config.json and safetensors as transformers writes them.

Sizes are pairwise different where the family allows it, so that a transposed or misplaced matrix cannot pass unseen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    ViTConfig,
)
from transformers.utils import logging

from fedsplit.config.run import Task
from fedsplit.errors import ConfigError

VOCABULARY = 53
IMAGE = (3, 12, 12)
"""Channels, height, width of the images that the tiny ViT takes."""

_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 34,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 34,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_WINDOWED = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}

_CONFIGS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, _DECODER),
    "mistral": (MistralConfig, {**_DECODER, "sliding_window": 5}),
    "qwen2": (Qwen2Config, {**_DECODER, **_WINDOWED}),
    "qwen3": (Qwen3Config, {**_DECODER, **_WINDOWED}),
    "gemma": (GemmaConfig, {**_DECODER, "num_key_value_heads": 1}),
    "gemma2": (Gemma2Config, {**_DECODER, "sliding_window": 5, "query_pre_attn_scalar": 6}),
    "gemma3_text": (Gemma3TextConfig, {**_DECODER, "sliding_window": 5, "query_pre_attn_scalar": 6}),
    "gpt2": (
        GPT2Config,
        {
            **{"vocab_size": VOCABULARY, "n_embd": 24, "n_inner": 34, "n_head": 4, "n_positions": 64},
            **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
            **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        },
    ),
    "bert": (BertConfig, {**_ENCODER, "pad_token_id": 0}),
    "roberta": (RobertaConfig, {**_ENCODER, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}),
    "vit": (
        ViTConfig,
        {
            **{"hidden_size": 24, "intermediate_size": 34, "num_attention_heads": 4, "num_channels": IMAGE[0]},
            **{"image_size": IMAGE[1], "patch_size": 4, "hidden_dropout_prob": 0.0},
            **{"attention_probs_dropout_prob": 0.0},
        },
    ),
}
FAMILIES = tuple(_CONFIGS)
"""Every ``model_type`` that ``tiny`` can write."""

_AUTO: dict[Task, Any] = {
    "causal-lm": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "image-classification": AutoModelForImageClassification,
}


def tiny(
    folder: str | Path,
    family: str,
    *,
    task: Task | None = None,
    layers: int = 3,
    seed: int = 0,
    num_labels: int = 3,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Path:
    """Write a random model of ``family`` with a head for ``task`` (by default the family's first). Returns the folder.

    ``changes`` override the config (``tie_word_embeddings=True``). Weights are larger than a fresh initialisation, so
    that no part of the computation vanishes. Raises ConfigError for an unknown family.
    """
    if family not in _CONFIGS:
        raise ConfigError(f"found family {family!r}, expected one of {', '.join(FAMILIES)}")
    make, settings = _CONFIGS[family]
    chosen = task or default_task(family)
    sizes = {"num_hidden_layers": layers, "num_labels": 1 if chosen == "regression" else num_labels}
    config = make(**{**settings, **sizes, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _AUTO[chosen].from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    model.to(dtype).save_pretrained(str(folder))
    if bars:
        logging.enable_progress_bar()
    return Path(folder)


def default_task(family: str) -> Task:
    """What a tiny model of this family is written for unless told otherwise."""
    if family == "vit":
        return "image-classification"
    return "classification" if family in ("bert", "roberta") else "causal-lm"
