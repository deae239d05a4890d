"""The global state before round 0: first factors and head, drawn by name, so that every start of a run has the same."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from fedsplit.config.run import RunFile
from fedsplit.errors import ConfigError, Problem
from fedsplit.method.parts import Ask
from fedsplit.method.record import GlobalState, Method, Phases, every
from fedsplit.split.base import Base
from fedsplit.split.lora import read
from fedsplit.split.segment import Span, build


def first_state(base: Base, run: RunFile) -> GlobalState:
    """LoRA A as peft draws it, B zero, a classification head as the checkpoint has it or new. Loads no weights.

    :raises ConfigError: a rank of the run file is more than a module can have.
    """
    outline = build(
        base,
        Span(0, base.num_layers, embeds=True, heads=True),
        task=run.model.task,
        num_labels=len(run.model.labels) or None,
        lora=run.lora,
        weights=False,
    )
    first = GlobalState.first(*read(outline.new_params(run.run.seed), outline))
    refuse_wide(first, run.plan.ranks)
    return first


def refuse_dead(first: GlobalState, method: Method | Phases) -> None:
    """A factor that is zero and never trains would keep its module from learning: peft draws an embedding's A as zero.

    :raises ConfigError: names the module.
    """
    trains = frozenset[str]().union(*map(_trained, every(method)))
    for key, part in first.adapter.items():
        if "A" not in trains and not (part.A_RN != 0).any():
            fix = "take a method that trains A as well, or leave this module out of lora.targets"
            found = f"{key} with A = 0, which method {method.name!r} never trains"
            raise ConfigError([Problem("lora.targets", found, "modules whose resting factor is not zero", fix)])


def refuse_wide(first: GlobalState, ranks: Sequence[int] = ()) -> None:
    """B A has at most min(M, N): more components cost and add nothing. ``ranks``: ``plan.ranks``.

    :raises ConfigError: names the module.
    """
    for key, part in first.adapter.items():
        (m, n), largest = part.shape, min(part.shape)
        asked = {"lora.rank": part.rank, **{f"plan.ranks[{index}]": rank for index, rank in enumerate(ranks)}}
        wrong = [(path, rank) for path, rank in asked.items() if rank > largest]
        if wrong:
            fix = f"{key} is {m} x {n}; lower it, or choose other lora.targets"
            raise ConfigError([Problem(path, str(rank), f"at most {largest}", fix) for path, rank in wrong])


def refuse_wide_clients(first: GlobalState, method: Method | Phases, run: RunFile) -> None:
    """As ``refuse_wide``, for ranks that the method itself gives clients (``uniform(64)``, a table of ``per_device``).

    :raises ConfigError: names part, client and module.
    """
    problems: dict[tuple[str, str], Problem] = {}
    for phase, client in itertools.product(every(method), ["", *(section.name for section in run.clients)]):
        ask = Ask(round=0, client=client, seed=run.run.seed, layers=0, rank=1)
        for key, part in first.adapter.items():
            (m, n), rank, whose = part.shape, phase.ranks.of(ask, key), f" for {client}" if client else ""
            if rank > min(m, n) and (phase.ranks.name, "") not in problems:
                fix = f"{key} is {m} x {n}; lower it, or choose other lora.targets"
                at_most = f"at most {min(m, n)}"
                problem = Problem(f"method.but.ranks = {phase.ranks.name}", f"{rank}{whose}", at_most, fix)
                problems.setdefault((phase.ranks.name, client), problem)
    if problems:
        raise ConfigError(list(problems.values()))


def _trained(method: Method) -> frozenset[str]:
    """The factors that some round trains, of a method that alternates at most."""
    return frozenset().union(*(method.factors.of(round).trains for round in (0, 1)))
