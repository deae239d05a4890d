"""The method that a run file names, with what the rest of the file asks of it."""

from __future__ import annotations

from pathlib import Path

from fedsplit.config.run import RunFile
from fedsplit.errors import ConfigError, Problem
from fedsplit.method.composed import composed
from fedsplit.method.record import Method, Phases


def method_of(run: RunFile) -> Method | Phases:
    """The run's method; one from a file was made absolute when the run file was read.

    Raises ConfigError on an unknown name, option or part, on phases that never come, and where ``plan.ranks`` or
    ``plan.slack`` allow ranks that it cannot merge; IncompatibleParts where its parts contradict each other.
    """
    method = composed(run.method, run.train.rounds, folder=Path())
    phases = method.methods if isinstance(method, Phases) else (method,)
    if not mixes_ranks(run) or all(phase.unequal_ranks for phase in phases):
        return method
    if run.plan.slack == "rank":
        fix = 'set plan.slack = "steps", or take a method that merges unequal ranks (fedsplit methods)'
        found = f'"rank" with method {run.method.name!r}, which averages A and B apart'
        raise ConfigError([Problem("plan.slack", found, '"none" or "steps"', fix)])
    fix = "leave plan.ranks empty, or take a method that merges unequal ranks (fedsplit methods)"
    found = f"{list(run.plan.ranks)} with method {run.method.name!r}"
    raise ConfigError([Problem("plan.ranks", found, f"lora.rank = {run.lora.rank} alone", fix)])


def mixes_ranks(run: RunFile) -> bool:
    """Whether devices of one run may be given different ranks; without ``plan.slack`` larger ones are only named."""
    return run.plan.slack == "rank" or any(rank < run.lora.rank for rank in run.plan.ranks)
