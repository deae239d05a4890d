"""What a method costs with a given model: the formula of ``Method.traffic`` over the modules that a card counts.

Numbers are scalars and, in float32, bytes of one client that trains every layer. No weights are read.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import NamedTuple, cast

from fedsplit.cli.fit import TASKS
from fedsplit.cli.plan import config_file, read_config
from fedsplit.config.run import Task
from fedsplit.errors import ConfigError, Problem
from fedsplit.method.record import Method, Phases
from fedsplit.plan.card import ModelCard, card, check_targets


class Cost(NamedTuple):
    """Scalars of one client in one round: down, up, and what each client of the round adds to the folds that come down.

    ``head`` scalars of the task head travel either way besides."""

    rounds: str
    down: int
    up: int
    fold: int
    head: int


def costs(method: Method | Phases, model: str, rank: int, targets: tuple[str, ...]) -> tuple[Cost, ...]:
    """A row for each kind of round. Raises ConfigError on an unknown model or target, and a rank that does not fit."""
    config = config_file(model, Path())
    read = read_config(config)
    found = card(read, cast("Task", TASKS.get(str(read.get("model_type")), "causal-lm")), source=str(config))
    check_targets(found, targets)
    shapes = [(linear.out, linear.inp) for layer in range(found.num_layers) for linear in found.adapted(targets, layer)]
    largest = min(min(shape) for shape in shapes)
    if not 1 <= rank <= largest:
        raise ConfigError([Problem("--rank", str(rank), f"1 to {largest}, the smaller side of the smallest module")])
    phases = zip(method.starts, method.methods, strict=True) if isinstance(method, Phases) else ((0, method),)
    rows = [row for start, phase in phases for row in _rows(phase, start, shapes, rank, found)]
    return tuple(rows)


def _rows(method: Method, start: int, shapes: list[tuple[int, int]], rank: int, model: ModelCard) -> list[Cost]:
    """One row; two where a method alternates."""
    found = []
    for round in (start, start + 1):
        traffic = [method.traffic(m, n, rank, round) for m, n in shapes]
        fold = sum(rank * (m + n) for m, n in shapes) if method.mutates_base else 0
        # Which layers are shared is not known; they are taken to be alike.
        shared = ceil(method.layers.share * model.num_layers)
        down, up = (sum(counts) * shared // model.num_layers for counts in zip(*traffic, strict=True))
        counts = down, up, fold, model.head_trained
        found.append(counts)
    if found[0] == found[1]:
        return [Cost(f"from round {start}" if start else "every round", *found[0])]
    return [Cost(f"round {start + i}, {start + i + 2}, ...", *counts) for i, counts in enumerate(found)]
