"""Changes that would let a plan fit, from mild to strong: of the run file, of the device, of its link.

Every one is tried before it is named. Words are written as a run file has them, with what stands there now.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec

from fedsplit.config.describe import shown
from fedsplit.config.policy import PERMISSION, WIRE_BITS
from fedsplit.config.run import RunFile
from fedsplit.devices.profile import SAFETY, DeviceProfile
from fedsplit.devices.units import rate, size
from fedsplit.plan.limits import DEADLINE, SERVER, SERVER_RULE, Limits
from fedsplit.plan.options import ORDER, Option
from fedsplit.plan.prices import anything_fits
from fedsplit.plan.question import Question, options_of, server_of
from fedsplit.plan.timing import ASSUMED_LINK

MOST_TRIED = 64
"""Clients of a fleet up to which changes are tried for all of them."""
FASTER = 1024
"""The fastest link that is proposed, in times the present one: beyond it the link is not what is missing."""


class Change(NamedTuple):
    """What to change, in words, and the question that is asked then."""

    words: str
    question: Question


def helping(question: Question, options: Sequence[Option]) -> list[str]:
    """Changes that make a plan fit, the one closest to what binds first; empty where none was found.

    Where no single one helps, one is sought without the policy's limits, and both are named.
    """
    return _helping(question, options) or next(_without_limits(question), [])


def _without_limits(question: Question) -> Iterator[list[str]]:
    policy = question.run.policy
    limited = {key: getattr(policy, key) for key in ("round_s", "max_server_bytes") if getattr(policy, key)}
    alone = [{key: value} for key, value in limited.items()] if len(limited) > 1 else []
    for some in [*alone, limited] if limited else []:
        lifted = _set(question, "policy", **dict.fromkeys(some, 0))
        words = " and ".join(f"policy.{key} = 0 (now {shown(value)})" for key, value in some.items())
        if anything_fits(lifted):
            yield [words]
        else:
            yield from ([f"{words} and {way}"] for way in _helping(lifted, options_of(lifted)[0])[:1])


def _helping(question: Question, options: Sequence[Option]) -> list[str]:
    near = nearest(options) if options else None
    if near is not None and near.short_of == DEADLINE:
        return _first(_in_time(question, options, near), 3) or _first(_of_run(question), 1)
    if near is None:
        return _first(_of_run(question), 1)
    if near.short_of == SERVER_RULE:
        return [*_first(_granted(question, near), 1), *_first(_of_run(question), 1)]
    return [*_first(_of_run(question), 1), *_first(_freed(question, near), 1)]


def nearest(options: Sequence[Option]) -> Option:
    """The candidate that lacks least: memory first, then time."""
    return min(options, key=lambda option: (option.short_bytes, option.late_s, option.key))


def _first(changes: Iterator[Change], count: int) -> list[str]:
    found: list[str] = []
    for change in changes:
        if len(found) == count:
            break
        if anything_fits(change.question):
            found.append(change.words)
    return found


def _set(question: Question, section: str, /, **values: Any) -> Question:
    run = question.run
    changed = msgspec.structs.replace(getattr(run, section), **values)
    return replace(question, run=msgspec.structs.replace(run, **{section: changed}))


def _of_run(question: Question) -> Iterator[Change]:
    """Changes of the run file: first what leaves the result alone, last what shows the server more."""
    run = question.run
    if not run.plan.checkpoint and not question.device.edge:
        yield Change("plan.checkpoint = true", _set(question, "plan", checkpoint=True))
    yield from _unfixed(question)
    yield from _smaller_batches(question)
    for length in _halves(run.model.max_length, 16):
        words = f"model.max_length = {length} (now {run.model.max_length})"
        yield Change(words, _set(question, "model", max_length=length))
    for rank in _halves(run.lora.rank, run.policy.min_rank):
        yield Change(f"lora.rank = {rank} (now {run.lora.rank})", _set(question, "lora", rank=rank))
    if run.plan.layers == "all":
        yield Change('plan.layers = "fit"', _set(question, "plan", layers="fit"))
    if run.model.dtype == "float32" and run.policy.min_wire_bits <= WIRE_BITS["bfloat16"]:
        yield Change('model.dtype = "bfloat16"', _set(question, "model", dtype="bfloat16"))
    for front in range(min(run.policy.min_front, question.card.num_layers) - 1, 0, -1):
        words = f"policy.min_front = {front} (now {run.policy.min_front})"
        yield Change(words, _set(question, "policy", min_front=front))
    yield from _permitted(question)


def _unfixed(question: Question) -> Iterator[Change]:
    fixed = question.fixed
    if fixed is None or not (fixed.topology or fixed.cut):
        return
    if fixed.cut:
        yield Change(
            f"leave the cut of {fixed.name} to the planner",
            replace(question, fixed=msgspec.structs.replace(fixed, cut=None)),
        )
    free = msgspec.structs.replace(fixed, cut=None, topology="")
    keys = "topology and cut" if fixed.topology and fixed.cut else "topology" if fixed.topology else "cut"
    yield Change(f"leave the {keys} of {fixed.name} to the planner", replace(question, fixed=free))


def _smaller_batches(question: Question) -> Iterator[Change]:
    fixed, train = question.fixed, question.run.train
    if fixed and fixed.batch:
        for batch in _halves(fixed.batch, 1):
            if batch % train.micro_batches == 0:
                words = f"batch = {batch} (now {fixed.batch}) in the [[clients]] section of {fixed.name}"
                yield Change(words, replace(question, fixed=msgspec.structs.replace(fixed, batch=batch)))
        return
    for batch in _halves(train.batch, 1):
        whole = train.micro_batches if batch % train.micro_batches == 0 else 1
        also = "" if whole == train.micro_batches else " and train.micro_batches = 1"
        words = f"train.batch = {batch} (now {train.batch}){also}"
        yield Change(words, _set(question, "train", batch=batch, micro_batches=whole))


def _permitted(question: Question) -> Iterator[Change]:
    """One more topology, with the permission that it needs."""
    policy = question.run.policy
    for topology in ORDER:
        key = PERMISSION.get(topology, ("",))[0]
        permits = {key: True} if key and not getattr(policy, key) else {}
        words = [f"policy.{name} = true" for name in permits]
        if policy.topologies and topology not in policy.topologies:
            names = (*policy.topologies, topology.value)
            words.insert(0, f"policy.topologies = {shown(names)} (now {shown(policy.topologies)})")
            yield Change(" and ".join(words), _set(question, "policy", topologies=names, **permits))
        elif permits:
            yield Change(words[0], _set(question, "policy", **permits))


def _in_time(question: Question, options: Sequence[Option], near: Option) -> Iterator[Change]:
    """A later deadline, fewer steps, a faster link."""
    run = question.run
    later = _three_up(near.round_s)
    words = f"policy.round_s = {later:g} (now {run.policy.round_s:g})"
    relaxed = _set(question, "policy", round_s=later)
    if later > run.rounds.deadline_s:
        words += f" and rounds.deadline_s = {later:g} (now {run.rounds.deadline_s:g})"
        relaxed = _set(relaxed, "rounds", deadline_s=later)
    yield Change(words, relaxed)
    steps = max(_steps(option, run) for option in options if not option.short_bytes)
    for fewer in range(steps, max(0, steps - 2), -1):
        yield Change(f"train.steps = {fewer} (now {run.train.steps})", _set(question, "train", steps=fewer))
    yield from _faster(question)


def _steps(option: Option, run: RunFile) -> int:
    """Steps of this candidate that a round has time for."""
    moving = option.round_s - run.train.steps * option.times.total
    return min(run.train.steps - 1, int((run.policy.round_s - moving) / option.times.total))


def _faster(question: Question) -> Iterator[Change]:
    """The slowest link of 2, 4, 8, … times the present one that is fast enough."""
    device = question.device
    link, times = device.link or ASSUMED_LINK, 2
    while times <= FASTER:
        faster = msgspec.structs.replace(link, up_bps=times * link.up_bps, down_bps=times * link.down_bps)
        asked = replace(question, device=msgspec.structs.replace(device, link=faster))
        if anything_fits(asked):
            now = f"now {rate(link.up_bps)} and {rate(link.down_bps)}"
            yield Change(f"a link of {rate(faster.up_bps)} up and {rate(faster.down_bps)} down ({now})", asked)
            return
        times *= 2


def for_all(asked: Mapping[str, Question]) -> Iterator[tuple[str, dict[str, Question]]]:
    """(a change of the run file in words, what is asked then), for a fleet small enough to be planned often."""
    first = next(iter(asked.values()))
    for words, changed in _of_run(first) if len(asked) <= MOST_TRIED else ():
        if changed.fixed == first.fixed:
            yield words, {name: replace(question, run=changed.run) for name, question in asked.items()}


def room_for(question: Question, limits: Limits, need_bytes: int) -> str:
    """The change that gives a server's process ``need_bytes``, which are more than it may take."""
    need = math.ceil(_three_up(need_bytes))
    if limits.server_rule == SERVER_RULE and need <= server_of(question).budget_bytes:
        return f"policy.max_server_bytes = {shown(need)} (now {shown(question.run.policy.max_server_bytes)})"
    more = math.ceil(_three_up((need_bytes - server_of(question).budget_bytes) / SAFETY + 1))
    return f"free {size(more)} of the server's memory"


def _granted(question: Question, near: Option) -> Iterator[Change]:
    need, policy = math.ceil(_three_up(near.server.total)), question.run.policy
    words = f"policy.max_server_bytes = {shown(need)} (now {shown(policy.max_server_bytes)})"
    yield Change(words, _set(question, "policy", max_server_bytes=need))


def _freed(question: Question, near: Option) -> Iterator[Change]:
    """More memory where it is short. Plans may fill ``SAFETY`` of what is free."""
    more = math.ceil(_three_up(near.short_bytes / SAFETY + 1))
    if near.short_of == SERVER:
        server = _larger(server_of(question), more)
        yield Change(f"free {size(more)} of the server's memory", replace(question, server=server))
        return
    device = question.device
    fits = device.free_memory_bytes + more <= device.memory_bytes
    words = f"free {size(more)} of the device's memory" if fits else f"a device with {size(more)} more memory"
    yield Change(words, replace(question, device=_larger(device, more)))


def _larger(device: DeviceProfile, more: int) -> DeviceProfile:
    free = device.free_memory_bytes + more
    return msgspec.structs.replace(device, free_memory_bytes=free, memory_bytes=max(free, device.memory_bytes))


def _three_up(value: float) -> float:
    """The next number of three digits: what is shown is what was tried."""
    scale = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / scale) * scale:.3g}") if scale < 1 else math.ceil(value / scale) * scale


def _halves(value: int, least: int) -> Iterator[int]:
    while value // 2 >= least:
        value //= 2
        yield value
