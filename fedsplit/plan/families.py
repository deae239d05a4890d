"""How each family's ``config.json`` becomes a ``ModelCard``: one function a body plan, one table for the differences.

Defaults are those of transformers 5.x. Shape letters: D hidden, F feed-forward, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedsplit.plan.model import Kept, Linear, ModelCard

Config = Mapping[str, Any]

HALF = ("float16", "bfloat16")
GEMMAS = ("gemma", "gemma2", "gemma3_text")
HEAD_SIZES = {"qwen3": 128, **dict.fromkeys(GEMMAS, 256)}
KV_HEADS = {"mistral": 8, "gemma2": 4, "gemma3_text": 4}
"""What a config without ``head_dim`` or ``num_key_value_heads`` means, where it is not the plain rule."""


def _stored_bits(config: Config) -> int:
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return 16 if dtype in HALF else 32


def _score(task: str, hidden: int, vocab: int, tied: bool, labels: int) -> tuple[int, int]:
    """(own parameters, multiplications) of a decoder's head: ``lm_head`` a token, or ``score`` an example."""
    if task == "causal-lm":
        return (0 if tied else vocab * hidden), vocab * hidden
    return hidden * labels, hidden * labels


def _llama_like(config: Config, task: str, labels: int) -> ModelCard:
    """Llama and its relatives: RMSNorm, gated feed-forward, grouped key and value heads.

    Gemma 2 and 3 normalise before and after attention and feed-forward: four norms a layer.
    """
    family = config["model_type"]
    D, F, H = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    V = config["vocab_size"]
    kv = int(config.get("num_key_value_heads") or KV_HEADS.get(family) or H)
    head = int(config.get("head_dim") or HEAD_SIZES.get(family, D // H))
    bias = bool(config.get("attention_bias", False)) and family in ("llama", "qwen3", *GEMMAS)
    qk_norm, norms = family in ("qwen3", "gemma3_text"), 4 if family in GEMMAS[1:] else 2
    linears = (
        Linear("self_attn.q_proj", H * head, D, "x"),
        Linear("self_attn.k_proj", kv * head, D, "x"),
        Linear("self_attn.v_proj", kv * head, D, "x"),
        Linear("self_attn.o_proj", D, H * head, "attended"),
        Linear("mlp.gate_proj", F, D, "m"),
        Linear("mlp.up_proj", F, D, "m"),
        Linear("mlp.down_proj", D, F, "f"),
    )
    params = sum(linear.out * linear.inp for linear in linears) + norms * D + (2 * head if qk_norm else 0)
    params += (H + 2 * kv) * head if bias or family == "qwen2" else 0
    params += D if bias else 0
    params += 2 * F + D if family == "llama" and config.get("mlp_bias", False) else 0
    tied = bool(config.get("tie_word_embeddings", family in GEMMAS))
    own, macs = _score(task, D, V, tied, labels)
    return ModelCard(
        family=family, task=task, num_layers=config["num_hidden_layers"], hidden=D, ffn=F, heads=H, kv_heads=kv,
        head_dim=head, vocab=V, max_tokens=int(config.get("max_position_embeddings") or 2048), tokens=0, tied=tied,
        num_labels=labels, linears=linears, default_targets=("q_proj", "v_proj"), layer_prefix="model.layers",
        layer_params=params, embedding_params=V * D, embedding_macs=0, norm_params=D, head_params=own, head_macs=macs,
        kept=Kept(ffn=3, norms=norms, upcast=True, qk_norm=qk_norm, capped=family == "gemma2"),
        attention_dropout=float(config.get("attention_dropout") or 0), stored_bits=_stored_bits(config),
        kinds=_kinds(config),
    )  # fmt: skip


def _kinds(config: Config) -> tuple[str, ...]:
    """Gemma's layers take turns where the config does not say: every second, or sixth, layer sees all tokens."""
    count, every = config["num_hidden_layers"], {"gemma2": 2, "gemma3_text": 6}.get(config["model_type"], 1)
    every = int(config.get("sliding_window_pattern") or every)
    turns = ["full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(count)]
    found = sorted(set(config.get("layer_types") or turns))
    return tuple(found) if len(found) > 1 else ()


def _gpt2(config: Config, task: str, labels: int) -> ModelCard:
    D, H, V = config["n_embd"], config["n_head"], config["vocab_size"]
    F, positions = int(config.get("n_inner") or 4 * D), int(config.get("n_positions") or 1024)
    linears = (
        Linear("attn.c_attn", 3 * D, D, "x"),
        Linear("attn.c_proj", D, D, "attended"),
        Linear("mlp.c_fc", F, D, "m"),
        Linear("mlp.c_proj", D, F, "f"),
    )
    params = sum(linear.out * (linear.inp + 1) for linear in linears) + 4 * D
    tied = bool(config.get("tie_word_embeddings", True))
    own, macs = _score(task, D, V, tied, labels)
    # gelu_new is a composite of elementwise operations: four F-wide tensors where a fused one keeps its input only.
    ffn = 4 if config.get("activation_function", "gelu_new") in ("gelu_new", "gelu_fast") else 1
    return ModelCard(
        family="gpt2", task=task, num_layers=config["n_layer"], hidden=D, ffn=F, heads=H, kv_heads=H, head_dim=D // H,
        vocab=V, max_tokens=positions, tokens=0, tied=tied, num_labels=labels, linears=linears,
        default_targets=("c_attn",), layer_prefix="transformer.h", layer_params=params,
        embedding_params=(V + positions) * D, embedding_macs=0, norm_params=2 * D, head_params=own, head_macs=macs,
        kept=Kept(ffn=ffn, copies=2, statistics=4),
        attention_dropout=float(config.get("attn_pdrop", 0.1)), hidden_dropout=float(config.get("resid_pdrop", 0.1)),
        stored_bits=_stored_bits(config),
    )  # fmt: skip


def _encoder(config: Config, task: str, labels: int) -> ModelCard:
    """BERT and RoBERTa with a classification head; BERT puts a pooler before it, RoBERTa a dense layer into it."""
    family = config["model_type"]
    D, F, H = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    V, positions = config["vocab_size"], int(config.get("max_position_embeddings") or 512)
    linears = (
        Linear("attention.self.query", D, D, "x"),
        Linear("attention.self.key", D, D, "x"),
        Linear("attention.self.value", D, D, "x"),
        Linear("attention.output.dense", D, D, "attended"),
        Linear("intermediate.dense", F, D, "m"),
        Linear("output.dense", D, F, "f"),
    )
    params = sum(linear.out * (linear.inp + 1) for linear in linears) + 4 * D
    tables = V + positions + int(config.get("type_vocab_size", 2)) + 2
    return ModelCard(
        family=family, task=task, num_layers=config["num_hidden_layers"], hidden=D, ffn=F, heads=H, kv_heads=H,
        # RoBERTa counts positions from padding_idx + 1.
        head_dim=D // H, vocab=V, max_tokens=positions - (2 if family == "roberta" else 0), tokens=0, tied=False,
        num_labels=labels, linears=linears, default_targets=("query", "value"), layer_prefix=f"{family}.encoder.layer",
        layer_params=params, embedding_params=tables * D, embedding_macs=0, norm_params=0,
        head_params=D * D + D + labels * (D + 1), head_macs=D * D + labels * D, kept=Kept(ffn=1, statistics=4),
        attention_dropout=float(config.get("attention_probs_dropout_prob", 0.1)),
        hidden_dropout=float(config.get("hidden_dropout_prob", 0.1)), stored_bits=_stored_bits(config),
    )  # fmt: skip


def _vit(config: Config, task: str, labels: int) -> ModelCard:
    D, F, H = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    channels = int(config.get("num_channels", 3))
    image, patch = _pair(config.get("image_size", 224)), _pair(config.get("patch_size", 16))
    patches = (image[0] // patch[0]) * (image[1] // patch[1])
    pixels = channels * patch[0] * patch[1]
    linears = (
        Linear("attention.q_proj", D, D, "x"),
        Linear("attention.k_proj", D, D, "x"),
        Linear("attention.v_proj", D, D, "x"),
        Linear("attention.o_proj", D, D, "attended"),
        Linear("mlp.fc1", F, D, "m"),
        Linear("mlp.fc2", D, F, "f"),
    )
    bias = 3 * D if config.get("qkv_bias", True) else 0
    params = sum(linear.out * linear.inp for linear in linears) + bias + 2 * D + F + 4 * D
    return ModelCard(
        family="vit", task=task, num_layers=config["num_hidden_layers"], hidden=D, ffn=F, heads=H, kv_heads=H,
        head_dim=D // H, vocab=0, max_tokens=patches + 1, tokens=patches + 1, tied=False, num_labels=labels,
        linears=linears, default_targets=("q_proj", "v_proj"), layer_prefix="vit.layers", layer_params=params,
        embedding_params=pixels * D + D + D + (patches + 1) * D, embedding_macs=pixels * D, norm_params=2 * D,
        head_params=labels * (D + 1), head_macs=labels * D, kept=Kept(ffn=1, statistics=4, masked=False),
        attention_dropout=float(config.get("attention_probs_dropout_prob", 0.0)),
        hidden_dropout=float(config.get("hidden_dropout_prob", 0.0)), stored_bits=_stored_bits(config),
    )  # fmt: skip


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


FAMILIES: dict[str, Callable[[Config, str, int], ModelCard]] = {
    "llama": _llama_like,
    "qwen2": _llama_like,
    "qwen3": _llama_like,
    "mistral": _llama_like,
    "gemma": _llama_like,
    "gemma2": _llama_like,
    "gemma3_text": _llama_like,
    "gpt2": _gpt2,
    "bert": _encoder,
    "roberta": _encoder,
    "vit": _vit,
}
