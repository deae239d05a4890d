"""Prices of all candidates for many devices at once: blocks of devices × cuts, the best of each row.

``options.price`` is the readable definition, for one device and one cut; both give the same choice and the same
seconds. Shape letters: K devices of a block, M numbers of micro-batches, O cuts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedsplit.devices.profile import Link
from fedsplit.plan.explain import Rivals
from fedsplit.plan.fitted import Fitter
from fedsplit.plan.grid import Floats, Grid, Ints
from fedsplit.plan.limits import Limits, limits_of
from fedsplit.plan.memory import Memory, client_memory, factor_bytes, server_memory
from fedsplit.plan.options import HALF_STEP, SHIFT, Option, dated, ranked
from fedsplit.plan.question import Question, server_of, step_of
from fedsplit.plan.threads import share_of
from fedsplit.plan.timing import ENDS, Times, embedding_s, head_s, reached, speed
from fedsplit.plan.types import Topology

BLOCK = 64
"""Devices priced together: their arrays stay in the cache of a core."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Candidates of some devices: chosen micro-batches (an index into M), bytes, whether they fit in memory and, at
    these shares of the server, in the seconds of a round; seconds by cause."""

    micro_KO: Ints
    fits_KO: NDArray[np.bool_]
    on_time_KO: NDArray[np.bool_]
    bytes_KO: Ints
    device_KO: Floats
    up_KO: Floats
    server_KO: Floats
    down_KO: Floats
    latency_KO: Floats
    rank_KO: Ints

    @cached_property
    def usable_KO(self) -> NDArray[np.bool_]:
        """What may be planned."""
        both: NDArray[np.bool_] = self.fits_KO & self.on_time_KO
        return both

    def times(self, row: int, column: int) -> Times:
        return Times(
            device=float(self.device_KO[row, column]),
            up=float(self.up_KO[row, column]),
            server=float(self.server_KO[row, column]),
            down=float(self.down_KO[row, column]),
            latency=float(self.latency_KO[row, column]),
        )


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """The candidates of all clients that differ from ``question`` in device and share alone."""

    question: Question
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
    def _held(self) -> dict[bool, Ints]:
        return {gpu: self.grid.client_MO(accelerator=gpu) for gpu in (False, True)}

    @cached_property
    def server_bytes_MO(self) -> Ints:
        """What a candidate alone takes on the server beside the program."""
        return self.grid.server_MO(accelerator=not server_of(self.question).runtime_bytes)

    @cached_property
    def _served(self) -> tuple[Floats, NDArray[np.bool_]]:
        """(seconds of the whole server, whether it has the memory) of every candidate."""
        server, local = server_of(self.question), self.grid.is_(Topology.LOCAL)
        room = self.limits.server_bytes - server.runtime_bytes
        fits = (self.server_bytes_MO <= room) | local
        return self.grid.server_s_MO(server), fits

    def blocks(self, questions: Sequence[Question]) -> Iterator[tuple[Sequence[Question], Block]]:
        """The questions in their order, ``BLOCK`` at a time, with their prices."""
        for start in range(0, len(questions), BLOCK):
            some = questions[start : start + BLOCK]
            yield some, self.block(some)

    def block(self, questions: Sequence[Question], index: int | None = None) -> Block:
        """Prices for the devices of ``questions``; there is at least one candidate. ``index``: of the micro-batches."""
        micro, fits, taken = self._sized(questions, index)
        grid, work, columns = self.grid, self.grid.works[0], np.arange(len(self.grid.chosen))
        devices, count = [question.device for question in questions], grid.micro_M[micro]
        flops = _column([speed(device, work.dtype) for device in devices])
        bandwidth = _column([device.memory_bandwidth_bps for device in devices])
        overhead = _column([device.layer_overhead_s for device in devices])
        mine = grid.front.seconds(work, count, flops, bandwidth, overhead)
        mine = mine + grid.tail.seconds(work, count, flops, bandwidth, overhead)
        mine = mine + _column([embedding_s(work, device) for device in devices])
        mine = mine + ENDS * count * overhead
        head = _column([head_s(work, device) for device in devices])
        mine = mine + np.where(grid.is_(Topology.V), 0.0, head)
        mine = mine / _column([_slower(question, work.dtype) for question in questions])
        links, (up, down) = [reached(one.device, server_of(one), one.link_share) for one in questions], grid.bytes_O
        messages = np.where(grid.is_(Topology.LOCAL), 0, grid.crossings_O * count + 2)
        ups, downs = up / _column([link.up_bps for link in links]), down / _column([link.down_bps for link in links])
        server = self._served[0][micro, columns] / _column([question.share for question in questions])
        latency = messages * _column([link.latency_s for link in links])
        total = mine + ups + server + downs + latency
        return Block(
            micro_KO=micro, fits_KO=fits, on_time_KO=self._on_time(total, links), bytes_KO=taken, device_KO=mine,
            up_KO=ups, server_KO=server, down_KO=downs, latency_KO=latency,
            rank_KO=(np.ascontiguousarray(total).view(np.int64) + HALF_STEP) >> SHIFT,
        )  # fmt: skip

    def _on_time(self, total_KO: Floats, links: Sequence[Link]) -> NDArray[np.bool_]:
        """Whether a round takes no longer than it may (``Limits.planned_s``)."""
        if not self.limits.dated:
            return np.broadcast_to(np.True_, total_KO.shape)
        up, down = self._factors
        moving = up / _column([link.up_bps for link in links]) + down / _column([link.down_bps for link in links])
        on_time: NDArray[np.bool_] = self.limits.steps * total_KO + moving <= self.limits.round_s
        return on_time

    def _sized(self, questions: Sequence[Question], index: int | None) -> tuple[Ints, NDArray[np.bool_], Ints]:
        """(fewest micro-batches that fit, else the most; whether they fit; bytes on the device)."""
        micro, fits, taken = [], [], []
        columns, last = np.arange(len(self.grid.chosen)), len(self.grid.works) - 1
        for question in questions:
            device = question.device
            held_MO = self._held[not device.runtime_bytes]
            fit_MO = (held_MO <= device.budget_bytes - device.runtime_bytes) & self._served[1]
            if index is not None:
                fit_MO &= (np.arange(last + 1) == index)[:, None]
            if question.pick is not None:
                column, pieces = question.pick
                fit_MO[:, column] &= np.arange(last + 1) == pieces
            any_O = fit_MO.any(axis=0)
            pick_O = np.where(any_O, fit_MO.argmax(axis=0), last)
            micro.append(pick_O)
            fits.append(any_O)
            taken.append(held_MO[pick_O, columns] + device.runtime_bytes)
        return np.stack(micro), np.stack(fits), np.stack(taken)

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


_NEVER = np.iinfo(np.int64).max


def _column(values: Sequence[float]) -> Floats:
    return np.array(values, dtype=np.float64)[:, None]


def _slower(question: Question, dtype: str) -> float:
    return share_of(question.device, dtype, question.fixed.threads if question.fixed else 0)


def anything_fits(question: Question) -> bool:
    """Whether this client has a plan at all."""
    shelf = Shelf(question=question)
    if not shelf.grid.chosen:
        return False
    whole = bool(shelf.block([question]).usable_KO.any())
    return whole or (question.run.plan.layers == "fit" and Fitter(question).any(question))
