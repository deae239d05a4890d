"""Between two rounds: which devices get another plan, because the fleet or what is known of it is another one.

The whole fleet is planned twice, once with every cut as it is and once with those free that may move. A move is worth
it when the slowest step gets more than ``GAIN`` faster, or when the plans as they are break a rule. Then only the
devices move that stand in the way, the others keep their place. Moves are cuts and topologies within what the owner
agreed to and never another work, so no result changes. A pure function: the same inputs, the same moves and digest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import partial

from msgspec import structs

from fedsplit.config.run import ClientSection, RunFile
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import PlanError
from fedsplit.plan.consent import objection, shown_by
from fedsplit.plan.given import bare, value
from fedsplit.plan.model import ModelCard
from fedsplit.plan.solve import sealed, solve
from fedsplit.plan.travel import EVERYTHING, Travels
from fedsplit.plan.types import ClientPlan, Plan
from fedsplit.plan.work import DataLike

GAIN = 0.10
"""A slowest step that gets faster by less is not worth the download and the wait."""
HOLD_ROUNDS = 3
"""Rounds that a device stays where it was moved to."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One device before a round. ``profile``: with what was measured in it; ``agreed``: what its owner agreed to."""

    profile: DeviceProfile
    data: DataLike | None
    plan: ClientPlan
    agreed: ClientPlan
    may_move: bool = True


@dataclass(frozen=True, kw_only=True)
class Replanned:
    """``moves``: the new plans alone. ``plan``: everybody's, sealed. ``slowest_s``: the slowest step before and after,
    infinite where the plans before broke a rule; ``broken`` says which."""

    plan: Plan
    moves: Mapping[str, ClientPlan] = field(default_factory=dict)
    slowest_s: tuple[float, float] = (math.inf, math.inf)
    broken: str = ""


def replan(
    card: ModelCard,
    run: RunFile,
    fleet: Mapping[str, Standing],
    *,
    server: DeviceProfile | None = None,
    round: int = 0,
    shaped: Callable[[ClientPlan], ClientPlan] = lambda plan: plan,
    travels: Travels = EVERYTHING,
) -> Replanned:
    """``run``: with a section for each device that something is fixed for, insisted topologies included. ``shaped``:
    what the run's method makes of a plan; ``travels``: what it sends."""
    asked = partial(solve, card, server=server, round=round, travels=travels)
    if run.plan.slack == "none":
        return _replan(asked, run, fleet, round, shaped)
    plain = structs.replace(run, plan=structs.replace(run.plan, slack="none"))
    without = {name: replace(one, plan=shaped(bare(one.plan, run))) for name, one in fleet.items()}
    found = _replan(asked, plain, without, round, shaped)
    return _with_slack(asked, run, fleet, found, shaped)


def _with_slack(
    asked: Callable[..., Plan],
    run: RunFile,
    fleet: Mapping[str, Standing],
    found: Replanned,
    shaped: Callable[[ClientPlan], ClientPlan],
) -> Replanned:
    """What was found, and what those get beside who wait then (``spend``). A device that stays where it is keeps what
    it was given, unless that is another by more than ``GAIN``."""
    plans = {plan.client: plan for plan in found.plan.clients}
    try:
        spent = asked(
            {name: one.profile for name, one in fleet.items()},
            fixed(run, plans),
            data={name: one.data for name, one in fleet.items() if one.data is not None},
            pieces={name: plan.micro_batches for name, plan in plans.items()},
            wires={name: plan.wire_up for name, plan in plans.items()},
        )
    except PlanError:  # the plans as they are break a rule: there is nothing to give
        return found
    moves = dict(found.moves)
    for offered in map(shaped, spent.clients):
        one = fleet[offered.client]
        old, new = value(one.plan, run), value(offered, run)
        stays = offered.client not in moves and (abs(new - old) <= GAIN * old or _differs(one.plan, offered))
        if one.may_move and not stays and not objection(one.agreed, one.plan, offered, run):
            moves[offered.client] = offered
    clients = tuple(moves.get(name, one.plan) for name, one in sorted(fleet.items()))
    plan = sealed(structs.replace(found.plan, clients=clients))
    return replace(found, plan=plan, moves=moves)


def _replan(
    asked: Callable[..., Plan],
    run: RunFile,
    fleet: Mapping[str, Standing],
    round: int,
    shaped: Callable[[ClientPlan], ClientPlan],
) -> Replanned:
    """Cuts and topologies alone."""

    def ask(free: Set[str], *, pieces: bool = True) -> Plan:
        found = asked(
            {name: one.profile for name, one in fleet.items()},
            fixed(run, {name: one.plan for name, one in fleet.items() if name not in free}),
            data={name: one.data for name, one in fleet.items() if one.data is not None},
            agreed={name: shown_by(one.agreed) for name, one in fleet.items()},
            pieces={name: one.plan.micro_batches for name, one in fleet.items() if pieces},
            wires={name: one.plan.wire_up for name, one in fleet.items()},
        )
        return structs.replace(found, clients=tuple(map(shaped, found.clients)))

    free = {name for name, one in fleet.items() if one.may_move}
    now, broken = None, ""
    try:
        now = ask(frozenset())
        broken = _short(now, fleet)
    except PlanError:
        broken = _why(ask, fleet)
    before_s = slowest(now) if now is not None and not broken else math.inf
    best = _best(ask, fleet, free)
    if best is None or slowest(best) >= (1 - GAIN) * before_s:
        return _kept(run, fleet, round, (before_s, before_s), broken)
    if now is not None and not broken:
        steps = {plan.client: _step_s(plan) for plan in now.clients}
        few = _best(ask, fleet, {name for name in free if steps[name] > slowest(best)})
        best = few if few is not None and slowest(few) < (1 - GAIN) * before_s else best
    return _moved(run, fleet, best, round, before_s, broken)


def fixed(run: RunFile, plans: Mapping[str, ClientPlan]) -> RunFile:
    """The run file in which these devices keep their topology and cut."""
    sections = {section.name: section for section in run.clients}
    for name, plan in plans.items():
        section = sections.get(name) or ClientSection(name=name)
        cut = (plan.cut.c1, plan.cut.c2)
        sections[name] = structs.replace(section, topology=plan.topology.value, cut=cut)
    return structs.replace(run, clients=tuple(sections.values()))


def slowest(plan: Plan) -> float:
    """Seconds of the slowest device's step."""
    return max(_step_s(one) for one in plan.clients)


def _best(ask: Callable[..., Plan], fleet: Mapping[str, Standing], free: Set[str]) -> Plan | None:
    """The best plan in which only ``free`` devices move, none to another work; None: there is none."""
    while free:
        try:
            plan = ask(free)
        except PlanError:
            return None
        changed = (one for one in plan.clients if one.client in free and _differs(one, fleet[one.client].plan))
        wrong = {one.client for one in changed if _refused(fleet[one.client], one)}
        if not wrong:
            return plan
        free = free - wrong
    return None


def _why(ask: Callable[..., Plan], fleet: Mapping[str, Standing]) -> str:
    """Which rule the plans as they are break."""
    try:
        return _short(ask(frozenset(), pieces=False), fleet)
    except PlanError as error:
        return str(error)


def _short(now: Plan, fleet: Mapping[str, Standing]) -> str:
    """Who would need smaller pieces than it has to stay where it is; empty: nobody."""
    pieces = {plan.client: (plan.micro_batches, plan.checkpoint) for plan in now.clients}
    short = [name for name, one in fleet.items() if pieces[name] > (one.plan.micro_batches, one.plan.checkpoint)]
    return f"{', '.join(short)}: the plan no longer fits in memory" if short else ""


def _refused(standing: Standing, offered: ClientPlan) -> bool:
    return bool(objection(standing.agreed, standing.plan, offered))


def _differs(plan: ClientPlan, other: ClientPlan) -> bool:
    return (plan.topology, plan.cut, plan.checkpoint) != (other.topology, other.cut, other.checkpoint)


def _step_s(plan: ClientPlan) -> float:
    assert plan.estimate is not None
    return plan.estimate.step_s


def _kept(
    run: RunFile, fleet: Mapping[str, Standing], round: int, slowest_s: tuple[float, float], broken: str
) -> Replanned:
    clients = tuple(one.plan for _, one in sorted(fleet.items()))
    plan = sealed(Plan(round=round, clients=clients, seed=run.run.seed))
    return Replanned(plan=plan, slowest_s=slowest_s, broken=broken)


def _moved(
    run: RunFile, fleet: Mapping[str, Standing], best: Plan, round: int, before_s: float, broken: str
) -> Replanned:
    moves = {one.client: one for one in best.clients if _differs(one, fleet[one.client].plan)}
    clients = tuple(moves.get(name, one.plan) for name, one in sorted(fleet.items()))
    plan = sealed(Plan(round=round, clients=clients, seed=run.run.seed, reasons=best.reasons))
    return Replanned(plan=plan, moves=moves, slowest_s=(before_s, slowest(best)), broken=broken)
