"""The low-rank algebra on dense matrices, float64, nothing clever. An oracle, no product code."""

from __future__ import annotations

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]
"""``(B, A)`` of shapes (M, R) and (R, N)."""


def total(parts: list[Pair], weights: list[float]) -> np.ndarray:
    """``sum w_k B_k A_k``, (M, N)."""
    dense = np.zeros((parts[0][0].shape[0], parts[0][1].shape[1]))
    for weight, (b, a) in zip(weights, parts, strict=True):
        dense += weight * (b.astype(np.float64) @ a.astype(np.float64))
    return dense


def mean(parts: list[Pair], weights: list[float]) -> np.ndarray:
    """``(sum w_k B_k)(sum w_k A_k)``, (M, N)."""
    b = sum(weight * one[0].astype(np.float64) for weight, one in zip(weights, parts, strict=True))
    a = sum(weight * one[1].astype(np.float64) for weight, one in zip(weights, parts, strict=True))
    return np.asarray(b @ a)


def best(dense: np.ndarray, rank: int) -> np.ndarray:
    """Eckart-Young: the first ``rank`` singular triples."""
    u, s, vt = np.linalg.svd(dense, full_matrices=False)
    return np.asarray((u[:, :rank] * s[:rank]) @ vt[:rank])
