"""FedRA as the paper says it, dense and naive: layer by layer, the plain mean over the clients that hold the layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Factors = Mapping[str, NDArray[np.float32]]


def aggregate(
    before: Factors, sent: Mapping[str, Factors], held: Mapping[str, Sequence[int]], layer_of: Mapping[str, int]
) -> dict[str, NDArray[np.float64]]:
    """``sent``: tensors by name for every client; ``layer_of``: the layer of a tensor, -1 for one of all clients."""
    after = {}
    for name, tensor in before.items():
        holders = [client for client in sent if layer_of[name] in held[client] or layer_of[name] < 0]
        if not holders:
            after[name] = tensor.astype(np.float64)
            continue
        total = np.zeros(tensor.shape, np.float64)
        for client in holders:
            total += sent[client][name].astype(np.float64)
        after[name] = total / len(holders)
    return after
