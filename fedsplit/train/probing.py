"""Looking into a part in torch: how far a change of the embeddings reaches, and rows of B that rest.

Legend: B samples (one), T tokens, D width, M rows of a factor B, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsplit.exchange.part import Key
from fedsplit.exchange.probing import Resting
from fedsplit.lora.adapter import ModuleKey
from fedsplit.seeds import generator
from fedsplit.split.lora import keys
from fedsplit.split.rows import Rows
from fedsplit.split.segment import Segment


class RowsAtRest:
    """Rows of leaf tensors that get no gradient and keep their bits through a step, whatever the optimiser does."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, leaf: Tensor, rows_M: NDArray[np.bool_]) -> None:
        """``rows_M``: along the leaf's first axis."""
        rows = torch.from_numpy(rows_M).to(leaf.device)
        across = rows.reshape(-1, *[1] * (leaf.dim() - 1))
        leaf.register_hook(lambda grad: grad.masked_fill(across, 0))
        self._kept.append((leaf, rows, leaf.detach()[rows].clone()))

    @torch.no_grad()
    def restore(self) -> None:
        """After a step: a weight decay, say, moves what has no gradient."""
        for leaf, rows, before in self._kept:
            leaf[rows] = before


def rest(params: Mapping[str, Tensor], segment: Segment, rows: Resting) -> RowsAtRest:
    """Put these rows of the Bs among ``params`` to rest."""
    found = RowsAtRest()
    for key, (_, b) in keys(segment).items():
        if key in rows and b in params and rows[key].any():
            found.add(params[b], rows[key])
    return found


def row_squares(params: Mapping[str, Tensor], segment: Segment) -> dict[ModuleKey, NDArray[np.float64]]:
    """Squared gradient of every row of B, (M,), of those in layers; alpha/r is a part of B."""
    found = {}
    for key, (_, b) in keys(segment).items():
        grad = params[b].grad if b in params else None
        if key.layer >= 0 and grad is not None:
            rows_MR = grad.detach().reshape(grad.shape[0], -1).double().cpu().numpy()
            found[key] = np.square(rows_MR).sum(axis=1) / segment.scale(rows_MR.shape[1]) ** 2
    return found


@torch.no_grad()
def sensitivity(
    segment: Segment, rows: Rows, params: Mapping[str, Tensor], radius: float, key: Key
) -> dict[int, float]:
    """The relative move of every layer's output when the embeddings of one row move by ``radius`` of their norm; the
    direction is drawn from ``key``. Without dropout."""
    span = segment.span
    plain_BTD = segment.run(rows, None, params, layers=(span.lo, span.lo), train=False)
    drawn = generator(*key).standard_normal(tuple(plain_BTD.shape)).astype(np.float32)
    noise_BTD = torch.from_numpy(drawn).to(plain_BTD.device)
    size = radius * plain_BTD.float().norm() / noise_BTD.norm()
    moved_BTD = plain_BTD + (size * noise_BTD).to(plain_BTD.dtype)
    found = {}
    for layer in (one for one in range(span.lo, span.hi) if one not in span.skips):
        plain_BTD = segment.run(rows, plain_BTD, params, layers=(layer, layer + 1), train=False)
        moved_BTD = segment.run(rows, moved_BTD, params, layers=(layer, layer + 1), train=False)
        found[layer] = float((moved_BTD - plain_BTD).double().norm() / plain_BTD.double().norm())
    return found
