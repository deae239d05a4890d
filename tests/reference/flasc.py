"""FLASC as the paper writes it, one loop over all entries: nothing is shared with the code under test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def top(vector: Vector, k: int) -> Vector:
    """Zeros but in the k largest entries; the first of equal ones wins."""
    order = sorted(range(len(vector)), key=lambda i: (-abs(vector[i]), i))
    kept = np.zeros_like(vector)
    for i in order[:k]:
        kept[i] = vector[i]
    return kept


def round_of(
    whole: Vector, steps: Sequence[Vector], weights: Sequence[float], down: float, up: float, first: Vector
) -> tuple[Vector, list[Vector]]:
    """(the next global vector under SGD of rate 1, what each client sends); ``steps``: what training adds locally;
    ``first``: what entries are that do not come (in the paper zero)."""
    n = len(whole)
    start = first + top(whole - first, max(1, int(n * down)))
    sent = [top((start + step) - start, max(1, int(n * up))) for step in steps]
    return whole + sum(w * u for w, u in zip(weights, sent, strict=True)), sent
