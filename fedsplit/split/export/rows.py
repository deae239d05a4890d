"""A padded batch whose lengths are a tensor, so that they may vary in an exported graph; padding is on the right.

It stands in for ``fedsplit.split.rows.Rows`` while a segment is traced: the same names, tensors for what is a number
there. Legend: B samples, T padded width.
"""

from __future__ import annotations

import torch
from torch import Tensor


class TracedRows:
    """``mask_BT`` (int64): 1 where a token is. ``types_BT`` (int64) for sentence pairs, ``pixels`` for images."""

    starts = (0,)
    padded = True

    def __init__(self, mask_BT: Tensor, types_BT: Tensor | None = None, pixels: Tensor | None = None) -> None:
        self.mask_BT, self.types_BT, self.pixels = mask_BT, types_BT, pixels
        self.ids_BT = torch.zeros_like(mask_BT)

    @property
    def positions(self) -> Tensor:
        return torch.arange(self.mask_BT.shape[1]).unsqueeze(0)

    @property
    def last_B(self) -> Tensor:
        return self.mask_BT.sum(1) - 1
