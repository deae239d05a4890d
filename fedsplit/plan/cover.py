"""``[plan] coverage``: every layer is trained by so many clients, or the plan says why that cannot be.

Only with ``[plan] layers = "fit"`` do devices leave layers out, and to all of them these are the lower ones. Where too
few clients train a layer, those that were cut down may train others (``ways``), chosen at the smallest change
(``covering``). Everybody else trains everything and stays as it is; so do the plans of clients that joined before.
While clients are still expected, what is missing is said; once they are all there, it is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedsplit.config.run import RunFile
from fedsplit.devices.units import size
from fedsplit.errors import PlanError
from fedsplit.plan.changes import for_all
from fedsplit.plan.coverage import coverage, spans
from fedsplit.plan.covering import Picks, Row, Task, cost_of, exact, greedy, short
from fedsplit.plan.fitted import Fitter
from fedsplit.plan.grid import Ints
from fedsplit.plan.integer import solver_here
from fedsplit.plan.model import ModelCard
from fedsplit.plan.question import Question, alike
from fedsplit.plan.types import ClientPlan
from fedsplit.plan.ways import Menu, Way

MOST_EXACT = 3000
"""Candidates of a fleet up to which the integer program is solved."""
LEAST = 60
"""So many candidates a client has in the largest fleet, too."""
PARTS = 1_000_000
"""A loss is counted in so many parts of the worth of all layers."""
SOLVER = "pip install 'fedsplit[server]' adds scipy, with which every combination is looked at"

Asked = Mapping[str, Question]


@dataclass(frozen=True, kw_only=True)
class _Fleet:
    """Clients that may change: their names and candidates a row (the first one None: the plan as it is), which of the
    model's layers count, and how many more clients each of these asks for."""

    names: Sequence[Sequence[str]]
    ways: Sequence[Sequence[Way | None]]
    menus: Sequence[Menu]
    layers: Sequence[int]
    task: Task


def covered(
    asked: Asked, plans: Sequence[ClientPlan], beside: Sequence[ClientPlan] | None, helps: Callable[[Asked], bool]
) -> tuple[Asked, tuple[str, ...]]:
    """(the questions with the ways that some clients shall take, what there is to say).

    ``beside``: plans of clients that are there already and stay, while these join; None: these are the whole fleet.
    ``helps``: whether other questions can be covered. Raises PlanError where the fleet is complete, and a layer is
    trained by too few.
    """
    first = next(iter(asked.values()))
    least, expected = first.run.plan.coverage, first.run.rounds.clients - len(asked) - len(beside or ())
    if not _lacking([*plans, *(beside or ())], first.card, first.run):
        return asked, ()
    fleet = _fleet(asked, plans, beside or ())
    picks, how = _chosen(fleet.task)
    left_L = short(fleet.task, picks)
    if left_L.any() and expected <= 0 and beside is None:
        raise PlanError(_unreachable(asked, fleet, left_L, how, helps))
    changed = _with_ways(asked, fleet, picks)
    moved = sum(changed[name] is not asked[name] for name in asked)
    notes = []
    if moved:
        notes.append(
            f"{moved} of {len(asked)} clients train other layers than the most valuable ones, so that each layer is "
            f"trained by {least}{' as far as can be' if left_L.any() else ''} (plan.coverage): {how}"
        )
    if left_L.any():
        more = f"; {expected} more are expected" if expected > 0 else ""
        notes.append(f"{_few(fleet.layers, left_L, least)}{more}")
    return changed, tuple(notes)


def uncovered(plans: Sequence[ClientPlan], card: ModelCard, run: RunFile) -> str:
    """Which layers these plans train too seldom for ``plan.coverage``; empty: none."""
    lacking = _lacking(plans, card, run)
    left_L = np.array(list(lacking.values()), dtype=np.int64)
    return _few(list(lacking), left_L, run.plan.coverage) if lacking else ""


def _lacking(plans: Sequence[ClientPlan], card: ModelCard, run: RunFile) -> dict[int, int]:
    counts = coverage(plans, card, run.lora.targets)
    return {layer: run.plan.coverage - count for layer, count in counts.items() if count < run.plan.coverage}


def _fleet(asked: Asked, plans: Sequence[ClientPlan], beside: Sequence[ClientPlan]) -> _Fleet:
    first = next(iter(asked.values()))
    counts = coverage([*plans, *beside], first.card, first.run.lora.targets)
    layers = list(counts)
    by_name = {plan.client: plan for plan in plans}
    groups: dict[tuple[bytes, bytes], list[str]] = {}
    for name, question in asked.items():
        if not all(by_name[name].layers[layer].trains for layer in layers):
            groups.setdefault(alike(question), []).append(name)
    menus: dict[bytes, Menu] = {}
    for (kind, _), names in groups.items():
        if kind not in menus:
            menus[kind] = Menu(Fitter(asked[names[0]]))
    most = max(LEAST, MOST_EXACT // max(1, len(groups)) - 1)
    ways = [[None, *_spread(menus[kind].ways(asked[names[0]]), most)] for (kind, _), names in groups.items()]
    rows = [
        _row(by_name[names[0]], len(names), layers, some, asked[names[0]])
        for names, some in zip(groups.values(), ways, strict=True)
    ]
    theirs = sum((row.count * row.trains_JL[0].astype(np.int64) for row in rows), np.zeros(len(layers), dtype=np.int64))
    need_L = np.maximum(0, first.run.plan.coverage - (np.array(list(counts.values()), dtype=np.int64) - theirs))
    slowest_s = max(plan.estimate.step_s for plan in plans if plan.estimate)
    return _Fleet(
        names=list(groups.values()), ways=ways, menus=[menus[kind] for kind, _ in groups], layers=layers,
        task=Task(rows=rows, need_L=need_L, floor_s=slowest_s),
    )  # fmt: skip


def _spread(ways: Sequence[Way], most: int) -> Sequence[Way]:
    """At most so many, evenly over the lowest layers and times."""
    if len(ways) <= most:
        return ways
    ordered = sorted(ways, key=lambda way: (way.mask & -way.mask, way.option.key, way.mask))
    return [ordered[index] for index in np.unique(np.linspace(0, len(ordered) - 1, most).astype(np.int64))]


def _row(plan: ClientPlan, count: int, layers: Sequence[int], ways: Sequence[Way | None], question: Question) -> Row:
    assert plan.estimate is not None
    now = worth(plan)
    some = [way for way in ways if way is not None]
    trains = [[plan.layers[layer].trains for layer in layers]]
    trains += [[bool(way.mask >> layer & 1) for layer in layers] for way in some]
    seconds = [plan.estimate.step_s, *(way.option.times.total for way in some)]
    return Row(
        count=count, trains_JL=np.array(trains, dtype=bool), seconds_J=np.array(seconds),
        loss_J=np.array([0, *(round(PARTS * (now - way.value)) for way in some)], dtype=np.int64),
    )  # fmt: skip


def worth(plan: ClientPlan) -> float:
    """``selection.value_of`` of a plan."""
    return sum(1 - 2 ** (-layer.rank / 4) for layer in plan.layers if layer.trains) / len(plan.layers)


def _chosen(task: Task) -> tuple[Picks, str]:
    """(who takes what, how that was found)."""
    if not task.rows:
        return [], "nobody has a choice"
    found, count = greedy(task), sum(len(row.seconds_J) for row in task.rows)
    if not solver_here():
        return found, f"planned one by one, since scipy is not installed ({SOLVER})"
    if count > MOST_EXACT:
        return found, f"planned one by one: {count} candidates are too many for an integer program"
    better = exact(task)
    if better is None or cost_of(task, better) > cost_of(task, found):
        return found, "planned one by one"
    return better, f"an integer program of {count} candidates"


def _with_ways(asked: Asked, fleet: _Fleet, picks: Picks) -> dict[str, Question]:
    """The first clients of a row take its first candidates."""
    changed = dict(asked)
    for names, ways, pick_J in zip(fleet.names, fleet.ways, picks, strict=True):
        taken = [way for way, count in zip(ways, pick_J.tolist(), strict=True) for _ in range(count)]
        for name, way in zip(names, taken, strict=True):
            if way is not None:
                option = way.option
                given = option.topology, option.cut, way.index, option.work.ranks
                changed[name] = replace(asked[name], way=given)
    return changed


def _few(layers: Sequence[int], left_L: Ints, least: int) -> str:
    """``layers 0–2 are trained by 0 clients, layer 3 by 1, where plan.coverage asks for 2``."""
    parts = []
    for lacks in sorted(set(left_L[left_L > 0].tolist()), reverse=True):
        some = [layer for layer, left in zip(layers, left_L.tolist(), strict=True) if left == lacks]
        parts.append(f"layer {spans(some)} by {least - lacks}")
    return f"too few clients train {', '.join(parts)}, where plan.coverage asks for {least}"


def _unreachable(asked: Asked, fleet: _Fleet, left_L: Ints, how: str, helps: Callable[[Asked], bool]) -> str:
    first = next(iter(asked.values()))
    least = first.run.plan.coverage
    ways = [who for who in (_nearest(asked, fleet, left_L),) if who]
    change = next((words for words, other in for_all(asked) if helps(other)), "")
    ways += [change] if change else []
    reached = least - int(left_L.max())
    ways.append(f"plan.coverage = {reached} (now {least})")
    return f"{_few(fleet.layers, left_L, least)} ({how}). The smallest change: {', or '.join(ways)}"


def _nearest(asked: Asked, fleet: _Fleet, left_L: Ints) -> str:
    """Who lacks least to train the layer that is short of most clients."""
    layer = fleet.layers[int(left_L.argmax())]
    found = [
        (lacks, names[0])
        for names, menu in zip(fleet.names, fleet.menus, strict=True)
        if (lacks := menu.missing(asked[names[0]], layer))
    ]
    if not found:
        return ""
    lacks, name = min(found)
    return f"free {size(lacks)} of the memory of {name}, which could then train layer {layer}"
