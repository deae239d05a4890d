"""What memory buys: of all cuts, micro-batches and ways to keep activations those that nothing else beats.

An option is on the frontier of (memory of the device, seconds of a step) when no other takes less of one and no more of
the other. It shows what a device would gain from more memory, and how little it could do with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from fedsplit.plan.options import Option
from fedsplit.plan.question import Question, priced, step_of

MOST = 12
"""Rows that are shown."""


def every_option(question: Question) -> Iterator[Option]:
    """Every cut in every number of micro-batches, layers computed once or twice, whether it fits the device or not."""
    chosen, works, _ = step_of(question)
    for topology, cut in chosen:
        for work in works:
            yield priced(question, topology, cut, [work])


def frontier(options: Sequence[Option]) -> list[Option]:
    """The options that none beats, the fastest (and largest) first; of equal ones the first as always."""
    found: list[Option] = []
    for option in sorted(options, key=lambda one: (one.memory.total, one.times.total, one.key)):
        if not found or option.times.total < found[-1].times.total:
            found.append(option)
    return found[::-1]


def shown(found: Sequence[Option], chosen: Option, most: int = MOST) -> list[Option]:
    """At most ``most`` of a frontier, evenly by ratio of memory: both ends, and ``chosen`` even if it is not on it.

    It may lie beside it by a rounding: equally fast plans are ordered by what they show the operator.
    """
    rows = [option for option in found if option != chosen]
    if len(rows) >= most:
        low, high = math.log(rows[-1].memory.total), math.log(rows[0].memory.total)
        wanted = [high + (low - high) * step / (most - 2) for step in range(most - 1)]
        rows = [min(rows, key=lambda one: abs(math.log(one.memory.total) - target)) for target in wanted]
        rows = list({id(row): row for row in rows}.values())
    return sorted([*rows, chosen], key=lambda one: (-one.memory.total, one.times.total))
