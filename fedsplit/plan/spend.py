"""What clients do with the time that they would wait for the slowest: a larger rank, more local steps, a denser mask.

``[plan] slack`` says which; ``none`` leaves every plan as it is. T is what the solver found without it: the slowest
step, and the longest round (steps and the factors' transfer). Shares of the server are kept, so what one client takes
costs no other: each takes the most that its memory admits and with which neither its step nor its round is longer than
T. Nobody gets less than before, the slowest stays the slowest, and a client alone or among equals gets nothing.

Rank: of ``plan.ranks``, in the layers that the client holds; the server's part keeps ``lora.rank``. Steps: up to
``given.MOST_TIMES`` as many as ``train.steps``, since a mean over clients that went far apart is worth less. Density:
of the entries that a method's mask leaves out. A kind of value more is a line more in ``_BUY``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from msgspec import structs

from fedsplit.config.run import RunFile
from fedsplit.devices.units import duration
from fedsplit.plan.factors import round_factors
from fedsplit.plan.given import MOST_TIMES, larger_ranks, steps_of, words
from fedsplit.plan.limits import limits_of
from fedsplit.plan.options import Option
from fedsplit.plan.question import Question, priced, server_of, step_as_planned
from fedsplit.plan.selection import own_layers
from fedsplit.plan.slack import WORTH_SAYING, balance_note, raised, step_s, with_slack
from fedsplit.plan.timing import reached
from fedsplit.plan.traffic import round_up_bytes
from fedsplit.plan.types import ClientPlan, Estimate


@dataclass(frozen=True, kw_only=True)
class Until:
    """What may not be exceeded: seconds of the slowest step and of the longest round."""

    step_s: float
    round_s: float


def round_s(plan: ClientPlan, question: Question) -> float:
    """Planned seconds of a client's round: its steps, and its factors once up and once down."""
    return steps_of(plan, question.run) * step_s(plan) + _moving_s(plan, question)


def until(plans: Sequence[ClientPlan], asked: Mapping[str, Question]) -> Until:
    """T of these plans."""
    return Until(step_s=max(map(step_s, plans)), round_s=max(round_s(plan, asked[plan.client]) for plan in plans))


def used(plans: Sequence[ClientPlan], asked: Mapping[str, Question]) -> tuple[list[ClientPlan], str]:
    """(the plans with their slack turned into what ``plan.slack`` says; how long they wait then, empty: nobody does)"""
    buy = _BUY.get(asked[plans[0].client].run.plan.slack)
    if buy is None:
        return with_slack(plans, asked), balance_note(map(step_s, plans))
    if len(plans) < asked[plans[0].client].clients:
        return [_later(plan, asked[plan.client].run) for plan in plans], balance_note(map(step_s, plans))
    limit = until(plans, asked)
    found = [buy(plan, asked[plan.client], limit) for plan in plans]
    return found, balance_note((round_s(plan, asked[plan.client]) for plan in found), "rounds")


def _more_steps(plan: ClientPlan, question: Question, limit: Until) -> ClientPlan:
    """As many steps as end with the longest round, and send no more up than the owner allows in a day."""
    least = question.run.train.steps
    left_s = limit.round_s - _moving_s(plan, question)
    steps = max(least, min(MOST_TIMES * least, int(left_s / step_s(plan))))
    while steps > least and not _admitted(structs.replace(plan, steps=steps), question, limit):
        steps -= 1
    if steps == least:
        return _waits(plan, question, limit)
    return _said(plan, structs.replace(plan, steps=steps), question, limit)


def _admitted(plan: ClientPlan, question: Question, limit: Until) -> bool:
    allowed = question.device.limits.upload_per_day_bytes if question.device.limits is not None else 0
    sent = round_up_bytes(plan, question.run) if allowed else 0
    return round_s(plan, question) <= limit.round_s and sent <= allowed


def _larger_rank(plan: ClientPlan, question: Question, limit: Until) -> ClientPlan:
    """The largest rank that fits and is in time."""
    for rank in _ranks_for(plan, question.run):
        found = _at_rank(plan, question, rank)
        if found is not None and step_s(found) <= limit.step_s and round_s(found, question) <= limit.round_s:
            return _said(plan, found, question, limit)
    return _waits(plan, question, limit)


def _denser(plan: ClientPlan, question: Question, limit: Until) -> ClientPlan:
    """Twice, four times, … the shares of the entries that the mask leaves, up to all: of what is in time and within
    what the owner allows to be sent the largest share on the way that gets less, then the most in all, up before down.
    """
    found = [(_value(one), one) for one in _densities(plan, question) if _admitted(one, question, limit)]
    if not found:
        return _waits(plan, question, limit)
    return _said(plan, max(found, key=lambda pair: pair[0])[1], question, limit)


def _value(plan: ClientPlan) -> tuple[float, float, float]:
    both = plan.density_down, plan.density_up
    return min(both), sum(both), plan.density_up


def _densities(plan: ClientPlan, question: Question) -> Iterator[ClientPlan]:
    """Every pair of larger shares, with what it costs."""
    kinds = question.travels.kinds
    down, up = max(kind.density_down for kind in kinds), max(kind.density_up for kind in kinds)
    for pair in product(_doubled(down), _doubled(up)):
        if pair != (down, up):
            changed = structs.replace(plan, density_down=pair[0], density_up=pair[1])
            yield structs.replace(changed, estimate=_with_factors(changed, question))


def _doubled(share: float) -> list[float]:
    found = [share]
    while found[-1] < 1:
        found.append(min(1.0, 2 * found[-1]))
    return found


def _with_factors(plan: ClientPlan, question: Question) -> Estimate:
    assert plan.estimate is not None
    own_head = limits_of(question.run, server_of(question)).own_head
    moved = round_factors(step_as_planned(question, plan), plan.topology, plan.cut, own_head=own_head)
    return structs.replace(plan.estimate, factors_up_bytes=moved.up, start_bytes=moved.start)


_BUY: Mapping[str, Callable[[ClientPlan, Question, Until], ClientPlan]] = {
    "rank": _larger_rank,
    "steps": _more_steps,
    "density": _denser,
}


def _ranks_for(plan: ClientPlan, run: RunFile) -> list[int]:
    """Ranks to try, the largest first; none where the client was given less than the run's rank already."""
    whole = all(layer.rank == run.lora.rank for layer in plan.layers if layer.trains)
    return larger_ranks(run) if whole else []


def _at_rank(plan: ClientPlan, question: Question, rank: int) -> ClientPlan | None:
    """The plan with this rank in the client's own layers, and what that costs; None: it does not fit."""
    work = step_as_planned(question, plan)
    mine = {layer for layer in own_layers(work, plan.topology, plan.cut) if plan.layers[layer].trains}
    option = priced(question, plan.topology, plan.cut, [raised(work, plan, rank)]) if mine else None
    if option is None or not option.fits:
        return None
    layers = (structs.replace(one, rank=rank) if one.layer in mine else one for one in plan.layers)
    return structs.replace(_costing(plan, option, question), layers=tuple(layers))


def _costing(plan: ClientPlan, option: Option, question: Question) -> ClientPlan:
    """The plan with the estimate of ``option``, which changes nothing of what the server holds."""
    assert plan.estimate is not None
    own_head = limits_of(question.run, server_of(question)).own_head
    moved = round_factors(option.work, plan.topology, plan.cut, own_head=own_head)
    estimate = structs.replace(
        plan.estimate, memory_bytes=option.memory.total, step_s=option.times.total, factors_up_bytes=moved.up,
        factors_down_bytes=moved.whole, start_bytes=moved.start if option.work.travels.thinned else 0,
        energy_j=(question.device.power_w or 0.0) * option.times.device,
    )  # fmt: skip
    return structs.replace(plan, estimate=estimate)


def _moving_s(plan: ClientPlan, question: Question) -> float:
    assert plan.estimate is not None
    link = reached(question.device, server_of(question), question.link_share)
    return plan.estimate.factors_up_bytes / link.up_bps + plan.estimate.round_down_bytes / link.down_bps


def _said(before: ClientPlan, after: ClientPlan, question: Question, limit: Until) -> ClientPlan:
    slack_s = limit.round_s - round_s(before, question)
    left_s = limit.round_s - round_s(after, question)
    line = (
        f"would wait {duration(slack_s)} of each round for the slowest: {words(after, question.run)}, which takes "
        f"{duration(slack_s - left_s)} of that"
    )
    return structs.replace(after, reasons=(*after.reasons, line))


def _later(plan: ClientPlan, run: RunFile) -> ClientPlan:
    """Who waits is known once everybody is there. The owner agrees to the most now."""
    rank = max(larger_ranks(run), default=run.lora.rank)
    steps = f"{MOST_TIMES * run.train.steps} steps a round"
    most = {"rank": f"rank {rank}", "steps": steps, "density": "all entries of the factors each way"}[run.plan.slack]
    line = f"once all clients are there it may get up to {most}, in time that it would wait for the slowest"
    return structs.replace(plan, reasons=(*plan.reasons, line))


def _waits(plan: ClientPlan, question: Question, limit: Until) -> ClientPlan:
    slack_s = limit.round_s - round_s(plan, question)
    if slack_s <= WORTH_SAYING * limit.round_s:
        return plan
    more = _MORE[question.run.plan.slack]
    line = f"waits {duration(slack_s)} of each round for the slowest, too short for {more}"
    return structs.replace(plan, reasons=(*plan.reasons, line))


_MORE = {"rank": "a larger rank that fits", "steps": "a step more", "density": "twice the entries"}
