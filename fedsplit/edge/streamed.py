"""A language model's loss in one pass over its vocabulary, a slab of rows at a time: a large head takes no memory.

A tied head is the file of the embedding, downloaded once. The arithmetic is ``fedsplit.split.loss.streamed``'s:
running maximum, sum of exponentials and expected row. Legend: N label positions, D model width, V vocabulary.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsplit.edge.runner import Floats, Lookup
from fedsplit.plan.edge import SLAB_BYTES as SLAB_BYTES

LEAST = 256
"""Rows of a slab at least."""


def loss(h_ND: Floats, labels_N: NDArray[np.int64], scale: float, head: Lookup) -> tuple[float, Floats]:
    """(cross-entropy of ``h @ head.T`` summed over positions, times ``scale``; its gradient by ``h``)."""
    count = len(labels_N)
    top_N, sum_N = np.full(count, -np.inf, np.float32), np.zeros(count, np.float32)
    own_N, mean_ND = np.zeros(count, np.float32), np.zeros_like(h_ND)
    for start, slab in head.slabs(_rows(h_ND)):
        logits = h_ND @ slab.T
        higher = np.maximum(top_N, logits.max(axis=1))
        fade = np.exp(top_N - higher)
        mine = np.flatnonzero((labels_N >= start) & (labels_N < start + len(slab)))
        own_N[mine] = logits[mine, labels_N[mine] - start]
        logits -= higher[:, None]
        weight = np.exp(logits, out=logits)
        sum_N = sum_N * fade + weight.sum(axis=1)
        mean_ND *= fade[:, None]
        mean_ND += weight @ slab
        top_N = higher
    total = float((top_N + np.log(sum_N) - own_N).sum(dtype=np.float64)) * scale
    return total, (mean_ND / sum_N[:, None] - head.rows(labels_N)) * np.float32(scale)


def logits(h_ND: Floats, head: Lookup) -> Floats:
    """(N, V)."""
    return np.concatenate([h_ND @ slab.T for _, slab in head.slabs(_rows(h_ND))], axis=1)


def _rows(h_ND: Floats) -> int:
    return max(LEAST, SLAB_BYTES // (4 * max(len(h_ND), int(h_ND.shape[1]))))
