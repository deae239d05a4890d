"""Methods that keep something apart, as plainly as possible: dense float64 loops. An oracle, no product code.

FedSA-LoRA (arXiv:2410.01463): A is averaged, every client has its own B. FedLFC (Findings of NAACL 2024): averages
inside groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.reference.fedavg import Pairs, average_factors

Clients = dict[str, tuple[int, Pairs]]


def share_a(clients: Clients, before: Pairs) -> tuple[dict[Any, np.ndarray], dict[str, dict[Any, np.ndarray]]]:
    """``(A by module, B A by client and module)`` after a round."""
    common = {}
    for module, (_, old_A) in before.items():
        count = sum(n for n, factors in clients.values() if module in factors)
        A = np.zeros(old_A.shape)
        for n, factors in clients.values():
            if module in factors and n > 0:
                A += n / count * factors[module][1].astype(np.float64)
        common[module] = A if count else old_A
    dense = {
        name: {module: B.astype(np.float64) @ common[module] for module, (B, _) in factors.items()}
        for name, (n, factors) in clients.items()
        if n > 0
    }
    return common, dense


def by_family(clients: Clients, families: dict[str, str], before: Pairs) -> dict[str, Pairs]:
    """The factors of each family after a round."""
    return {
        family: average_factors([clients[name] for name in clients if families[name] == family], before)
        for family in sorted({families[name] for name in clients})
    }
