"""Per client the fastest plan that fits: a pure function of model, devices, run file and data counts.

Cut, topology and micro-batches change what a step costs, never what it computes, so the planner is free to choose
them. Clients share the server so that the slowest is as fast as possible (``fleet``); each then gets the fastest plan
at its share. The same inputs give the same plan and digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import msgspec

from fedsplit.config.run import RunFile
from fedsplit.devices.profile import DeviceProfile
from fedsplit.devices.units import duration, size
from fedsplit.errors import PlanError
from fedsplit.plan.bits import server_bits, widths
from fedsplit.plan.card import check_targets
from fedsplit.plan.changes import for_all
from fedsplit.plan.codec import said, with_codecs
from fedsplit.plan.consent import Shown
from fedsplit.plan.cover import covered
from fedsplit.plan.coverage import coverage_note
from fedsplit.plan.depth import check_depth
from fedsplit.plan.explain import Rivals, binding, for_the_fleet, reasons
from fedsplit.plan.exposure import exposure
from fedsplit.plan.factors import round_factors
from fedsplit.plan.fitted import Fitter
from fedsplit.plan.fleet import Shelves, balance
from fedsplit.plan.limits import limits_of
from fedsplit.plan.memory import disk_bytes, served, server_total
from fedsplit.plan.model import ModelCard
from fedsplit.plan.options import Option
from fedsplit.plan.prices import Shelf
from fedsplit.plan.question import Question, alike, questions, server_of, usual_s
from fedsplit.plan.refuse import crowded, without_plan
from fedsplit.plan.spend import used
from fedsplit.plan.timing import traffic
from fedsplit.plan.together import together
from fedsplit.plan.trained import gave_up
from fedsplit.plan.travel import Moved, Travels
from fedsplit.plan.types import ClientPlan, Cut, Estimate, LayerPlan, Plan, Topology
from fedsplit.plan.work import DTYPE_BYTES, DataLike, Work


def solve(
    card: ModelCard,
    devices: Mapping[str, DeviceProfile],
    run: RunFile,
    *,
    server: DeviceProfile | None = None,
    round: int = 0,
    data: Mapping[str, DataLike] | None = None,
    allowed: Collection[Topology] | None = None,
    agreed: Mapping[str, Shown] | None = None,
    pieces: Mapping[str, int] | None = None,
    wires: Mapping[str, str] | None = None,
    beside: Sequence[ClientPlan] | None = None,
    travels: Travels | None = None,
) -> Plan:
    """Plan all ``devices`` (client name → profile) for one round.

    ``data``: counts of each client's tokens; absent: rows of ``model.max_length``. ``allowed``: topologies that the
    method or the device's owner admits; None: all. ``agreed``: the most that each owner agreed to show.
    ``pieces``: micro-batches that a client keeps, ``wires``: its codec (of all clients, or none). ``beside``: plans of
    clients that are there already, when others join: they count towards ``plan.coverage``, and what is still missing is
    no error. ``travels``: what the method sends of the factors (``method.travel``), None: all.
    Values that ``run.clients`` fixes for a name are kept.
    Raises PlanError where nothing fits (constraint, nearest plan, smallest change), where all clients together train a
    layer too seldom (``plan.coverage``), or for an empty fleet;
    ConfigError for LoRA targets the model does not have.
    """
    asked = questions(
        card, devices, run, server=server, data=data, allowed=allowed, agreed=agreed, pieces=pieces, wires=wires,
        travels=travels,
    )  # fmt: skip
    return planned(asked if wires else with_codecs(asked), round=round, beside=beside)[0]


def planned(
    asked: Mapping[str, Question], *, round: int = 0, beside: Sequence[ClientPlan] | None = None
) -> tuple[Plan, Mapping[str, Question]]:
    """(the plan that answers all questions, these with the shares and picks it rests on). Raises as ``solve``."""
    if not asked:
        raise PlanError("there is no device to plan for; add [[clients]] to the run file or give a fleet")
    first = next(iter(asked.values()))
    check_targets(first.card, first.run.lora.targets)
    check_depth(first.run, first.card.num_layers)
    shelves: Shelves = {}
    balanced, bound_s = balance(asked, shelves)
    shared, plans, said = _covered(balanced, _plans(balanced, shelves), beside)
    final, plans, moved = _fitted(shared, plans, bound_s)
    clients, waiting = used(plans, final)
    fit = first.run.plan.layers == "fit"
    left_out = coverage_note(plans, first.card, first.run.lora.targets) if fit else ""
    notes = (
        *_notes(plans, first.server, bound_s, overlap=first.run.plan.overlap),
        *filter(None, (waiting, left_out)),
        *said,
        *moved,
    )
    return sealed(Plan(round=round, clients=tuple(clients), seed=first.run.run.seed, reasons=notes)), final


def answer(name: str, question: Question) -> ClientPlan:
    """One client's plan at its share of the server, whatever the others do. Raises as ``solve`` does."""
    check_targets(question.card, question.run.lora.targets)
    check_depth(question.run, question.card.num_layers)
    return _plans({name: question})[0]


def sealed(plan: Plan) -> Plan:
    """The plan with the SHA-256 of its canonical JSON, computed with an empty digest."""
    blank = msgspec.structs.replace(plan, digest="")
    text = msgspec.json.encode(blank, order="deterministic")
    return msgspec.structs.replace(plan, digest=hashlib.sha256(text).hexdigest())


def _plans(asked: Mapping[str, Question], shelves: Shelves | None = None) -> list[ClientPlan]:
    """One plan a client in the order of ``asked``; equal questions are answered once, equal work is priced together."""
    groups: dict[bytes, dict[bytes, str]] = {}
    keys = {name: alike(question) for name, question in asked.items()}
    for name, (kind, device) in keys.items():
        groups.setdefault(kind, {}).setdefault(device, name)
    answers: dict[tuple[bytes, bytes], ClientPlan] = {}
    for kind, members in groups.items():
        names = list(members.values())
        shelf = (shelves or {}).get(kind) or Shelf(question=asked[names[0]])
        made = (
            _answers(shelf, names, [asked[name] for name in names]) if shelf.grid.chosen else repeat(None, len(names))
        )
        answers.update(((kind, device), plan) for device, plan in zip(members, made, strict=True) if plan)
    lost = [name for name, key in keys.items() if key not in answers]
    if lost:
        alone = [name for name in lost if groups[keys[name][0]][keys[name][1]] == name]
        raise PlanError(without_plan({name: asked[name] for name in alone}, lost, len(asked)))
    return [msgspec.structs.replace(answers[keys[name]], client=name) for name in asked]


def _answers(shelf: Shelf, names: Sequence[str], asked: Sequence[Question]) -> Iterator[ClientPlan | None]:
    """One plan a question, in their order; None where nothing fits."""
    facts: dict[int, Facts] = {}
    fitter = Fitter(asked[0]) if asked[0].run.plan.layers == "fit" else None
    waiting = iter(names)
    for some, block in shelf.blocks(asked):
        for row, question in enumerate(some):
            name, best = next(waiting), question.pick[0] if question.pick else shelf.best(block, row)
            rivals = shelf.rivals(question, block, row, best)
            if best < 0:
                yield _cut_down(name, question, fitter, rivals, shelf.why_not)
                continue
            option = shelf.option(question, block, row, best)
            if best not in facts:
                facts[best] = _facts(question, option)
            plan = _plan(name, question, option, rivals, shelf.why_not, facts[best])
            yield for_the_fleet(plan) if question.pick and shelf.best(block, row) != best else plan


def _cut_down(
    name: str, question: Question, fitter: Fitter | None, rivals: Rivals, why_not: Sequence[str]
) -> ClientPlan | None:
    """A plan that trains less than all layers at the run's rank; None where there is none, or no leave."""
    found = (fitter.given(question) if question.way else fitter.best(question)) if fitter else None
    if found is None:
        return None
    plan = _plan(name, question, found.option, rivals, why_not, _facts(question, found.option))
    return msgspec.structs.replace(plan, reasons=(*gave_up(plan, found, rivals, question), *plan.reasons[2:]))


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a cut means on every device alike."""

    layers: tuple[LayerPlan, ...]
    exposure: str
    disk_bytes: int
    traffic: tuple[int, int]
    factors: Moved


def _facts(question: Question, option: Option) -> Facts:
    topology, cut, work = option.topology, option.cut, option.work
    return Facts(
        layers=_layers(question, topology, cut, work),
        exposure=exposure(question.card, topology, cut, trains_head=work.trains_head),
        disk_bytes=disk_bytes(work, topology, cut),
        traffic=traffic(work, topology, cut),
        factors=round_factors(work, topology, cut, own_head=question.run.model.head == "local"),
    )


def _plan(
    name: str, question: Question, best: Option, rivals: Rivals, why_not: Sequence[str], facts: Facts
) -> ClientPlan:
    device, work = question.device, best.work
    here = 0 if best.topology is Topology.LOCAL else best.server.total - best.server.runtime
    wire, gradient = ("raw", "raw") if best.topology is Topology.LOCAL else (work.wire, work.wire_grad)
    estimate = Estimate(
        memory_bytes=best.memory.total,
        disk_bytes=facts.disk_bytes,
        step_s=best.times.total,
        up_bytes=facts.traffic[0],
        down_bytes=facts.traffic[1],
        energy_j=(device.power_w or 0.0) * best.times.device,
        server_memory_bytes=here,
        server_step_s=best.times.server * question.share,
        row_tokens=work.valid,
        hidden_bytes=0 if best.topology is Topology.LOCAL else work.crossing_bytes[0],
        factors_up_bytes=facts.factors.up,
        factors_down_bytes=facts.factors.whole,
        start_bytes=facts.factors.start if work.travels.thinned else 0,
        fold_bytes=facts.factors.fold,
        usual_step_s=usual_s(question, best),
    )
    return ClientPlan(
        client=name, topology=best.topology, cut=best.cut, layers=facts.layers, batch=work.batch,
        micro_batches=work.micro_batches, checkpoint=work.checkpoint, dtype=work.dtype, estimate=estimate,
        wire_up=wire, wire_down=wire, grad_up=gradient, grad_down=gradient,
        binding=binding(rivals, best, question.fixed),
        reasons=(*reasons(rivals, best, why_not, question), *said(question, best)),
        exposure=facts.exposure,
    )  # fmt: skip


def _layers(question: Question, topology: Topology, cut: Cut, work: Work) -> tuple[LayerPlan, ...]:
    theirs, sums = served(topology, cut, question.card.num_layers), work.adapter_params
    return tuple(
        LayerPlan(
            layer=layer,
            place="server" if layer in theirs else "client",
            trains=sums[layer + 1] > sums[layer],
            rank=work.rank_of(layer) or work.rank,
            bits=server_bits(question.run) if layer in theirs else work.bits_of(layer) or widths(question.run)[0],
        )
        for layer in range(question.card.num_layers)
    )


def _covered(
    asked: Mapping[str, Question], plans: Sequence[ClientPlan], beside: Sequence[ClientPlan] | None
) -> tuple[Mapping[str, Question], Sequence[ClientPlan], tuple[str, ...]]:
    """Where too few train a layer, some clients train others (``cover``). Raises PlanError where that does not do."""
    if not next(iter(asked.values())).run.plan.coverage:
        return asked, plans, ()

    def helps(other: Mapping[str, Question]) -> bool:
        shared, _ = balance(other)
        try:
            covered(shared, _plans(shared), beside, lambda _: False)
        except PlanError:
            return False
        return True

    changed, said = covered(asked, plans, beside, helps)
    return changed, plans if changed is asked else _plans(changed), said


def _fitted(
    asked: Mapping[str, Question], plans: Sequence[ClientPlan], bound_s: float
) -> tuple[Mapping[str, Question], Sequence[ClientPlan], tuple[str, ...]]:
    """Each client alone fits the server (``price``); where all of them together do not, some get other plans.

    Raises PlanError where no plans fit together.
    """
    first = next(iter(asked.values()))
    if first.server is None and not first.run.policy.max_server_bytes:
        return asked, plans, ()
    host = server_of(first)
    limits, width = limits_of(first.run, host), DTYPE_BYTES[first.run.model.dtype]
    need, room = server_total(first.card, plans, width), limits.server_bytes - host.runtime_bytes
    if not need or need <= room:
        return asked, plans, ()
    chosen, least = together(asked, {plan.client: plan for plan in plans}, room, bound_s)
    if chosen is None:
        change = next((words for words, changed in for_all(asked) if _fit(changed, room)), "")
        raise PlanError(crowded(first, len(plans), limits, host.runtime_bytes + least, change))
    final = _plans(chosen)
    moved = sum(_work(old) != _work(new) for old, new in zip(plans, final, strict=True))
    note = (
        f"the fastest plans together would take {size(need + host.runtime_bytes)} of the server's "
        f"{size(limits.server_bytes)}: {moved} of {len(plans)} clients got another plan, so that all fit"
    )
    return chosen, final, (note,)


def _work(plan: ClientPlan) -> tuple[Topology, Cut, int]:
    return plan.topology, plan.cut, plan.micro_batches


def _fit(asked: Mapping[str, Question], room: int) -> bool:
    """Whether all these clients have plans that fit the server's ``room`` together."""
    shared, bound_s = balance(asked)
    try:
        plans = _plans(shared)
    except PlanError:
        return False
    first = next(iter(asked.values()))
    if server_total(first.card, plans, DTYPE_BYTES[first.run.model.dtype]) <= room:
        return True
    return together(shared, {plan.client: plan for plan in plans}, room, bound_s)[0] is not None


def _notes(
    plans: Sequence[ClientPlan], server: DeviceProfile | None, bound_s: float, *, overlap: bool
) -> tuple[str, ...]:
    """What was assumed of the server, and how far the slowest step is from the best that sharing it could give."""
    if server is not None:
        notes = [f"server: {server.name}"]
    else:
        notes = ["the server's profile is not known: 200 GFLOP/s and enough memory were assumed"]
    if bound_s:
        slowest = max(plan.estimate.step_s for plan in plans if plan.estimate)
        what = "the server and its link" if server and server.link else "the server"
        what += " without overlapping micro-batches" if overlap else ""
        over = slowest / bound_s - 1
        side = f"{-over:.1%} below" if overlap and over < 0 else f"at most {max(0.0, over):.1%} above"
        notes.append(f"slowest step {duration(slowest)}: {side} the best way to share {what}")
    return tuple(notes)
