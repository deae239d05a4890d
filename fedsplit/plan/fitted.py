"""``[plan] layers = "fit"``: where no plan that trains every layer fits a device, the most valuable one that does.

All layers at the run's rank come first, whatever the topology. Only where none of those fits are layers frozen, or
given a smaller rank of ``plan.ranks``: of all cuts and micro-batches the one with the largest value is taken, the sum
over the layers that train of imp · (1 − 2^(−R/4)); ties go to the fastest step, then as always. A device that must be
done in time (``policy.round_s``) gives up adapters until it is.

A longer body asks no more of the client and trains no less, so the cuts of a topology are tried from the longest body
on, and only as long as they reach the best value found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from fedsplit.plan.bits import widths
from fedsplit.plan.knapsack import Knapsack, Segment
from fedsplit.plan.options import ORDER, Option
from fedsplit.plan.question import Question, priced, step_of
from fedsplit.plan.selection import chosen_bits, chosen_ranks, segment_of, server_ranks, value_of
from fedsplit.plan.types import Cut, Topology
from fedsplit.plan.work import Work

EQUAL = 1e-9
"""Values closer than this are the same: the knapsack counts in steps of 2^-40."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The chosen candidate, its layers as they were weighed, its value, that of training everything, cuts weighed.
    ``why``: it was chosen, where not for its value."""

    option: Option
    segment: Segment
    value: float
    full: float
    weighed: int = 1
    why: str = ""

    @property
    def key(self) -> tuple[int, tuple[int, ...]]:
        """The most valuable first, then the fastest."""
        return -round(self.value / EQUAL), self.option.key


def allowed_ranks(question: Question) -> tuple[int, ...]:
    """The ranks that a layer may be given here, upwards: the run's, and smaller ones that the run file names."""
    run = question.run
    smaller = {rank for rank in run.plan.ranks if run.policy.min_rank <= rank < run.lora.rank}
    return (*sorted(smaller), run.lora.rank)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cut in one number of micro-batches. ``there``: what the server's layers are worth."""

    topology: Topology
    cut: Cut
    work: Work
    knapsack: Knapsack
    there: float

    def values(self, budget_bytes: int) -> list[tuple[float, int]]:
        """(value, lowest layer that trains) of everything that memory allows, the most valuable and deepest first."""
        found = [(self.knapsack.value(low, budget_bytes), low) for low in range(len(self.knapsack.segment.floor))]
        return sorted(((value + self.there, low) for value, low in found if value is not None), reverse=True)

    def option(self, question: Question, lowest: int, budget_bytes: int) -> Option:
        """The candidate that trains the most valuable layers from ``lowest`` on within the budget."""
        items = self.knapsack.items(lowest, budget_bytes)
        ranks = chosen_ranks(self.work, self.topology, self.cut, items)
        bits = chosen_bits(self.work, self.topology, self.cut, items)
        return priced(question, self.topology, self.cut, [replace(self.work, ranks=ranks, layer_bits=bits)])


class Fitter:
    """Finds it for all clients that differ in device and share alone. Tables are kept: they serve every budget.

    ``only``: the topology to look at; None: all that may be planned.
    """

    def __init__(self, question: Question, *, only: Topology | None = None) -> None:
        chosen, self.works, _ = step_of(question)
        chosen = [choice for choice in chosen if only in (None, choice[0])]
        self.ranks, self.bits = allowed_ranks(question), widths(question.run)
        self.rows = [list(row) for _, row in groupby(sorted(chosen, key=_longest_body), key=_front)]
        self._cells: dict[tuple[Topology, Cut, int, bool], Cell] = {}

    def best(self, question: Question) -> Fitted | None:
        """None: nothing fits that trains anything."""
        found: Fitted | None = None
        weighed, done = 0, set[Topology]()
        for row in self.rows:
            for place, choice in enumerate(row if row[0][0] not in done else ()):
                most = self._most(question, choice)
                if most is None or (found is not None and most < found.value - EQUAL):
                    # What does not reach it with the longest body does not with a deeper front either.
                    done |= set() if place else {row[0][0]}
                    break
                weighed += 1
                found = min((one for one in (found, *self._at(question, choice)) if one), key=_key, default=None)
        return None if found is None else replace(found, weighed=weighed)

    def given(self, question: Question) -> Fitted:
        """The way that was chosen for the fleet's sake (``cover``)."""
        assert question.way is not None
        topology, cut, index, ranks = question.way
        work = self.works[index]
        option = priced(question, topology, cut, [replace(work, ranks=ranks)])
        segment = segment_of(work, topology, cut, question.device, self.ranks)
        why = f"so that every layer has its {question.run.plan.coverage} clients (plan.coverage)"
        return Fitted(
            option=option, segment=segment, value=value_of(option.work), full=value_of(self.works[0]), why=why
        )

    def any(self, question: Question) -> bool:
        """Whether there is a best at all."""
        for row in self.rows:
            for choice in row:
                if self._most(question, choice) is None:
                    break
                if next(self._at(question, choice), None) is not None:
                    return True
        return False

    def cell(self, question: Question, choice: tuple[Topology, Cut], index: int) -> Cell:
        """A cut in the ``index``-th number of micro-batches."""
        topology, cut = choice
        key = topology, cut, index, bool(question.device.runtime_bytes)
        if key not in self._cells:
            work = self.works[index]
            self._cells[key] = Cell(
                topology=topology,
                cut=cut,
                work=work,
                knapsack=Knapsack(segment_of(work, topology, cut, question.device, self.ranks, bits=self.bits)),
                there=value_of(replace(work, ranks=server_ranks(work, topology, cut))),
            )
        return self._cells[key]

    def _most(self, question: Question, choice: tuple[Topology, Cut]) -> float | None:
        """The largest value that memory alone allows at this cut, in any number of micro-batches."""
        cells = [self.cell(question, choice, index) for index in range(len(self.works))]
        values = [cell.values(room_bytes(question))[:1] for cell in cells]
        return max((value for some in values for value, _ in some), default=None)

    def _at(self, question: Question, choice: tuple[Topology, Cut]) -> Iterator[Fitted]:
        """The best of this cut in each number of micro-batches."""
        for index in range(len(self.works)):
            cell = self.cell(question, choice, index)
            most = 0.0
            for value, lowest in cell.values(room_bytes(question)):
                if value < most - EQUAL:
                    break
                option = in_time(cell, question, lowest)
                if option is not None:
                    one = Fitted(
                        option=option,
                        segment=cell.knapsack.segment,
                        value=value_of(option.work),
                        full=value_of(self.works[0]),
                    )
                    most = max(most, one.value)
                    yield one


def in_time(cell: Cell, question: Question, lowest: int) -> Option | None:
    """The most valuable candidate from ``lowest`` on that fits and is done in time; None: there is none."""
    budget = room_bytes(question)
    option = cell.option(question, lowest, budget)
    if not option.late_s or option.short_bytes:
        return option if option.fits else None
    found: Option | None = None
    # Fewer bytes of adapters compute and travel faster: halve towards the most that are in time.
    start, unit = cell.knapsack.least_bytes(lowest), cell.knapsack.unit
    least, most = 0, (budget - start) // unit
    while least <= most:
        middle = (least + most) // 2
        option = cell.option(question, lowest, start + middle * unit)
        if option.late_s:
            most = middle - 1
        else:
            found, least = option, middle + 1
    return found


def room_bytes(question: Question) -> int:
    """What a plan may fill on the device beside the program itself."""
    return question.device.budget_bytes - question.device.runtime_bytes


def _longest_body(choice: tuple[Topology, Cut]) -> tuple[int, int, int]:
    topology, cut = choice
    return ORDER[topology], cut.c1, -cut.c2


def _front(choice: tuple[Topology, Cut]) -> tuple[Topology, int]:
    return choice[0], choice[1].c1


def _key(found: Fitted) -> tuple[int, tuple[int, ...]]:
    return found.key
