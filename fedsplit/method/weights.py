"""How much each arrival counts. Clients without examples were dropped before; normalisation comes after."""

from __future__ import annotations

from collections.abc import Sequence

from fedsplit.method.parts import WeightRule
from fedsplit.method.values import ClientUpdate


def _samples(updates: Sequence[ClientUpdate]) -> list[float]:
    return [float(update.examples) for update in updates]


def _uniform(updates: Sequence[ClientUpdate]) -> list[float]:
    return [float(update.stands_for) for update in updates]


samples = WeightRule("samples", _samples)
"""n_k: every example counts the same (McMahan et al. 2017)."""
uniform = WeightRule("uniform", _uniform)
"""Every client counts the same; a server copy counts for the clients that it stands for."""
