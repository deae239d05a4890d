"""All clients at once in the server's memory: where their fastest plans do not fit together, some get other ones.

Per client the candidates of every length of body and number of micro-batches that fit its device; ``coupling`` chooses
quickly, ``integer`` exactly where scipy is there and the fleet is not large. Then the server is shared again for the
choice made. Shape letters: K devices of a block, O cuts, J candidates of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from fedsplit.plan.bits import server_layer_bytes
from fedsplit.plan.coupling import Offers, Room, least_bytes, relieved
from fedsplit.plan.fleet import divided, groups, rows_of, seconds_of, unserved, with_shares
from fedsplit.plan.grid import Floats, Ints
from fedsplit.plan.integer import improved, solver_here
from fedsplit.plan.memory import served
from fedsplit.plan.prices import Shelf
from fedsplit.plan.question import Question
from fedsplit.plan.types import ClientPlan
from fedsplit.plan.work import work_of

MOST_EXACT = 3000
"""Candidates of a fleet up to which its integer program is solved."""
MOST_OFFERS = 32
"""Candidates of one client that are looked at."""
MOST_CAREFUL = 200
"""Different devices up to which dominated candidates are sorted out first."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """Equal clients and what each may do: own and server seconds, bytes, layers [first, stop), and the plan as indices
    into the shelf's cuts and numbers of micro-batches; -1: as it is."""

    names: Sequence[str]
    shelf: Shelf
    seconds_J2: Floats
    places_J5: Ints


def together(
    asked: Mapping[str, Question], plans: Mapping[str, ClientPlan], room_bytes: int, bound_s: float
) -> tuple[dict[str, Question] | None, int]:
    """(the questions with the plan that each client shall have, None where nothing fits; bytes of the choice that takes
    least). ``plans``: the fastest ones; ``bound_s``: no choice has a faster slowest step."""
    first = next(iter(asked.values()))
    room = Room(
        bytes=room_bytes,
        layer_bytes=server_layer_bytes(work_of(first.card, first.run)),
        layers=first.card.num_layers,
        total=min(1.0, len(asked) / first.clients),
    )
    rows = list(_rows(asked, plans, room.layer_bytes))
    offers = _offers(rows)
    bound_s = max(bound_s, offers.soonest(room.total))
    picks_KJ = relieved(offers, room, bound_s)
    if solver_here() and int(offers.offered.sum()) <= MOST_EXACT:
        picks_KJ = improved(offers, room, bound_s, picks_KJ)
    return None if picks_KJ is None else _shared(asked, rows, picks_KJ), least_bytes(offers, room)


def _offers(rows: Sequence[_Row]) -> Offers:
    width = max(len(row.seconds_J2) for row in rows)
    shape = len(rows), width
    seconds, places = np.zeros((*shape, 2)), np.zeros((*shape, 5), dtype=np.int64)
    seconds[..., 0] = np.inf
    for index, row in enumerate(rows):
        seconds[index, : len(row.seconds_J2)], places[index, : len(row.places_J5)] = row.seconds_J2, row.places_J5
    return Offers(
        own_KJ=seconds[..., 0], server_KJ=seconds[..., 1], bytes_KJ=places[..., 0], first_KJ=places[..., 1],
        stop_KJ=places[..., 2], count_K=np.array([len(row.names) for row in rows], dtype=np.int64),
    )  # fmt: skip


def _rows(asked: Mapping[str, Question], plans: Mapping[str, ClientPlan], layer_bytes: int) -> Iterator[_Row]:
    kinds = rows_of(asked)
    careful = sum(map(len, kinds.values())) <= MOST_CAREFUL
    for members in kinds.values():
        shelf = Shelf(question=asked[members[0][0]])
        waiting = iter(members)
        for some, _ in shelf.blocks([asked[names[0]] for names in members]):
            for question, usable, seconds, places in _candidates(shelf, some, layer_bytes, careful=careful):
                names, kept = next(waiting), np.flatnonzero(usable)
                kept = kept[_thinned(seconds[kept], places[kept], careful=careful)] if kept.size else kept
                row = _Row(names=names, shelf=shelf, seconds_J2=seconds[kept], places_J5=places[kept])
                yield row if kept.size else _as_it_is(row, question, plans[names[0]], layer_bytes)


def _candidates(
    shelf: Shelf, some: Sequence[Question], layer_bytes: int, *, careful: bool
) -> Iterator[tuple[Question, NDArray[np.bool_], Floats, Ints]]:
    """Of each question: which may be planned, their seconds and places, one a length of body and micro-batches."""
    grid, last = shelf.grid, len(shelf.grid.works) - 1
    order, starts = groups(grid)
    members = np.split(order, starts[1:])
    usable, seconds, places = [], [], []
    for index in range(last + 1) if careful else sorted({0, last}):
        block = shelf.block(some, index)
        key = np.where(block.usable_KO, block.rank_KO, np.iinfo(np.int64).max)
        columns = np.stack([group[key[:, group].argmin(axis=1)] for group in members], axis=1)
        whole = seconds_of(shelf.grid, some, block)[1]
        start, stop = grid.body.start_O[columns], grid.body.stop_O[columns]
        size = np.where(start < stop, shelf.server_bytes_MO[index][columns] - (stop - start) * layer_bytes, 0)
        usable.append(np.take_along_axis(block.usable_KO, columns, axis=1))
        taken = (np.take_along_axis(values, columns, axis=1) for values in (unserved(block), whole))
        seconds.append(np.stack(list(taken), axis=2))
        places.append(np.stack([size, start, stop, columns, np.full_like(columns, index)], axis=2))
    yield from zip(some, *(np.concatenate(part, axis=1) for part in (usable, seconds, places)), strict=True)


def _thinned(seconds_J2: Floats, places_J5: Ints, *, careful: bool) -> Ints:
    """Which candidates to look at: undominated ones, from the fewest bytes to the most, and the fastest."""
    values = np.column_stack([seconds_J2, places_J5[:, :3] * (1, -1, 1)])
    kept = np.arange(len(values))
    if careful:
        no_worse = (values[:, None] <= values[None]).all(axis=2)
        better = no_worse & ~(no_worse.T & (kept[:, None] >= kept[None]))
        kept = kept[~better.any(axis=0)]
    kept = kept[np.lexsort((seconds_J2[kept].sum(axis=1), places_J5[kept, 0]))]
    if len(kept) <= MOST_OFFERS:
        return kept
    spread = np.linspace(0, len(kept) - 1, MOST_OFFERS - 1).astype(np.int64)
    fastest = int(seconds_J2[kept].sum(axis=1).argmin())
    found: Ints = kept[np.unique(np.append(spread, fastest))]
    return found


def _as_it_is(row: _Row, question: Question, plan: ClientPlan, layer_bytes: int) -> _Row:
    """A client whose plan is not among the candidates (it trains fewer layers) keeps it."""
    cost, layers = plan.estimate, served(plan.topology, plan.cut, question.card.num_layers)
    assert cost is not None
    size = cost.server_memory_bytes - len(layers) * layer_bytes if layers else 0
    seconds = np.array([[cost.step_s - cost.server_step_s / question.share, cost.server_step_s]])
    return replace(row, seconds_J2=seconds, places_J5=np.array([[size, layers.start, layers.stop, -1, -1]]))


def _shared(asked: Mapping[str, Question], rows: Sequence[_Row], picks_KJ: Ints) -> dict[str, Question]:
    """The questions with their picks, and the server shared anew among them."""
    owners: list[list[str]] = []
    picked: dict[str, Question] = {}
    seconds: list[Floats] = []
    for row, picks_J in zip(rows, picks_KJ, strict=True):
        names = iter(row.names)
        for index in np.flatnonzero(picks_J).tolist():
            owners.append(list(islice(names, int(picks_J[index]))))
            column, micro = (int(value) for value in row.places_J5[index, 3:])
            pick = None if column < 0 else (column, micro)
            picked |= {name: replace(asked[name], pick=pick) for name in owners[-1]}
            seconds.append(_alone(row.shelf, picked[owners[-1][0]]) if pick else row.seconds_J2[index])
    width = max(map(len, seconds))
    padded = np.stack([np.pad(one, (0, width - len(one))) for one in seconds])
    found = divided([padded[:, part : part + 1] for part in range(width)], owners, picked)
    return with_shares({name: picked[name] for name in asked}, owners, found)


def _alone(shelf: Shelf, question: Question) -> Floats:
    assert question.pick is not None
    parts = seconds_of(shelf.grid, [question], shelf.block([question]))
    return np.array([float(values[0, question.pick[0]]) for values in parts])
