"""Attention masks, rebuilt on each side from lengths: a mask never travels."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
)

from fedsplit.split.rows import Rows


def causal(config: Any, rows: Rows, h_BTD: Tensor, *, sliding: bool = False) -> Any:
    """The mask a decoder layer expects under the configured attention; None where the kernel knows it by itself."""
    make = create_sliding_window_causal_mask if sliding else create_causal_mask
    return make(config=config, inputs_embeds=h_BTD, attention_mask=_valid(rows, h_BTD), past_key_values=None)


def bidirectional(config: Any, rows: Rows, h_BTD: Tensor) -> Any:
    """The mask an encoder layer expects."""
    return create_bidirectional_mask(config=config, inputs_embeds=h_BTD, attention_mask=_valid(rows, h_BTD))


def _valid(rows: Rows, h_BTD: Tensor) -> Tensor | None:
    return rows.mask_BT.to(h_BTD.device) if rows.padded else None
