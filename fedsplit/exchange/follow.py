"""Can this device do what its plan says? Asked before anything is loaded: a plan is followed as it is, or refused."""

from __future__ import annotations

from fedsplit.config.run import RunFile
from fedsplit.errors import PlanError
from fedsplit.plan.bits import widths
from fedsplit.plan.question import gradient_codec, hidden_codec
from fedsplit.plan.types import ClientPlan, Topology


def check_plan(plan: ClientPlan, run: RunFile, num_layers: int) -> None:
    """Raises PlanError where the plan asks for what this version does not do, with all that it found.

    A plan without layers (a model that only answers) says nothing about them.
    """
    found = _problems(plan, run, num_layers) if plan.layers else []
    if found:
        raise PlanError(
            f"the plan of {plan.client} cannot be followed here: {'; '.join(found)}; use the same version of fedsplit "
            "on the server and the devices"
        )


def held_layers(plan: ClientPlan, num_layers: int) -> set[int]:
    """Layers on the device: of the front, and of the tail where that is here."""
    if plan.topology is Topology.LOCAL:
        return set(range(num_layers)) - plan.absent
    tail = () if plan.topology is Topology.V else range(plan.cut.c2, num_layers)
    return {*range(plan.cut.c1), *tail}


def _problems(plan: ClientPlan, run: RunFile, num_layers: int) -> list[str]:
    held = held_layers(plan, num_layers)
    mine = [layer for layer in plan.layers if layer.place == "client"]
    bits = widths(run)
    found = []
    if held != {layer.layer for layer in mine}:
        named = sorted(layer.layer for layer in mine)
        cut = f"{plan.topology} ({plan.cut.c1}, {plan.cut.c2})"
        found.append(f"found layers {named} on the device, expected {sorted(held)} for {cut}")
    if other := sorted({layer.bits for layer in mine} - set(bits)):
        expected = f"{bits[0]} as in model.dtype = {run.model.dtype}"
        expected += "".join(f" or {width}" for width in bits[1:]) + (" as in plan.bits" if bits[1:] else "")
        found.append(f"found weights of {other[0]} bits, expected {expected}")
    if other_densities := sorted({layer.density for layer in mine} - {1.0}):
        found.append(f"found density {other_densities[0]}, expected 1.0")
    for way, share in (("down", plan.density_down), ("up", plan.density_up)):
        if share and (run.plan.slack != "density" or not 0 < share <= 1):
            found.append(f"found density {share} {way}, expected 0, or with plan.slack = density at most 1")
    if low := sorted(layer.layer for layer in mine if layer.trains and layer.rank < 1):
        found.append(f"found rank 0 in layer {low[0]}, which trains, expected 1 or more")
    return [*found, *_codecs(plan, run)]


def _codecs(plan: ClientPlan, run: RunFile) -> list[str]:
    """Codecs that the run file does not allow. Gradients in fewer bits than it names, too."""
    allowed = ["raw"] if plan.topology is Topology.LOCAL else [hidden_codec(codec) for codec in run.wire.codecs]
    found = []
    for way, hidden, gradient in (("up", plan.wire_up, plan.grad_up), ("down", plan.wire_down, plan.grad_down)):
        if hidden not in allowed:
            found.append(f"found wire codec {hidden} {way}, expected {' or '.join(allowed)}")
        elif gradient != gradient_codec(run, hidden):
            wanted = gradient_codec(run, hidden)
            found.append(f"found wire codec {gradient} of gradients {way}, expected {wanted} beside {hidden}")
    return found
