"""Nothing fits: say what binds, which plan comes nearest, and the smallest change that would make one fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import msgspec

from fedsplit.config.run import RunFile
from fedsplit.devices.units import size
from fedsplit.plan.explain import MEMORY
from fedsplit.plan.options import Option
from fedsplit.plan.prices import anything_fits
from fedsplit.plan.question import Question


def nothing_fits(name: str, question: Question, options: Sequence[Option], why_not: Sequence[str]) -> str:
    """The message of the PlanError."""
    change = _smallest_change(question)
    if not options:
        rules = "; ".join(why_not) or "the run file fixes a cut that this model does not have"
        advice = f"; the smallest change: {change}" if change else ""
        return f"no plan for {name}: {rules} (binding: policy){advice}"
    near = min(options, key=lambda option: (option.short_bytes, option.key))
    if near.short_of == "memory of the server":
        need = f"the server is short of {size(near.short_bytes)} for it"
    else:
        need = f"it needs {size(near.memory.total)} of {size(question.device.budget_bytes)} ({_shares(near)})"
    ways = [change] if change else []
    ways.append(f"free {size(near.short_bytes)} of {near.short_of.removeprefix('memory of ')}'s memory")
    rules = f" Not considered: {'; '.join(why_not)}." if why_not else ""
    return (
        f"no plan for {name} fits (binding: {near.short_of}). Nearest is {near.name}: {need}. "
        f"The smallest change that helps: {', or '.join(ways)}.{rules}"
    )


def _shares(option: Option) -> str:
    label, count = option.memory.largest()
    return f"most of it {MEMORY[label]}: {size(count)}"


def _smallest_change(question: Question) -> str:
    """The first change, from mild to strong, that lets a plan fit; empty when none does."""
    for words, run in _changes(question.run):
        if anything_fits(replace(question, run=run)):
            return words
    return ""


def _changes(run: RunFile) -> Iterator[tuple[str, RunFile]]:
    change = msgspec.structs.replace
    if run.train.batch > 1:
        for batch in _halves(run.train.batch, 1):
            smaller = change(run.train, batch=batch, micro_batches=1)
            yield f"train.batch = {batch} (now {run.train.batch})", change(run, train=smaller)
    for length in _halves(run.model.max_length, 16):
        words = f"model.max_length = {length} (now {run.model.max_length})"
        yield words, change(run, model=change(run.model, max_length=length))
    for rank in _halves(run.lora.rank, 1):
        yield f"lora.rank = {rank} (now {run.lora.rank})", change(run, lora=change(run.lora, rank=rank))
    if run.model.dtype == "float32":
        yield 'model.dtype = "bfloat16"', change(run, model=change(run.model, dtype="bfloat16"))
    if run.policy.min_front > 1:
        yield "policy.min_front = 1", change(run, policy=change(run.policy, min_front=1))
    if not run.policy.shares_labels:
        yield "policy.shares_labels = true", change(run, policy=change(run.policy, shares_labels=True))
    if not run.policy.exposes_tokens:
        yield "policy.exposes_tokens = true", change(run, policy=change(run.policy, exposes_tokens=True))


def _halves(value: int, least: int) -> Iterator[int]:
    while value // 2 >= least:
        value //= 2
        yield value
