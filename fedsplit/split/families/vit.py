"""ViT for image classification. Source: ``transformers/models/vit/modeling_vit.py``.

Checkpoints on the hub carry the names of older transformers (``encoder.layer.N.attention.attention.query``); the
modules of today are called ``layers.N.attention.q_proj``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fedsplit.config.run import Task
from fedsplit.errors import DataError
from fedsplit.split.families import masks
from fedsplit.split.families.record import Context, Family
from fedsplit.split.rows import Rows


def _embed(backbone: Any, rows: Rows) -> Tensor:
    if rows.pixels is None:
        raise DataError("found no pixels, expected images: this model reads no text")
    weight = backbone.embeddings.patch_embeddings.projection.weight
    embedded: Tensor = backbone.embeddings(rows.pixels.to(device=weight.device, dtype=weight.dtype))
    return embedded


def _context(backbone: nn.Module, config: Any, rows: Rows, h_BTD: Tensor) -> Context:
    return {"mask": masks.bidirectional(config, rows, h_BTD)}


def _layer(module: nn.Module, h_BTD: Tensor, context: Context, index: int) -> Tensor:
    out: Tensor = module(h_BTD, context["mask"])
    return out


def _finish(backbone: Any, h_BTD: Tensor) -> Tensor:
    normed: Tensor = backbone.layernorm(h_BTD)
    return normed


def _head(model: Any, backbone: Any, h_BTD: Tensor, rows: Rows, task: Task) -> Tensor:
    logits: Tensor = model.classifier(h_BTD[:, 0, :])
    return logits


VIT = Family(
    name="vit",
    model_types=("vit",),
    heads={"image-classification": ("classifier",)},
    layers="layers",
    embeddings=("embeddings",),
    final=("layernorm",),
    targets=("q_proj", "v_proj"),
    renames=(
        (r"(^|\.)encoder\.layer\.", r"\1layers."),
        (r"attention\.attention\.query\.", "attention.q_proj."),
        (r"attention\.attention\.key\.", "attention.k_proj."),
        (r"attention\.attention\.value\.", "attention.v_proj."),
        (r"attention\.output\.dense\.", "attention.o_proj."),
        (r"intermediate\.dense\.", "mlp.fc1."),
        (r"(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    ),
    embed=_embed,
    context=_context,
    layer=_layer,
    finish=_finish,
    head=_head,
)
