"""Prices of all candidates for many devices at once: blocks of devices × cuts, the best of each row.

``options.price`` is the readable definition, for one device and one cut; both give the same choice and the same
seconds. A variant is a number of micro-batches and whether layers are computed twice. Shape letters: K devices of a
block, V variants, O cuts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedsplit.devices.profile import Link
from fedsplit.plan.explain import Rivals
from fedsplit.plan.factors import factor_bytes
from fedsplit.plan.fitted import Fitter
from fedsplit.plan.grid import Floats, Grid, Ints
from fedsplit.plan.limits import Limits, limits_of
from fedsplit.plan.memory import Memory, client_memory, server_memory
from fedsplit.plan.options import HALF_STEP, SHIFT, Option, dated, ranked
from fedsplit.plan.pace import Cuts, Pace, Seconds, column, cuts_of, links_of, pace_of, seconds
from fedsplit.plan.question import Question, server_of, step_of
from fedsplit.plan.timing import Times, reached
from fedsplit.plan.types import Topology

BLOCK = 64
"""Devices priced together: their arrays stay in the cache of a core."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Candidates of some devices: chosen variant (an index into ``works``), bytes, whether they fit in memory and, at
    these shares of the server, in the seconds of a round; seconds by cause."""

    micro_KO: Ints
    fits_KO: NDArray[np.bool_]
    on_time_KO: NDArray[np.bool_]
    bytes_KO: Ints
    seconds: Seconds
    rank_KO: Ints

    @cached_property
    def usable_KO(self) -> NDArray[np.bool_]:
        """What may be planned."""
        both: NDArray[np.bool_] = self.fits_KO & self.on_time_KO
        return both

    def times(self, row: int, column: int) -> Times:
        found, at = self.seconds, (row, column)
        return Times(
            device=float(found.device_KO[at]),
            up=float(found.up_KO[at]),
            server=float(found.server_KO[at]),
            down=float(found.down_KO[at]),
            latency=float(found.latency_KO[at]),
            overlap=float(found.overlap_KO[at]),
        )


class _Best:
    """The variant with the lowest score so far, of every device and cut."""

    def __init__(self) -> None:
        self.seconds: Seconds
        self.variant_KO: Ints
        self._score_KO: Floats | None = None

    def take(self, found: Seconds, score_KO: Floats, variant_KO: Ints) -> None:
        """Keep what is better than before; among equals the earlier one stays."""
        if self._score_KO is None:
            self.seconds, self.variant_KO, self._score_KO = found, variant_KO, score_KO
            return
        better = score_KO < self._score_KO
        self.seconds = self.seconds.merged(found, better)
        self.variant_KO = np.where(better, variant_KO, self.variant_KO)
        self._score_KO = np.minimum(score_KO, self._score_KO)


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """The candidates of all clients that differ from ``question`` in device and share alone."""

    question: Question
    _kept: list[tuple[Sequence[Question], Block]] = field(default_factory=list)
    _memories: dict[tuple[int, int, int], tuple[Memory, Memory]] = field(default_factory=dict)

    @cached_property
    def _asked(self) -> tuple[Grid, tuple[str, ...]]:
        chosen, works, why_not = step_of(self.question)
        return Grid(works=works, chosen=sorted(chosen, key=ranked)), tuple(why_not)

    @property
    def grid(self) -> Grid:
        return self._asked[0]

    @property
    def why_not(self) -> tuple[str, ...]:
        return self._asked[1]

    @cached_property
    def limits(self) -> Limits:
        """What no plan may exceed."""
        return limits_of(self.question.run, server_of(self.question))

    @cached_property
    def _factors(self) -> tuple[Ints, Ints]:
        """(up, down) bytes of every candidate's factors, once a round."""
        work, own_head = self.grid.works[0], self.limits.own_head
        both = [factor_bytes(work, topology, cut, own_head=own_head) for topology, cut in self.grid.chosen]
        return np.array([up for up, _ in both]), np.array([down for _, down in both])

    @cached_property
    def _parts(self) -> list[tuple[Topology, slice]]:
        """Where each topology's candidates lie: they follow one another."""
        found = []
        for topology in Topology:
            here = np.flatnonzero(self.grid.is_(topology))
            if here.size:
                found.append((topology, slice(int(here[0]), int(here[-1]) + 1)))
        return found

    @cached_property
    def _held_by(self) -> dict[bool, Ints]:
        return {}

    def _held(self, accelerator: bool) -> Ints:
        if accelerator not in self._held_by:
            self._held_by[accelerator] = self.grid.client_MO(accelerator=accelerator)
        return self._held_by[accelerator]

    @cached_property
    def server_bytes_MO(self) -> Ints:
        """What a candidate alone takes on the server beside the program."""
        return self.grid.server_MO(accelerator=not server_of(self.question).runtime_bytes)

    @cached_property
    def _served(self) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """(seconds of the whole server there and back, whether it has the memory) of every variant and candidate."""
        server, local = server_of(self.question), self.grid.is_(Topology.LOCAL)
        room = self.limits.server_bytes - server.runtime_bytes
        fits = (self.server_bytes_MO <= room) | local
        return *self.grid.served_MO(server), fits

    def blocks(
        self, questions: Sequence[Question], *, serial: bool = False
    ) -> Iterator[tuple[Sequence[Question], Block]]:
        """The questions in their order, ``BLOCK`` at a time, with their prices."""
        for start in range(0, len(questions), BLOCK):
            some = questions[start : start + BLOCK]
            kept = None if serial else next((block for whose, block in self._kept if _same(whose, some)), None)
            yield some, kept or self.block(some, serial=serial)

    def keep(self, blocks: Iterable[tuple[Sequence[Question], Block]]) -> None:
        """Blocks that will be asked for again; instead of what was kept before."""
        self._kept[:] = blocks

    def block(self, questions: Sequence[Question], index: int | None = None, *, serial: bool = False) -> Block:
        """Prices for the devices of ``questions``; there is at least one candidate. ``index``: of one variant alone;
        ``serial``: micro-batches one after the other, as always without ``plan.overlap``."""
        alone = serial or not self.question.run.plan.overlap
        variant_KO, fits_KO, fits_VKO = self._sized(questions, index)
        pace, cuts, columns = pace_of(questions, self.grid.works[0]), self._cuts, np.arange(len(self.grid.chosen))
        there, back, _ = self._served
        served = there[variant_KO, columns], back[variant_KO, columns]
        micro_KO = self.grid.micro_M[variant_KO]
        found = seconds(pace.legs(cuts, micro_KO, self._twice_V[variant_KO], served), cuts, micro_KO, serial=alone)
        if len(self.grid.works) > 1 and index is None:
            self._refine(pace, found, variant_KO, fits_VKO, serial=alone)
        return self._block(questions, found, variant_KO, fits_KO)

    def _refine(
        self, pace: Pace, found: Seconds, variant_KO: Ints, fits_VKO: NDArray[np.bool_], *, serial: bool
    ) -> None:
        """Put the fastest variant in the place of the first that fits, at every cut that may then be the fastest.

        Where a round has a limit, at every cut: the fastest step may have factors that come too late.
        """
        least_KO, fits_KO = pace.least(self._cuts, found, self._least_served), fits_VKO.any(axis=0)
        best_K = np.where(fits_KO, found.total_KO, np.inf).min(axis=1, initial=np.inf, keepdims=True)
        # One after the other, nothing is faster than one micro-batch whose layers are computed once.
        may_KO = fits_KO if self.limits.dated else fits_KO & (least_KO <= best_K)
        rows, columns = np.nonzero(may_KO & ((variant_KO > 0) | (not serial)))
        at = rows.astype(np.int64), columns.astype(np.int64)
        if not at[0].size:
            return
        best = _Best()
        some, cuts, fits_VN = pace.at(at[0]), self._cuts.at(at[1]), fits_VKO[:, at[0], at[1]]
        for micro, indices in self._counts:
            here_N = fits_VN[indices].any(axis=0)
            if not here_N.any():
                continue
            # A forward more is never faster: layers are computed twice only where that alone fits.
            index_N = np.where(fits_VN[indices[0]], indices[0], indices[-1])
            served = self._served[0][indices[0], at[1]], self._served[1][indices[0], at[1]]
            made = seconds(some.legs(cuts, micro, self._twice_V[index_N], served), cuts, micro, serial=serial)
            best.take(made, np.where(here_N, made.total_KO, np.inf), index_N)
        found.put(at, best.seconds)
        variant_KO[at] = best.variant_KO

    @cached_property
    def _cuts(self) -> Cuts:
        return cuts_of(self.grid)

    @cached_property
    def _twice_V(self) -> NDArray[np.bool_]:
        return np.array([work.twice for work in self.grid.works])

    @cached_property
    def _least_served(self) -> tuple[Floats, Floats]:
        """The server's seconds of the fewest micro-batches (O)."""
        fewest = int(self.grid.micro_M.argmin())
        return self._served[0][fewest], self._served[1][fewest]

    def _block(
        self, questions: Sequence[Question], found: Seconds, variant_KO: Ints, fits_KO: NDArray[np.bool_]
    ) -> Block:
        columns = np.arange(len(self.grid.chosen))
        held = [self._held(not question.device.runtime_bytes) for question in questions]
        taken = [
            held_VO[variant_O, columns] + question.device.runtime_bytes
            for held_VO, variant_O, question in zip(held, variant_KO, questions, strict=True)
        ]
        return Block(
            micro_KO=variant_KO, fits_KO=fits_KO, on_time_KO=self._on_time(found.total_KO, links_of(questions)),
            bytes_KO=np.stack(taken), seconds=found,
            rank_KO=(np.ascontiguousarray(found.total_KO).view(np.int64) + HALF_STEP) >> SHIFT,
        )  # fmt: skip

    @cached_property
    def _counts(self) -> list[tuple[int, list[int]]]:
        """(micro-batches, the variants of so many: what they keep, everything first) upwards."""
        found: dict[int, list[int]] = {}
        for index, work in enumerate(self.grid.works):
            found.setdefault(work.micro_batches, []).append(index)
        return sorted(found.items())

    def _on_time(self, total_KO: Floats, links: Sequence[Link]) -> NDArray[np.bool_]:
        """Whether a round takes no longer than it may (``Limits.planned_s``)."""
        if not self.limits.dated:
            return np.broadcast_to(np.True_, total_KO.shape)
        up, down = self._factors
        moving = up / column([link.up_bps for link in links]) + down / column([link.down_bps for link in links])
        on_time: NDArray[np.bool_] = self.limits.steps * total_KO + moving <= self.limits.round_s
        return on_time

    def _sized(
        self, questions: Sequence[Question], only: int | None
    ) -> tuple[Ints, NDArray[np.bool_], NDArray[np.bool_]]:
        """(first variant that fits, else the last one; whether any fits; which fit: variants × devices × cuts)."""
        fits_VKO = np.empty((len(self.grid.works), len(questions), len(self.grid.chosen)), dtype=bool)
        for row, question in enumerate(questions):
            device = question.device
            room = device.budget_bytes - device.runtime_bytes
            np.less_equal(self._held(not device.runtime_bytes), room, out=fits_VKO[:, row])
        fits_VKO &= self._served[2][:, None]
        if only is not None:
            fits_VKO[np.arange(len(fits_VKO)) != only] = False
        for row, question in enumerate(questions):
            if question.pick is not None:
                column, variant = question.pick
                fits_VKO[np.arange(len(fits_VKO)) != variant, row, column] = False
        fits_KO: NDArray[np.bool_] = np.asarray(fits_VKO.any(axis=0))
        first_KO = np.where(fits_KO, fits_VKO.argmax(axis=0), len(fits_VKO) - 1)
        return first_KO, fits_KO, fits_VKO

    def best(self, block: Block, row: int) -> int:
        """The fastest candidate that fits, the one that shows the operator least among equals; -1: none fits."""
        fits_O = block.usable_KO[row]
        if not fits_O.any():
            return -1
        return int(np.where(fits_O, block.rank_KO[row], _NEVER).argmin())

    def option(self, question: Question, block: Block, row: int, column: int) -> Option:
        """The candidate as a record, equal to what ``options.price`` makes of it."""
        device, server = question.device, server_of(question)
        topology, cut = self.grid.chosen[column]
        index = int(block.micro_KO[row, column])
        work = self.grid.works[index]
        key = index, column, device.runtime_bytes
        if key not in self._memories:
            live, theirs = client_memory(work, topology, cut), server_memory(work, topology, cut)
            self._memories[key] = live.with_holes(work, device), theirs.with_holes(work, server)
        memory, remote = self._memories[key]
        short, of = int(block.bytes_KO[row, column]) - device.budget_bytes, "memory of the device"
        if short <= 0:
            over = remote.total - self.limits.server_bytes if topology is not Topology.LOCAL else 0
            short, of = (over, self.limits.server_rule) if over > 0 else (0, "")
        option = Option(
            topology=topology, cut=cut, work=work, memory=memory, server=remote, times=block.times(row, column),
            short_bytes=short, short_of=of,
        )  # fmt: skip
        return dated(option, self.limits, reached(device, server, question.link_share))

    def rivals(self, question: Question, block: Block, row: int, best: int) -> Rivals:
        """What the chosen candidate is compared with; -1: none of them was."""
        rank_O, fits_O, taken_O = block.rank_KO[row], block.usable_KO[row], block.bytes_KO[row]
        own = self.grid.chosen[best][0] if best >= 0 else None
        others = [(topology, part) for topology, part in self._parts if topology is not own]
        fastest = [part.start + int(rank_O[part].argmin()) for _, part in others]
        short = int(np.where(fits_O, _NEVER, rank_O).argmin())
        beats = best < 0 or (not fits_O[short] and (int(rank_O[short]), short) < (int(rank_O[best]), best))
        return Rivals(
            fitting=int(fits_O.sum()),
            short_of=self.option(question, block, row, short).short_of if beats else "",
            least=tuple((topology, int(taken_O[part].min())) for topology, part in others),
            fastest=tuple(
                self.option(question, block, row, column)
                for column in sorted(fastest, key=lambda column: (int(rank_O[column]), column))
            ),
        )


def _same(some: Sequence[Question], others: Sequence[Question]) -> bool:
    """Whether these are the very same questions, not merely equal ones: quick to tell."""
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


_NEVER = np.iinfo(np.int64).max


def anything_fits(question: Question) -> bool:
    """Whether this client has a plan at all."""
    shelf = Shelf(question=question)
    if not shelf.grid.chosen:
        return False
    whole = bool(shelf.block([question]).usable_KO.any())
    return whole or (question.run.plan.layers == "fit" and Fitter(question).any(question))
