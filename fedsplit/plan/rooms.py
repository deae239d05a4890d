"""How many layers a device has room for, and what a model of so many layers costs it (``plan.layers = "rooms"``).

A device that leaves layers out computes a shallower model: embedding, its layers, head. So its cost is that of a model
with fewer layers, in every formula; which of the layers it holds makes no difference, they are of one kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from msgspec import structs

from fedsplit.devices.units import size
from fedsplit.errors import PlanError
from fedsplit.plan.memory import disk_bytes
from fedsplit.plan.model import ModelCard
from fedsplit.plan.prices import anything_fits
from fedsplit.plan.question import Question, step_of
from fedsplit.plan.refuse import without_plan
from fedsplit.plan.solve import planned, sealed
from fedsplit.plan.types import ABSENT, ClientPlan, Cut, Estimate, LayerPlan, Plan
from fedsplit.plan.work import work_of

LISTED = 12
"""Clients whose rooms are named one by one."""


def compact(card: ModelCard, plan: ClientPlan) -> tuple[ModelCard, ClientPlan]:
    """(the model that the client computes, its plan for that one); both as they are where no layer is left out."""
    held = tuple(layer for layer in plan.layers if layer.place != ABSENT)
    if len(held) == len(plan.layers):
        return card, plan
    layers = tuple(structs.replace(layer, layer=index) for index, layer in enumerate(held))
    return _of_depth(card, len(held)), structs.replace(plan, layers=layers, cut=Cut(len(held), len(held)))


def in_rooms(asked: Mapping[str, Question], *, round: int = 0) -> tuple[Plan, Mapping[str, Question]]:
    """(plans of devices that each hold as many layers as fit, the questions about models of so many layers).

    Which layers is not decided here: it is drawn every round, and a plan has the lowest ones in their stead. Its disk
    is that of the whole model: over the rounds a device fetches every layer. Raises PlanError where not even one fits.
    """
    lost = [name for name, question in asked.items() if not step_of(question)[0]]
    if lost:  # whatever the depth: said of the whole model, since a shallower one has other cuts
        raise PlanError(without_plan({name: asked[name] for name in lost}, lost, len(asked)))
    final = {name: _roomy(question) for name, question in asked.items()}
    plans, notes = [], dict[str, None]()
    for name, question in final.items():
        try:
            one, _ = planned({name: question})
        except PlanError as error:
            raise PlanError(f"with 1 of {asked[name].card.num_layers} layers: {error}") from None
        notes.update(dict.fromkeys(one.reasons))
        plans.append(_whole(one.clients[0], asked[name]))
    rooms = {plan.client: sum(layer.place == "client" for layer in plan.layers) for plan in plans}
    layers = next(iter(asked.values())).card.num_layers
    seed = next(iter(asked.values())).run.run.seed
    return sealed(Plan(round=round, clients=tuple(plans), seed=seed, reasons=(_said(rooms, layers), *notes))), final


def _said(rooms: Mapping[str, int], layers: int) -> str:
    """Who has how much room, and how often that trains a layer."""
    some = [f"{name} {'all' if room == layers else f'any {room}'}" for name, room in rooms.items()]
    total, few = sum(rooms.values()), len(rooms) <= LISTED
    least, most = min(rooms.values()), max(rooms.values())
    many = f"any {least} a client" if least == most else f"any {least} to {most} a client"
    names = ", ".join(some) if few else many
    line = f"layers held of {layers}: {names}; which ones is drawn every round"
    if total < layers:
        return f"{line}; all rooms together are {total}, so that {layers - total} layers are not trained in a round"
    mean = f"{round(total / layers, 2):g} of {len(rooms)} clients"
    return f"{line}; in a round {mean} train a layer on average, and at least one"


def _roomy(question: Question) -> Question:
    """The question about the deepest model that fits; about one layer where none does."""
    run = structs.replace(
        question.run, clients=(), plan=structs.replace(question.run.plan, layers="all", coverage=0, slack="none")
    )
    fixed = structs.replace(question.fixed, cut=None) if question.fixed else None
    plain = replace(question, run=run, fixed=fixed)
    fits, too_many = 1, question.card.num_layers + 1
    while too_many - fits > 1:
        depth = (fits + too_many) // 2
        if anything_fits(_deep(plain, depth)):
            fits = depth
        else:
            too_many = depth
    return _deep(plain, fits)


def _deep(question: Question, layers: int) -> Question:
    return replace(question, card=_of_depth(question.card, layers))


def _of_depth(card: ModelCard, layers: int) -> ModelCard:
    return structs.replace(card, num_layers=layers)


def _whole(plan: ClientPlan, question: Question) -> ClientPlan:
    """A compact model's plan, said of the whole one."""
    first, layers = plan.layers[0], question.card.num_layers
    cut, estimate = Cut(layers, layers), plan.estimate
    if estimate is not None:
        disk = disk_bytes(work_of(question.card, question.run), plan.topology, cut)
        estimate = structs.replace(estimate, disk_bytes=disk)
    reasons = plan.reasons if len(plan.layers) == layers else (*plan.reasons, _drawn(plan, layers, estimate))
    absent = (
        LayerPlan(layer=layer, place=ABSENT, trains=False, rank=first.rank, bits=first.bits)
        for layer in range(len(plan.layers), layers)
    )
    return structs.replace(plan, layers=(*plan.layers, *absent), cut=cut, estimate=estimate, reasons=reasons)


def _drawn(plan: ClientPlan, layers: int, estimate: Estimate | None) -> str:
    line = f"any {len(plan.layers)} of {layers} layers, drawn anew every round; all are of one kind"
    if estimate is None:
        return line
    peak, disk = size(estimate.memory_bytes), size(estimate.disk_bytes)
    return f"{line}, so that it peaks at {peak} whichever they are; it fetches what is missing, all {disk} in the end"
