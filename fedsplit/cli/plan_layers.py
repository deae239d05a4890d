"""The knapsack behind a plan that does not train every layer, as a table a person can add up."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedsplit.devices.units import size
from fedsplit.plan.fitted import allowed_ranks, room_bytes
from fedsplit.plan.question import Question
from fedsplit.plan.trained import weighed
from fedsplit.plan.types import ClientPlan


def cut_down(client: ClientPlan, question: Question) -> bool:
    """Whether this plan trains less than all layers that have targets at the run's rank."""
    targets, rank = question.run.lora.targets, question.run.lora.rank
    able = [layer for layer in client.layers if question.card.adapted(targets, layer.layer)]
    return any(not layer.trains or layer.rank != rank for layer in able)


def layers_table(client: ClientPlan, question: Question) -> RenderableType:
    """What each layer on the device costs, what all else takes where it is the lowest that trains, what it lacks.

    Bytes of the lowest layer that trains and of all that train add up to the plan's memory without the program.
    """
    rows = weighed(client, question)
    trains = [row for row in rows if row.rank]
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", title="layers here, the top one first", title_justify="left")
    for header in ("layer", "trains", "its factors and inputs", "all else, if the lowest", ""):
        table.add_column(header, justify="left" if header in ("", "trains") else "right")
    for row in reversed(rows):
        note = "the lowest" if trains and row is trains[0] else ""
        if not row.rank:
            note = (
                f"lacks {size(row.missing_bytes)}" if row.missing_bytes else "not in time" if _timed(question) else ""
            )
        word = f"r {row.rank}" if row.rank else "no"
        table.add_row(str(row.layer), word, size(row.cost_bytes), size(row.start_bytes), note)
    return Group(Text(_sum(client, question)), table)


def _sum(client: ClientPlan, question: Question) -> str:
    rows = [row for row in weighed(client, question) if row.rank]
    ranks = " or ".join(str(rank) for rank in allowed_ranks(question))
    room = f"{size(room_bytes(question))} beside the program"
    if not rows:
        return f"layers may train at rank {ranks}, within {room}: none of those here does"
    start, own = rows[0].start_bytes, sum(row.cost_bytes for row in rows)
    taken = f"{size(start)} and {size(own)} of factors and inputs"
    return f"layers may train at rank {ranks}, within {room}: {taken} are taken"


def _timed(question: Question) -> bool:
    return bool(question.run.policy.round_s)
