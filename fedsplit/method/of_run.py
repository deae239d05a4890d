"""The method that a run file names, with what the rest of the file asks of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedsplit.config.run import RunFile
from fedsplit.errors import ConfigError, Problem
from fedsplit.method.composed import composed
from fedsplit.method.record import Method, Phases


def method_of(run: RunFile) -> Method | Phases:
    """The run's method; one from a file was made absolute when the run file was read.

    Raises ConfigError on an unknown name, option or part, on phases that never come, where ``plan.ranks`` or
    ``plan.slack`` allow ranks that it cannot merge, and where the file wants one model of a method that has several;
    IncompatibleParts where its parts contradict each other.
    """
    method = composed(run.method, run.train.rounds, folder=Path())
    phases = method.methods if isinstance(method, Phases) else (method,)
    if problems := [problem for phase in phases[:1] for problem in _apart(run, phase)]:
        raise ConfigError(problems)
    if not mixes_ranks(run) or all(phase.unequal_ranks for phase in phases):
        return method
    if run.plan.slack == "rank":
        fix = 'set plan.slack = "steps", or take a method that merges unequal ranks (fedsplit methods)'
        found = f'"rank" with method {run.method.name!r}, which averages A and B apart'
        raise ConfigError([Problem("plan.slack", found, '"none" or "steps"', fix)])
    fix = "leave plan.ranks empty, or take a method that merges unequal ranks (fedsplit methods)"
    found = f"{list(run.plan.ranks)} with method {run.method.name!r}"
    raise ConfigError([Problem("plan.ranks", found, f"lora.rank = {run.lora.rank} alone", fix)])


def _apart(run: RunFile, method: Method) -> Iterator[Problem]:
    """What the run file may not ask for where clients or groups have factors of their own."""
    grouped = method.groups.name != "one"
    if not grouped and method.personal.name == "none":
        return
    whose = "every group has an adapter of its own" if grouped else "every client has a B of its own"
    with_method = f"with method {method.name!r}"
    if run.server.shared:
        found, fix = f'"{run.server.adapters}" {with_method}', f"set it to per-client: {whose}"
        yield Problem("server.adapters", found, '"per-client"', fix)
    if run.server_data.path:
        fix = f"remove it: {whose}, and the server no model to measure; clients measure theirs"
        yield Problem("server_data.path", f"{run.server_data.path} {with_method}", "none", fix)
    if grouped and run.policy.shares_labels and run.model.task != "causal-lm" and run.model.head == "fedavg":
        fix = f'set it to false, or model.head = "frozen": {whose}, and in topology v the server has one head'
        yield Problem("policy.shares_labels", f"true {with_method}", "false", fix)


def mixes_ranks(run: RunFile) -> bool:
    """Whether devices of one run may be given different ranks; without ``plan.slack`` larger ones are only named."""
    return run.plan.slack == "rank" or any(rank < run.lora.rank for rank in run.plan.ranks)
