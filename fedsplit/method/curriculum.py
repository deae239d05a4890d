"""How much of its rows a client trains on in a round when it begins with the easiest: the share grows by round.

    g(t) = min(1, first + (1 - first) phi(t / (full T)))        phi(x) = x, sqrt(x) or x^2

Legend: t the round, from 0; T the run's rounds; ``full`` the part of the run after which every row takes part. Source:
FibecFed, Liu et al. 2024 (arXiv:2410.00131). Unverified: the paper's choice among the three, and its constants.
"""

from __future__ import annotations

import math

from fedsplit.method.parts import Local


def share(local: Local, round: int, rounds: int) -> float:
    """g of the round, above 0 and at most 1; 0: the part is no curriculum, rows come in any order."""
    if local.name != "curriculum":
        return 0.0
    first, full = float(local.options["first"]), float(local.options["full"])
    done = min(1.0, round / (full * rounds))
    grown = {"linear": done, "sqrt": math.sqrt(done), "square": done * done}[str(local.options["pace"])]
    return min(1.0, first + (1 - first) * grown)
