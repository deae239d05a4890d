"""Losses with transformers' own arithmetic, and two ways to have them without holding all logits.

The loss of a step is the sum over all label positions of the whole step divided by their number: ``label_tokens``
counts over all micro-batches (and clients of a joint batch), so sums of micro-batch losses are exact.
Source: ``transformers/loss/loss_utils.py``.

Logits of a 128 k vocabulary take 0.5 MB a token in f32, three times that with their gradient. ``sliced`` computes head
and loss a slice of tokens at a time; ``streamed`` goes over the vocabulary instead, so that the head itself need not be
in memory either. Both give the gradient of the hidden states in the same pass. They round differently from the loss in
one piece in the last bits, so they are used only where that one would be large.

Legend: B samples, T tokens, N label positions, D model width, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsplit.split.rows import Rows
from fedsplit.split.streamed import SLAB_BYTES, StreamedMatrix

IGNORED = -100
LOGITS_BYTES = 1 << 26
"""Above this size (f32) the logits of a micro-batch are computed in slices."""


def shifted(labels_BT: Tensor, rows: Rows) -> Tensor:
    """Labels moved one place left, so that a position's label is the next token; the last has none.

    Padding predicts nothing: a sample's first token is nobody's label, on whichever side the padding is.
    """
    moved = F.pad(labels_BT, (0, 1), value=IGNORED)[..., 1:].contiguous()
    return torch.where(rows.mask_BT.to(moved.device).bool(), moved, IGNORED) if any(rows.starts) else moved


def label_tokens(labels_BT: Tensor, rows: Rows) -> int:
    """Positions with a loss, given unshifted labels of a language model."""
    return int((shifted(labels_BT, rows) != IGNORED).sum())


def causal(logits_BTV: Tensor, shifted_BT: Tensor, label_tokens: int) -> Tensor:
    """Cross-entropy of shifted labels over all logits at once."""
    logits = logits_BTV.float().view(-1, logits_BTV.shape[-1])
    return F.cross_entropy(logits, shifted_BT.view(-1), ignore_index=IGNORED, reduction="sum") / label_tokens


def pooled(logits_BC: Tensor, labels_B: Tensor, label_tokens: int, *, regression: bool) -> Tensor:
    """Cross-entropy of class ids, or squared error of values."""
    if regression:
        return F.mse_loss(logits_BC.view(-1), labels_B.float().view(-1), reduction="sum") / label_tokens
    return F.cross_entropy(logits_BC, labels_B.view(-1), reduction="sum") / label_tokens


def slice_size(positions: int, vocabulary: int, chunk: int | None) -> int | None:
    """Tokens a slice, or None for all at once. ``chunk`` as the caller wants it; by default by size."""
    if chunk is not None:
        return chunk if chunk < positions else None
    if positions * vocabulary * 4 <= LOGITS_BYTES:
        return None
    return max(1, LOGITS_BYTES // (vocabulary * 4))


def sliced(
    score: Callable[[Tensor], Tensor],
    h_ND: Tensor,
    targets_N: Tensor,
    label_tokens: int,
    size: int,
    trained: Sequence[Tensor] = (),
) -> Tensor:
    """Cross-entropy of ``score(h)`` in slices of ``size`` tokens. ``trained``: leaves inside ``score``."""
    loss: Tensor = _Sliced.apply(score, targets_N, label_tokens, size, h_ND, *trained)  # type: ignore[no-untyped-call]
    return loss


def streamed(
    h_ND: Tensor, matrix: StreamedMatrix, targets_N: Tensor, label_tokens: int, slab_rows: int | None = None
) -> Tensor:
    """Cross-entropy of ``h @ matrix.T`` in one pass over the rows of a frozen matrix in a file.

    ``slab_rows`` of them at a time, by default so many that rows and their logits take SLAB_BYTES each at most.
    """
    by_memory = SLAB_BYTES // max(4 * h_ND.shape[0], matrix.width * matrix.dtype.itemsize)
    rows = slab_rows or max(256, by_memory)
    loss: Tensor = _Streamed.apply(h_ND, matrix, targets_N, label_tokens, rows)  # type: ignore[no-untyped-call]
    return loss


class _Sliced(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        score: Callable[[Tensor], Tensor],
        targets_N: Tensor,
        label_tokens: int,
        size: int,
        h_ND: Tensor,
        *trained: Tensor,
    ) -> Tensor:
        wanted = [leaf for leaf in trained if leaf.requires_grad]
        sums = [torch.zeros_like(leaf) for leaf in wanted]
        g_ND, total = torch.empty_like(h_ND), h_ND.new_zeros((), dtype=torch.float32)
        for start in range(0, h_ND.shape[0], size):
            part = slice(start, start + size)
            with torch.enable_grad():
                leaf = h_ND[part].detach().requires_grad_()
                loss = F.cross_entropy(score(leaf).float(), targets_N[part], reduction="sum") / label_tokens
                grads = torch.autograd.grad(loss, [leaf, *wanted])
            total += loss.detach()
            g_ND[part] = grads[0]
            for held, grad in zip(sums, grads[1:], strict=True):
                held += grad
        ctx.save_for_backward(g_ND, *sums)
        ctx.order = [leaf.requires_grad for leaf in trained]
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        g_ND, *sums = (saved * grads[0].to(saved.dtype) for saved in ctx.saved_tensors)
        rest = iter(sums)
        return None, None, None, None, g_ND, *(next(rest) if wanted else None for wanted in ctx.order)


class _Streamed(torch.autograd.Function):
    """Online softmax over slabs of the vocabulary: running maximum, sum of exponentials and expected row."""

    @staticmethod
    def forward(
        ctx: Any, h_ND: Tensor, matrix: StreamedMatrix, targets_N: Tensor, label_tokens: int, slab_rows: int
    ) -> Tensor:
        n = h_ND.shape[0]
        top_N = h_ND.new_full((n,), -torch.inf, dtype=torch.float32)
        sum_N, own_N = torch.zeros_like(top_N), torch.zeros_like(top_N)
        mean_ND = torch.zeros(h_ND.shape, dtype=torch.float32, device=h_ND.device)
        for start, slab in matrix.slabs(slab_rows):
            logits = (h_ND @ slab.T).float()
            higher = torch.maximum(top_N, logits.amax(dim=1))
            fade = torch.exp(top_N - higher)
            mine = ((targets_N >= start) & (targets_N < start + slab.shape[0])).nonzero().squeeze(1)
            own_N[mine] = logits[mine, targets_N[mine] - start]
            weight = torch.exp(logits.sub_(higher.unsqueeze(1)))
            sum_N = sum_N * fade + weight.sum(dim=1)
            mean_ND.mul_(fade.unsqueeze(1)).add_(weight.to(h_ND.dtype) @ slab)
            top_N = higher
        own_ND = matrix.take(targets_N)
        ctx.save_for_backward((mean_ND / sum_N.unsqueeze(1) - own_ND).to(h_ND.dtype) / label_tokens)
        return (top_N + sum_N.log() - own_N).sum() / label_tokens

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (g_ND,) = ctx.saved_tensors
        return g_ND * grads[0].to(g_ND.dtype), None, None, None, None
