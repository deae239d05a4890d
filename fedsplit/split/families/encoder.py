"""BERT and RoBERTa, for classification and regression.

Source: ``transformers/models/{bert,roberta}/modeling_*.py``. They differ in positions (RoBERTa counts from the pad id
plus one) and in the head. Positions count from each sample's first token, so left padding gives
what right padding gives; the unsplit model does so only when it is given ``position_ids``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fedsplit.config.run import Task
from fedsplit.split.families import masks
from fedsplit.split.families.record import Context, Family
from fedsplit.split.rows import Rows


def _embed_bert(backbone: Any, rows: Rows) -> Tensor:
    return _embed(backbone, rows, rows.positions)


def _embed_roberta(backbone: Any, rows: Rows) -> Tensor:
    pad = int(backbone.embeddings.padding_idx)
    return _embed(backbone, rows, rows.positions + pad + 1)


def _embed(backbone: Any, rows: Rows, positions: Tensor) -> Tensor:
    assert rows.ids_BT is not None
    device = backbone.embeddings.word_embeddings.weight.device
    types = rows.types_BT if rows.types_BT is not None else torch.zeros_like(rows.ids_BT)
    embedded: Tensor = backbone.embeddings(
        input_ids=rows.ids_BT.to(device), token_type_ids=types.to(device), position_ids=positions.to(device)
    )
    return embedded


def _context(backbone: nn.Module, config: Any, rows: Rows, h_BTD: Tensor) -> Context:
    return {"mask": masks.bidirectional(config, rows, h_BTD)}


def _layer(module: nn.Module, h_BTD: Tensor, context: Context, index: int) -> Tensor:
    out: Tensor = module(h_BTD, context["mask"])
    return out


def _finish(backbone: nn.Module, h_BTD: Tensor) -> Tensor:
    return h_BTD


def _head_bert(model: Any, backbone: Any, h_BTD: Tensor, rows: Rows, task: Task) -> Tensor:
    logits: Tensor = model.classifier(model.dropout(backbone.pooler(_from_first(h_BTD, rows))))
    return logits


def _head_roberta(model: Any, backbone: Any, h_BTD: Tensor, rows: Rows, task: Task) -> Tensor:
    logits: Tensor = model.classifier(_from_first(h_BTD, rows))
    return logits


def _from_first(h_BTD: Tensor, rows: Rows) -> Tensor:
    """Both heads look at position 0 only: bring each sample's first token there when padding is on the left."""
    if not any(rows.starts):
        return h_BTD
    first_B = torch.tensor(rows.starts, device=h_BTD.device)
    return h_BTD[torch.arange(len(rows.starts), device=h_BTD.device), first_B].unsqueeze(1)


BERT = Family(
    name="bert",
    model_types=("bert",),
    heads={"classification": ("dropout", "classifier"), "regression": ("dropout", "classifier")},
    layers="encoder.layer",
    embeddings=("embeddings",),
    final=("pooler",),
    targets=("query", "value"),
    vocabulary="embeddings.word_embeddings.weight",
    renames=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    embed=_embed_bert,
    context=_context,
    layer=_layer,
    finish=_finish,
    head=_head_bert,
)

ROBERTA = replace(
    BERT,
    name="roberta",
    model_types=("roberta",),
    heads={"classification": ("classifier",), "regression": ("classifier",)},
    final=(),
    embed=_embed_roberta,
    head=_head_roberta,
)
