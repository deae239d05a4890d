"""Llama and its relatives: Mistral, Qwen2, Qwen3, Gemma, Gemma 2, Gemma 3 (text).

They share one skeleton and differ in what their own modules do (norms, scaled embeddings, attention biases), in the
attention pattern of a layer (full or sliding window) and in how many rotary tables there are. Source: the ``forward``
methods of ``transformers/models/{llama,mistral,qwen2,qwen3,gemma,gemma2,gemma3}/modeling_*.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedsplit.config.run import Task
from fedsplit.split.families import masks
from fedsplit.split.families.record import Context, Family
from fedsplit.split.rows import Rows


def _embed(backbone: Any, rows: Rows) -> Tensor:
    assert rows.ids_BT is not None
    embedded: Tensor = backbone.embed_tokens(rows.ids_BT.to(backbone.embed_tokens.weight.device))
    return embedded


def _context(backbone: Any, config: Any, rows: Rows, h_BTD: Tensor) -> Context:
    positions = rows.positions.to(h_BTD.device)
    kinds = _kinds(config)
    rotary: dict[str, Any] = {}
    for kind in set(kinds):
        # Gemma 3 turns sliding layers with another base frequency, hence a table a kind.
        extra = {"layer_type": kind} if hasattr(backbone.rotary_emb, "layer_types") else {}
        rotary[kind] = backbone.rotary_emb(h_BTD, position_ids=positions, **extra)
    attention = {kind: masks.causal(config, rows, h_BTD, sliding=kind == "sliding_attention") for kind in set(kinds)}
    return {"kinds": kinds, "rotary": rotary, "mask": attention, "positions": positions}


def _kinds(config: Any) -> list[str]:
    """Attention pattern of every layer of the whole model, by global number."""
    if types := getattr(config, "layer_types", None):
        return list(types)
    window = config.model_type == "mistral" and config.sliding_window is not None
    return ["sliding_attention" if window else "full_attention"] * int(config.num_hidden_layers)


def _layer(module: nn.Module, h_BTD: Tensor, context: Context, index: int) -> Tensor:
    kind = context["kinds"][index]
    out: Tensor = module(
        h_BTD,
        attention_mask=context["mask"][kind],
        position_ids=context["positions"],
        past_key_values=None,
        position_embeddings=context["rotary"][kind],
    )
    return out


def _finish(backbone: Any, h_BTD: Tensor) -> Tensor:
    normed: Tensor = backbone.norm(h_BTD)
    return normed


def _head(model: Any, backbone: Any, h_BTD: Tensor, rows: Rows, task: Task) -> Tensor:
    if task == "causal-lm":
        return _capped(model.lm_head(h_BTD), getattr(model.config, "final_logit_softcapping", None))
    return last_token(model.score(h_BTD), rows)


def _capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else torch.tanh(logits / cap) * cap


def last_token(scores_BTC: Tensor, rows: Rows) -> Tensor:
    """The scores at each sample's last token, (B, C)."""
    last_B = rows.last_B.to(scores_BTC.device)
    return scores_BTC[torch.arange(scores_BTC.shape[0], device=scores_BTC.device), last_B]


DECODER = Family(
    name="llama",
    model_types=("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
    heads={"causal-lm": ("lm_head",), "classification": ("score",), "regression": ("score",)},
    layers="layers",
    embeddings=("embed_tokens",),
    final=("norm",),
    targets=("q_proj", "v_proj"),
    vocabulary="embed_tokens.weight",
    embed=_embed,
    context=_context,
    layer=_layer,
    finish=_finish,
    head=_head,
)
