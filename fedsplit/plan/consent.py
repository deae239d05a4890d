"""What a device's owner agreed to, and whether another plan stays within it.

Plans may change between rounds without asking again, so the new one must be the same work and may show the operator no
more. How much of the input is shown goes by four classes, the ones that ``exposure`` has words for: none (``local``),
a deep front, a shallow one, the input itself. Both ends look: the server does not offer what is worse, the device does
not take it.
"""

from __future__ import annotations

from fedsplit.config.run import RunFile
from fedsplit.plan.exposure import SHALLOW
from fedsplit.plan.given import bare
from fedsplit.plan.options import describe
from fedsplit.plan.types import ABSENT, ClientPlan, Cut, Topology

Shown = tuple[int, bool]
"""(class of the input: 0 none, 1 after a deep front, 2 after a shallow one, 3 itself; whether the labels are)."""
_SEEN = ("nothing of single rows", "activations of deeper layers", "activations of the first layers", "the input")


def shown(topology: Topology, cut: Cut, num_layers: int) -> Shown:
    """What the operator gets to see of a row."""
    if topology is Topology.LOCAL:
        return 0, False
    if cut.c1 == 0:
        return 3, topology is Topology.V
    return 2 if cut.c1 <= SHALLOW * num_layers else 1, topology is Topology.V


def within(found: Shown, agreed: Shown) -> bool:
    """Whether ``found`` shows no more than ``agreed``, neither of the input nor of the labels."""
    return found[0] <= agreed[0] and found[1] <= agreed[1]


def shown_by(plan: ClientPlan) -> Shown:
    return shown(plan.topology, plan.cut, len(plan.layers))


def same_work(plan: ClientPlan, other: ClientPlan) -> bool:
    """Whether the two differ only in who computes what: then every result has the same bits."""
    return _work(plan) == _work(other)


def objection(agreed: ClientPlan, now: ClientPlan, offered: ClientPlan, run: RunFile | None = None) -> str:
    """Why ``offered`` cannot follow ``now`` without asking the owner, who ``agreed`` to another; empty: it can. Who
    agreed to ``run`` agreed to the ranks or steps that it gives to clients that wait (``plan.slack``)."""
    if not same_work(bare(now, run) if run else now, bare(offered, run) if run else offered):
        return "it trains something else than the plan before"
    found, most = shown_by(offered), shown_by(agreed)
    if within(found, most):
        return ""
    what = "the labels" if found[1] > most[1] else _SEEN[found[0]]
    names = describe(offered.topology, offered.cut), describe(agreed.topology, agreed.cut)
    return f"{names[0]} would show the operator {what}; agreed was {names[1]}"


def _work(plan: ClientPlan) -> tuple[object, ...]:
    held = [layer for layer in plan.layers if layer.place != ABSENT]
    # Where layers are left out, which ones they are is drawn every round: as many is the same work.
    drawn = len(held) < len(plan.layers)
    layers = tuple((0 if drawn else layer.layer, layer.trains, layer.rank, layer.bits, layer.density) for layer in held)
    codecs = plan.wire_up, plan.wire_down, plan.grad_up, plan.grad_down
    sent = plan.steps, plan.density_down, plan.density_up
    return plan.client, plan.batch, plan.micro_batches, sent, codecs, plan.dtype, layers
