"""Which layers a fleet trains: where devices leave layers out, some may be trained by few, or by nobody.

A device that is short of memory trains the most valuable layers that fit, and to all of them these are the upper ones:
a front that trains costs activations from its lowest layer on. What nobody trains stays as the checkpoint has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from fedsplit.plan.model import ModelCard
from fedsplit.plan.types import ClientPlan


def coverage(plans: Sequence[ClientPlan], card: ModelCard, targets: Sequence[str]) -> dict[int, int]:
    """How many clients train each layer that ``targets`` select, on the device or on the server."""
    adapted = [layer for layer in range(card.num_layers) if card.adapted(targets, layer)]
    return {layer: sum(plan.layers[layer].trains for plan in plans) for layer in adapted}


def coverage_note(plans: Sequence[ClientPlan], card: ModelCard, targets: Sequence[str]) -> str:
    """The layers that the fewest clients train; empty where everybody trains all of them."""
    counts = coverage(plans, card, targets)
    least = min(counts.values(), default=len(plans))
    if least == len(plans):
        return ""
    layers = spans([layer for layer, count in counts.items() if count == least])
    if not least:
        return f"no client trains layer {layers}: it stays as it is; more memory, or a smaller batch, would change that"
    return f"layer {layers}: trained by {least} of {len(plans)} clients only"


def spans(layers: Sequence[int]) -> str:
    """``0–3, 7``: numbers, smaller ones first, as runs."""
    runs = [[layer for _, layer in run] for _, run in groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
