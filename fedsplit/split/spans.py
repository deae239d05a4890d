"""From a plan to the segments each side holds."""

from __future__ import annotations

from fedsplit.plan.types import ClientPlan, Topology
from fedsplit.split.segment import Span


def client_spans(plan: ClientPlan, num_layers: int) -> tuple[Span, ...]:
    """The whole model but layers left out (``local``), front and tail (``u``, ``w``), or the front alone (``v``)."""
    c1, c2 = plan.cut.c1, plan.cut.c2
    if plan.topology is Topology.LOCAL:
        return (Span(0, num_layers, embeds=True, heads=True, skips=plan.absent),)
    front = Span(0, c1, embeds=True, heads=False)
    return (front,) if plan.topology is Topology.V else (front, Span(c2, num_layers, embeds=False, heads=True))
