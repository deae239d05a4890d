"""FedAvg on LoRA factors, as plainly as it can be written: dense float64 loops over names. An oracle, no product code.

McMahan et al. 2017 (arXiv:1602.05629) on each factor, per module over the clients that trained it; and the ideal
aggregate, which forms every M x N product.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Pairs = dict[Any, tuple[np.ndarray, np.ndarray]]
"""``{module: (B, A)}``."""


def average_factors(clients: list[tuple[int, Pairs]], before: Pairs) -> Pairs:
    """``sum n_k B_k / sum n_k`` and likewise A; a module nobody trained keeps what it had. Clients: (n_k, factors)."""
    after = {}
    for module, (old_B, old_A) in before.items():
        count = sum(n for n, factors in clients if module in factors)
        B, A = np.zeros(old_B.shape), np.zeros(old_A.shape)
        for n, factors in clients:
            if module in factors and n > 0:
                B += n / count * factors[module][0].astype(np.float64)
                A += n / count * factors[module][1].astype(np.float64)
        after[module] = (B, A) if count else (old_B, old_A)
    return after


def ideal(clients: list[tuple[int, Pairs]], before: Pairs) -> dict[Any, np.ndarray]:
    """``{module: sum p_k B_k A_k}`` as dense M x N, which is what averaging should have given."""
    after = {}
    for module, (old_B, old_A) in before.items():
        count = sum(n for n, factors in clients if module in factors)
        dense = np.zeros((old_B.shape[0], old_A.shape[1]))
        for n, factors in clients:
            if module in factors and n > 0:
                B, A = factors[module]
                dense += n / count * (B.astype(np.float64) @ A.astype(np.float64))
        after[module] = dense if count else old_B.astype(np.float64) @ old_A.astype(np.float64)
    return after


def average_tensors(clients: list[tuple[int, dict[str, np.ndarray]]], before: dict[str, np.ndarray]) -> dict[str, Any]:
    """The head: ``sum n_k h_k / sum n_k`` over those that sent the tensor."""
    after: dict[str, Any] = {}
    for name, old in before.items():
        count = sum(n for n, head in clients if name in head)
        parts = [n / count * head[name].astype(np.float64) for n, head in clients if name in head and n > 0]
        after[name] = sum(parts) if parts else old
    return after
