"""Which layers of a plan train at which rank, in words, and what a plan that was cut down gave up and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from fedsplit.devices.units import duration, size
from fedsplit.plan.bits import widths
from fedsplit.plan.explain import Rivals
from fedsplit.plan.fitted import EQUAL, Fitted, Fitter, allowed_ranks, room_bytes
from fedsplit.plan.knapsack import Segment
from fedsplit.plan.options import ORDER
from fedsplit.plan.question import Question, step_as_planned
from fedsplit.plan.selection import own_layers, segment_of
from fedsplit.plan.types import ABSENT, ClientPlan, LayerPlan


def trained(layers: Sequence[LayerPlan]) -> str:
    """``all 16 · r 8``, ``8–15 of 16 · r 8``, ``0 r 2, 8–15 r 8 of 16``, ``none of 16``; ``any 3 of 16 · r 8`` where
    layers are left out: which ones is drawn every round."""
    drawn = [layer.rank for layer in layers if layer.place != ABSENT]
    if len(drawn) < len(layers):
        return f"any {len(drawn)} of {len(layers)} · r {max(drawn, default=0)}"
    ranks = [layer.rank if layer.trains else 0 for layer in layers]
    used = sorted(set(ranks) - {0})
    if not used:
        return f"none of {len(ranks)}"
    if len(used) > 1:
        parts = [f"{span} r {rank}" for span, rank in _spans(ranks) if rank]
        return f"{', '.join(parts)} of {len(ranks)}"
    if all(ranks):
        return f"all {len(ranks)} · r {used[0]}"
    return f"{', '.join(span for span, rank in _spans(ranks) if rank)} of {len(ranks)} · r {used[0]}"


def _spans(ranks: Sequence[int]) -> list[tuple[str, int]]:
    """(``8–15``, rank) of every run of layers with the same rank."""
    found = []
    for rank, members in groupby(range(len(ranks)), key=lambda layer: ranks[layer]):
        layers = list(members)
        found.append((str(layers[0]) if len(layers) == 1 else f"{layers[0]}–{layers[-1]}", rank))
    return found


def packed(layers: Sequence[LayerPlan]) -> str:
    """``frozen matrices in 4 bits: layers 0–2, in 32 bits: layer 3``, of the layers on the device."""
    bits = [layer.bits if layer.place == "client" else 0 for layer in layers]
    parts = []
    for width in sorted(set(bits) - {0}):
        spans = ", ".join(span for span, here in _spans([int(one == width) for one in bits]) if here)
        parts.append(f"in {width} bits: {'layer' if bits.count(width) == 1 else 'layers'} {spans}")
    return f"frozen matrices {', '.join(parts)}"


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """One layer that the client holds. ``cost_bytes``: its factors with what they keep, at its rank or the smallest;
    ``start_bytes``: everything else, were it the lowest that trains; ``missing_bytes``: what training it, too, lacks.
    """

    layer: int
    rank: int
    cost_bytes: int
    start_bytes: int
    missing_bytes: int


def weighed(client: ClientPlan, question: Question) -> list[Weighed]:
    """The arithmetic of a cut-down plan: what each layer that the client holds costs, and what those left out lack."""
    work = step_as_planned(question, client)
    place, device, bits = (client.topology, client.cut), question.device, widths(question.run)
    segment = segment_of(work, *place, device, allowed_ranks(question), bits=bits)
    return _weighed(client, question, segment, own_layers(work, client.topology, client.cut))


def _weighed(client: ClientPlan, question: Question, segment: Segment, mine: Sequence[int]) -> list[Weighed]:
    ranks = [client.layers[layer].rank if client.layers[layer].trains else 0 for layer in mine]
    bits = [client.layers[layer].bits for layer in mine]
    found = []
    for place, layer in enumerate(mine):
        able = {item.rank: item.bytes for item in segment.layers[place] if item.rank and item.bits == bits[place]}
        floor = segment.floor[place]
        if floor is None:
            continue
        rank = ranks[place] or min(able)
        need = _bytes(segment, [*ranks[:place], rank, *ranks[place + 1 :]], bits)
        found.append(
            Weighed(
                layer=layer, rank=ranks[place], cost_bytes=able[rank], start_bytes=floor,
                missing_bytes=max(0, need - room_bytes(question)),
            )
        )  # fmt: skip
    return found


def _bytes(segment: Segment, ranks: Sequence[int], bits: Sequence[int]) -> int:
    """What these ranks and bits take, at least one rank not 0."""
    lowest = next(place for place, rank in enumerate(ranks) if rank)
    chosen = zip(segment.layers, ranks, bits, strict=True)
    return (segment.floor[lowest] or 0) + sum(
        item.bytes for items, rank, width in chosen for item in items if (item.rank, item.bits) == (rank, width)
    )


def gave_up(client: ClientPlan, found: Fitted, rivals: Rivals, question: Question) -> tuple[str, ...]:
    """The lines that stand first in the reasons of a cut-down plan, instead of those on choice and memory."""
    rank, count = question.run.lora.rank, len(client.layers)
    worth = f"worth {found.value / found.full:.0%} of training all {count} at rank {rank}, which does not fit"
    lines = [
        f"{found.option.name}, training {trained(client.layers)}: {duration(found.option.times.total)} a step, "
        f"{found.why or _most_valuable(found)}, {worth}"
    ]
    mine = own_layers(found.option.work, client.topology, client.cut)
    lines += [packed(client.layers)] if any(found.option.work.layer_bits) else []
    left = [one for one in _weighed(client, question, found.segment, mine) if not one.rank]
    if left:
        gone = {one.layer for one in left}
        names = ", ".join(span for span, out in _spans([int(layer.layer in gone) for layer in client.layers]) if out)
        lines.append(f"not trained here: {names}; with layer {left[-1].layer}, too, {_lack(left[-1], question)}")
    whole = ", ".join(f"{topology} needs {size(count)}" for topology, count in sorted(rivals.least))
    held = f"{size(found.option.memory.total)} of {size(question.device.budget_bytes)}"
    return (*lines, f"{found.option.name}: {held}; to train all layers {whole}")


def _most_valuable(found: Fitted) -> str:
    return f"the most valuable {f'of {found.weighed} cuts' if found.weighed > 1 else 'that fits'}"


def offers(client: ClientPlan, question: Question) -> list[str]:
    """Plans that show the operator less than this one and fit if fewer layers train: the most valuable a topology."""
    found = []
    for topology in (one for one in ORDER if ORDER[one] < ORDER[client.topology]):
        one = Fitter(question, only=topology).best(question)
        if one is not None and one.value < one.full - EQUAL:
            layers = [
                LayerPlan(layer=layer, place="", trains=rank > 0, rank=rank)
                for layer, rank in enumerate(one.option.work.ranks)
            ]
            time = duration(one.option.times.total)
            found.append(f"{one.option.name}, training {trained(layers)}, would fit and take {time} a step")
    return found


def _lack(left: Weighed, question: Question) -> str:
    if left.missing_bytes:
        return f"it would need {size(left.missing_bytes)} more"
    return "the round would take too long" if question.run.policy.round_s else "there would be nothing to spare"
