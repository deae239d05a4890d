"""The method that a run file names, with what the rest of the file asks of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedsplit.config.run import RunFile
from fedsplit.errors import ConfigError, Problem
from fedsplit.method.composed import composed
from fedsplit.method.record import Method, Phases
from fedsplit.method.registry import cards


def method_of(run: RunFile) -> Method | Phases:
    """The run's method; one from a file was made absolute when the run file was read.

    Raises ConfigError on an unknown name, option or part, on phases that never come, where ``plan.ranks`` or
    ``plan.slack`` allow ranks that it cannot merge, and where the file wants one model of a method that has several;
    IncompatibleParts where its parts contradict each other.
    """
    method = composed(run.method, run.train.rounds, folder=Path())
    phases = method.methods if isinstance(method, Phases) else (method,)
    if problems := [*_dense(run, method, phases), *(problem for phase in phases[:1] for problem in _apart(run, phase))]:
        raise ConfigError(problems)
    if not mixes_ranks(run) or all(phase.unequal_ranks for phase in phases):
        return method
    part = next(phase.merge_rule.name for phase in phases if not phase.unequal_ranks)
    who = f"with method {run.method.name!r}, whose merge = {part} averages A and B apart"
    instead = f"take a method that merges unequal ranks ({', '.join(_merging_unequal_ranks())})"
    if run.plan.slack == "rank":
        fix = f'set plan.slack = "steps", or {instead}'
        raise ConfigError([Problem("plan.slack", f'"rank" {who}', '"none" or "steps"', fix)])
    fix = f"leave plan.ranks empty, or {instead}"
    raise ConfigError(
        [Problem("plan.ranks", f"{list(run.plan.ranks)} {who}", f"lora.rank = {run.lora.rank} alone", fix)]
    )


def _dense(run: RunFile, method: Method | Phases, phases: Sequence[Method]) -> Iterator[Problem]:
    """Only where a mask leaves something out is there more to send."""
    if run.plan.slack == "density" and all(phase.mask.down >= 1 and phase.mask.up >= 1 for phase in phases):
        found = f'"density" with method {method.name!r}, which sends every entry'
        fix = "take method flasc, or another whose mask leaves entries out (method.but.mask)"
        yield Problem("plan.slack", found, '"none", "rank" or "steps"', fix)


def _apart(run: RunFile, method: Method) -> Iterator[Problem]:
    """What the run file may not ask for where clients or groups have factors of their own."""
    grouped = method.groups.name != "one"
    if not grouped and method.personal.name == "none":
        return
    own = "layers" if method.layers.stay else "a B"
    whose = "every group has an adapter of its own" if grouped else f"every client has {own} of its own"
    with_method = f"with method {method.name!r}"
    if run.server.shared and not method.layers.device:
        found, fix = f'"{run.server.adapters}" {with_method}', f"set it to per-client: {whose}"
        yield Problem("server.adapters", found, '"per-client"', fix)
    if run.server_data.path:
        fix = f"remove it: {whose}, and the server no model to measure; clients measure theirs"
        yield Problem("server_data.path", f"{run.server_data.path} {with_method}", "none", fix)
    if grouped and run.policy.shares_labels and run.model.task != "causal-lm" and run.model.head == "fedavg":
        fix = f'set it to false, or model.head = "frozen": {whose}, and in topology v the server has one head'
        yield Problem("policy.shares_labels", f"true {with_method}", "false", fix)


def _merging_unequal_ranks() -> list[str]:
    return [card.name for card in cards() if card.unequal_ranks]


def mixes_ranks(run: RunFile) -> bool:
    """Whether devices of one run may be given different ranks; without ``plan.slack`` larger ones are only named."""
    return run.plan.slack == "rank" or any(rank < run.lora.rank for rank in run.plan.ranks)
