"""GPT-2. Source: ``transformers/models/gpt2/modeling_gpt2.py``.

A body built as ``GPT2Model(inputs_embeds=h)`` would add positions and dropout a second time: its blocks are called
directly. Weights are ``Conv1D``, stored in x out; LoRA's factors are out x in as everywhere.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fedsplit.config.run import Task
from fedsplit.split.families import masks
from fedsplit.split.families.decoder import last_token
from fedsplit.split.families.record import Context, Family
from fedsplit.split.rows import Rows


def _embed(backbone: Any, rows: Rows) -> Tensor:
    assert rows.ids_BT is not None
    device = backbone.wpe.weight.device
    summed = backbone.wte(rows.ids_BT.to(device)) + backbone.wpe(rows.positions.to(device))
    dropped: Tensor = backbone.drop(summed)
    return dropped


def _context(backbone: nn.Module, config: Any, rows: Rows, h_BTD: Tensor) -> Context:
    return {"mask": masks.causal(config, rows, h_BTD)}


def _layer(module: nn.Module, h_BTD: Tensor, context: Context, index: int) -> Tensor:
    out: Tensor = module(h_BTD, None, context["mask"])
    return out


def _finish(backbone: Any, h_BTD: Tensor) -> Tensor:
    normed: Tensor = backbone.ln_f(h_BTD)
    return normed


def _head(model: Any, backbone: Any, h_BTD: Tensor, rows: Rows, task: Task) -> Tensor:
    if task == "causal-lm":
        logits: Tensor = model.lm_head(h_BTD)
        return logits
    return last_token(model.score(h_BTD), rows)


GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    heads={"causal-lm": ("lm_head",), "classification": ("score",), "regression": ("score",)},
    layers="h",
    embeddings=("wte", "wpe", "drop"),
    final=("ln_f",),
    targets=("c_attn",),
    vocabulary="wte.weight",
    embed=_embed,
    context=_context,
    layer=_layer,
    finish=_finish,
    head=_head,
)
