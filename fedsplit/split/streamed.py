"""Large vocabularies without their memory: embedding rows and head rows are read from the file when they are needed.

Llama-3.2-1B's embedding is 525 MB, of which one batch of a few hundred tokens touches a few hundred rows. Reading rows
instead of mapping the file keeps them out of this process's memory for good: pages of a mapping are counted as ours
until the system wants them back, and a head touches every one of them. The system's file cache makes repeats cheap.

Legend: B samples, T tokens, D model width, N rows of hidden states, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fedsplit.split.checkpoint import Stored

SLAB_BYTES = 1 << 23
"""Largest piece of a streamed matrix held at a time."""


class StreamedMatrix:
    """A (V, D) matrix in a file, served as slabs of rows in ``dtype`` on ``device``."""

    def __init__(self, stored: Stored, dtype: torch.dtype, device: torch.device) -> None:
        self.stored, self.dtype, self.device = stored, dtype, device
        self.rows, self.width = stored.shape

    def take(self, ids: Tensor) -> Tensor:
        """The rows at ``ids`` (any shape), (*ids.shape, D). Raises IndexError where an id is outside [0, V)."""
        unique, inverse = torch.unique(ids.cpu(), return_inverse=True)
        if unique.numel() and not 0 <= int(unique[0]) <= int(unique[-1]) < self.rows:
            raise IndexError(f"token ids {int(unique[0])} to {int(unique[-1])}: expected 0 to {self.rows - 1}")
        table = self.stored.take(unique.tolist(), self.dtype)
        return table.to(self.device)[inverse.to(self.device)]

    def slabs(self, rows: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """(first row, slab) in order; ``rows`` a slab, by default what fits SLAB_BYTES."""
        step = max(1, rows or SLAB_BYTES // max(1, self.width * self.dtype.itemsize))
        for start in range(0, self.rows, step):
            yield start, self.stored.slab(start, min(step, self.rows - start), self.dtype).to(self.device)


class StreamedEmbedding(nn.Module):
    """Stands in for a frozen ``nn.Embedding``; keeps its options and Gemma's scale."""

    def __init__(self, matrix: StreamedMatrix, like: nn.Embedding) -> None:
        super().__init__()
        self.matrix = matrix
        self.num_embeddings, self.embedding_dim = matrix.rows, matrix.width
        self.padding_idx, self.max_norm, self.norm_type = like.padding_idx, like.max_norm, like.norm_type
        self.scale_grad_by_freq, self.sparse = like.scale_grad_by_freq, like.sparse
        self.scale: float | None = getattr(like, "scalar_embed_scale", None)
        # Callers ask the weight where it lives; nothing else of it is ever used.
        self.weight = torch.empty(0, dtype=matrix.dtype, device=matrix.device)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.matrix.take(ids)
        return rows if self.scale is None else rows * torch.tensor(self.scale, device=rows.device).to(rows.dtype)


class StreamedLinear(nn.Module):
    """Stands in for a frozen ``nn.Linear`` without bias: one pass over the file forward, one more backward."""

    def __init__(self, matrix: StreamedMatrix) -> None:
        super().__init__()
        self.matrix = matrix
        self.out_features, self.in_features = matrix.rows, matrix.width

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(x, self.matrix)  # type: ignore[no-untyped-call]
        return y


class _Product(torch.autograd.Function):
    """x (..., D) times the transposed matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: StreamedMatrix) -> Tensor:
        ctx.matrix = matrix
        return torch.cat([x @ slab.T for _, slab in matrix.slabs()], dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (g,) = grads
        total = g.new_zeros(*g.shape[:-1], ctx.matrix.width)
        for start, slab in ctx.matrix.slabs():
            total += g[..., start : start + slab.shape[0]] @ slab
        return total, None
