"""Every layer trained by so many clients, at the smallest change: which candidate each client takes.

Row k stands for n_k equal clients, candidate j of it trains the layers a_kj, takes t_kj seconds and loses v_kj of the
plan's worth. What is sought has, in this order, the fewest layers that are trained by too few (0 where that is
possible), the shortest slowest step, the smallest loss, the fewest seconds in sum:

    short_l = max(0, need_l - Σ_kj a_kjl x_kj)   lex min   Σ_l short_l,  max(τ₀, max t_kj),  Σ v_kj x_kj,  Σ t_kj x_kj

τ₀ is the slowest step of the plans as they are: below it nothing is gained. ``exact`` solves that as integer programs
(HiGHS, as ``integer``), ``greedy`` without a library: it covers only what the program covers, but not always.
Shape letters: J candidates of a row, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsplit.plan.grid import Floats, Ints
from fedsplit.plan.integer import NODES

Flags = NDArray[np.bool_]
NEAR = 1e-6
"""Sums of seconds that are this close are the same."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Equal clients and what each may do. The first candidate is the plan as it is."""

    count: int
    trains_JL: Flags
    seconds_J: Floats
    loss_J: Ints


@dataclass(frozen=True, kw_only=True)
class Task:
    """``need_L``: clients of these rows that each layer asks for; ``floor_s``: τ₀."""

    rows: Sequence[Row]
    need_L: Ints
    floor_s: float


Picks = list[Ints]
"""Of every row, how many of its clients take each candidate (J)."""
Cost = tuple[int, float, int, float]
"""(layers missing, each as often as it is, slowest step, loss, seconds), to be compared in this order."""


def short(task: Task, picks: Picks) -> Ints:
    """How many clients are missing of each layer (L)."""
    counts = sum((pick_J @ row.trains_JL for row, pick_J in zip(task.rows, picks, strict=True)), 0 * task.need_L)
    found: Ints = np.maximum(0, task.need_L - counts)
    return found


def cost_of(task: Task, picks: Picks) -> Cost:
    """What a choice costs."""
    pairs = list(zip(task.rows, picks, strict=True))
    slowest = max((float(row.seconds_J[pick_J > 0].max()) for row, pick_J in pairs), default=0.0)
    loss = sum(int(pick_J @ row.loss_J) for row, pick_J in pairs)
    seconds = sum(float(pick_J @ row.seconds_J) for row, pick_J in pairs)
    return int(short(task, picks).sum()), max(task.floor_s, slowest), loss, seconds


def greedy(task: Task) -> Picks:
    """Client by client the change that helps: once the one that delays the slowest step least first, once the one that
    brings most layers first; then, what need not have changed goes back. The better of both."""
    return min((_repaired(task, eager=eager) for eager in (False, True)), key=lambda picks: cost_of(task, picks))


def _repaired(task: Task, *, eager: bool) -> Picks:
    rows = [index for index, row in enumerate(task.rows) for _ in range(row.count)]
    now = [0] * len(rows)
    count_L = sum((task.rows[index].trains_JL[0].astype(np.int64) for index in rows), 0 * task.need_L)
    while int(missing := np.maximum(0, task.need_L - count_L).sum()):
        best: tuple[tuple[float, ...], int, int] | None = None
        for client, index in enumerate(rows):
            if index in rows[:client] and now[client] == now[rows.index(index)] and client != rows.index(index):
                continue  # equal clients that do the same: the first one stands for them
            row = task.rows[index]
            left_JL = task.need_L - (count_L - row.trains_JL[now[client]] + row.trains_JL)
            gain_J = missing - np.maximum(0, left_JL).sum(axis=1)
            delay_J = np.maximum(0.0, row.seconds_J - task.floor_s)
            lost_J = row.loss_J - row.loss_J[now[client]]
            keys = (lost_J, -gain_J, delay_J) if not eager else (lost_J, delay_J, -gain_J)
            for candidate in np.lexsort(keys):
                if gain_J[candidate] > 0:
                    key = (*(float(part[candidate]) for part in reversed(keys)), client, int(candidate))
                    best = min(best, (key, client, int(candidate))) if best else (key, client, int(candidate))
                    break
        if best is None:
            break
        _, client, candidate = best
        row = task.rows[rows[client]]
        count_L = count_L - row.trains_JL[now[client]] + row.trains_JL[candidate]
        now[client] = candidate
    _relaxed(task, rows, now, count_L)
    return [np.bincount([now[c] for c, r in enumerate(rows) if r == index], minlength=len(row.seconds_J))
            for index, row in enumerate(task.rows)]  # fmt: skip


def _relaxed(task: Task, rows: Sequence[int], now: list[int], count_L: Ints) -> None:
    """Each client takes its cheapest candidate with which as few layers are missing."""
    missing = int(np.maximum(0, task.need_L - count_L).sum())
    for client, index in enumerate(rows):
        row = task.rows[index]
        without_L = count_L - row.trains_JL[now[client]]
        left_J = np.maximum(0, task.need_L - (without_L + row.trains_JL)).sum(axis=1)
        keys = (row.seconds_J, row.loss_J, np.maximum(task.floor_s, row.seconds_J), left_J > missing)
        now[client] = int(np.lexsort(keys)[0])
        count_L = without_L + row.trains_JL[now[client]]


def exact(task: Task) -> Picks | None:
    """The best choice; None: the solver did not get there within its nodes. Needs scipy (``integer.solver_here``)."""
    program = _Program(task)
    everything = np.ones(program.size)
    first = program.solved(np.append(0 * everything, np.ones(program.layers)), everything)
    if first is None:
        return None
    least = int(short(task, first).sum())
    times = np.unique(np.append(program.seconds[program.seconds > task.floor_s], task.floor_s))
    low, high = 0, len(times) - 1
    best = first
    while low < high:
        middle = (low + high) // 2
        found = program.solved(np.zeros(program.size + program.layers), program.seconds <= times[middle], least)
        if found is None:
            low = middle + 1
        else:
            best, high = found, middle
    usable, none = program.seconds <= times[low], np.zeros(program.layers)
    best = program.solved(np.append(program.loss, none), usable, least) or best
    loss = cost_of(task, best)[2]
    return program.solved(np.append(program.seconds / max(NEAR, float(times[-1])), none), usable, least, loss) or best


class _Program:
    """Variables: x of every candidate, row by row, then the clients missing of every layer."""

    def __init__(self, task: Task) -> None:
        from scipy import sparse

        self.task, self.layers = task, len(task.need_L)
        lengths = [len(row.seconds_J) for row in task.rows]
        self.size = sum(lengths)
        self.ends = np.cumsum(lengths)[:-1]
        self.seconds = np.concatenate([row.seconds_J for row in task.rows])
        self.loss = np.concatenate([row.loss_J for row in task.rows]).astype(np.float64)
        self.counts = np.array([row.count for row in task.rows], dtype=np.float64)
        self.most = np.repeat(self.counts, lengths)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        shape = len(lengths), self.size + self.layers
        each = sparse.csr_array((np.ones(self.size), (owner, np.arange(self.size))), shape=shape)
        trains_NL = np.concatenate([row.trains_JL for row in task.rows]).astype(np.float64)
        covered = sparse.hstack([sparse.csr_array(trains_NL.T), sparse.eye_array(self.layers)])
        self.matrix: Any = sparse.vstack([each, covered])

    def solved(
        self, cost: Floats, usable: NDArray[Any], least: int | None = None, loss: int | None = None
    ) -> Picks | None:
        """The choice of the usable candidates that costs least, at most ``least`` missing, at most this ``loss``."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        none, need = np.zeros(self.size), self.task.need_L.astype(np.float64)
        low, high = np.append(self.counts, need), np.append(self.counts, np.full(self.layers, np.inf))
        limits = [LinearConstraint(self.matrix, low, high)]
        if least is not None:
            limits.append(LinearConstraint(np.append(none, np.ones(self.layers))[None], -np.inf, least))
        if loss is not None:
            limits.append(LinearConstraint(np.append(self.loss, np.zeros(self.layers))[None], -np.inf, loss))
        most = np.append(np.where(usable, self.most, 0.0), np.maximum(0.0, need))
        found = milp(
            cost, integrality=np.ones(len(cost)), bounds=Bounds(0, most), constraints=limits,
            options={"node_limit": NODES, "mip_rel_gap": 0.0},
        )  # fmt: skip
        if found.x is None:
            return None
        whole = np.rint(found.x[: self.size]).astype(np.int64)
        picks = list(np.split(whole, self.ends))
        kept = all(int(pick_J.sum()) == row.count for row, pick_J in zip(self.task.rows, picks, strict=True))
        few = least is None or int(short(self.task, picks).sum()) <= least
        return picks if kept and few else None
