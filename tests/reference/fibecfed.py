"""FibecFed as the paper says it, dense and naive: which layers, which batches, which neurons, the mean over clients.

Factors are by (layer, module): (B, A). Everything is a loop over plain numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
Factors = Mapping[tuple[int, str], Pair]


def global_layers(scores: Mapping[str, Sequence[float]], rows: Mapping[str, int], share: float) -> set[int]:
    """The layers that are averaged: the largest weighted means."""
    everyone, layers = sum(rows.values()), len(next(iter(scores.values())))
    means = [sum(rows[name] * scores[name][layer] for name in scores) / everyone for layer in range(layers)]
    ranked = sorted(range(layers), key=lambda layer: means[layer], reverse=True)
    return set(ranked[: math.ceil(share * layers)])


def share_of_batches(first: float, full: float, round: int, rounds: int) -> float:
    """g(t), linear."""
    return min(1.0, first + (1 - first) * round / (full * rounds)) if round < full * rounds else 1.0


def learning_rows(fisher: Mapping[str, Sequence[float]], share: float) -> dict[str, list[int]]:
    """Of one layer, by module: the rows of B that learn."""
    everything = [(value, module, row) for module in sorted(fisher) for row, value in enumerate(fisher[module])]
    order = sorted(range(len(everything)), key=lambda at: (-everything[at][0], at))
    best = [everything[at] for at in order[: math.ceil(share * len(everything))]]
    return {module: sorted(row for _, own, row in best if own == module) for module in fisher}


def follow(before: Sequence[float], now: Sequence[float], momentum: float) -> list[float]:
    """The Fisher information of neurons after another round."""
    return [momentum * old + (1 - momentum) * new for old, new in zip(before, now, strict=True)]


def aggregate(
    before: Factors, sent: Mapping[str, Factors], rows: Mapping[str, int], layers: set[int]
) -> dict[tuple[int, str], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Per layer that is averaged, the weighted mean of either factor; the others are what the server had."""
    after, everyone = {}, sum(rows[name] for name in sent)
    for key, (b_MR, a_RN) in before.items():
        if key[0] not in layers:
            after[key] = (b_MR.astype(np.float64), a_RN.astype(np.float64))
            continue
        b, a = np.zeros(b_MR.shape), np.zeros(a_RN.shape)
        for name, factors in sent.items():
            b += rows[name] / everyone * factors[key][0].astype(np.float64)
            a += rows[name] / everyone * factors[key][1].astype(np.float64)
        after[key] = (b, a)
    return after
