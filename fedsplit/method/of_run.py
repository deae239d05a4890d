"""The method that a run file names, with what the rest of the file asks of it."""

from __future__ import annotations

from pathlib import Path

from fedsplit.config.run import RunFile
from fedsplit.errors import ConfigError, Problem
from fedsplit.method.record import Method, Phases
from fedsplit.method.registry import build


def method_of(run: RunFile) -> Method | Phases:
    """The run's method; one from a file was made absolute when the run file was read.

    Raises ConfigError on an unknown name or option, and where ``plan.ranks`` allows ranks that it cannot merge;
    IncompatibleParts where its parts contradict each other.
    """
    method = build(run.method.name, run.method.options, folder=Path())
    phases = method.methods if isinstance(method, Phases) else (method,)
    if mixes_ranks(run) and not all(phase.unequal_ranks for phase in phases):
        fix = "leave plan.ranks empty, or take a method that merges unequal ranks (fedsplit methods)"
        found = f"{list(run.plan.ranks)} with method {run.method.name!r}"
        raise ConfigError([Problem("plan.ranks", found, f"lora.rank = {run.lora.rank} alone", fix)])
    return method


def mixes_ranks(run: RunFile) -> bool:
    """Whether devices of one run may be given different ranks; larger ones than the run's are only named."""
    return any(rank < run.lora.rank for rank in run.plan.ranks)
