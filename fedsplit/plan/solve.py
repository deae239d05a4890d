"""Per client the fastest plan that fits: a pure function of model, devices, run file and data counts.

Cut, topology and micro-batches change what a step costs, never what it computes, so the planner is free to choose
them. Clients are planned one by one with an equal share of the server; the same inputs give the same plan and digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import msgspec

from fedsplit.config.run import RunFile
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import PlanError
from fedsplit.plan.card import check_targets
from fedsplit.plan.explain import binding, reasons
from fedsplit.plan.exposure import exposure
from fedsplit.plan.memory import disk_bytes, served, server_total
from fedsplit.plan.model import ModelCard
from fedsplit.plan.options import Option
from fedsplit.plan.question import Question, options_of, questions
from fedsplit.plan.refuse import nothing_fits
from fedsplit.plan.timing import traffic
from fedsplit.plan.types import ClientPlan, Estimate, LayerPlan, Plan, Topology
from fedsplit.plan.work import DTYPE_BYTES, DataLike


def solve(
    card: ModelCard,
    devices: Mapping[str, DeviceProfile],
    run: RunFile,
    *,
    server: DeviceProfile | None = None,
    round: int = 0,
    data: Mapping[str, DataLike] | None = None,
    allowed: Collection[Topology] | None = None,
) -> Plan:
    """Plan all ``devices`` (client name → profile) for one round.

    ``data``: counts of each client's tokens; absent: rows of ``model.max_length``. ``allowed``: topologies that the
    method or the device's owner admits; None: all. Values that ``run.clients`` fixes for a name are kept.
    Raises PlanError where nothing fits (constraint, nearest plan, smallest change), or for an empty fleet;
    ConfigError for LoRA targets the model does not have.
    """
    if not devices:
        raise PlanError("there is no device to plan for; add [[clients]] to the run file or give a fleet")
    check_targets(card, run.lora.targets)
    answers: dict[bytes, ClientPlan] = {}
    plans = []
    asked = questions(card, devices, run, server=server, data=data, allowed=allowed)
    for name, question in asked.items():
        key = _key(question)
        if key not in answers:
            answers[key] = _plan(name, question)
        plans.append(msgspec.structs.replace(answers[key], client=name))
    _check_server(card, plans, run, server)
    return sealed(Plan(round=round, clients=tuple(plans), seed=run.run.seed, reasons=_assumptions(server)))


def sealed(plan: Plan) -> Plan:
    """The plan with the SHA-256 of its canonical JSON, computed with an empty digest."""
    blank = msgspec.structs.replace(plan, digest="")
    text = msgspec.json.encode(blank, order="deterministic")
    return msgspec.structs.replace(plan, digest=hashlib.sha256(text).hexdigest())


def _plan(name: str, question: Question) -> ClientPlan:
    options, why_not = options_of(question)
    best = next((option for option in options if option.fits), None)
    if best is None:
        raise PlanError(nothing_fits(name, question, options, why_not))
    device, work = question.device, best.work
    up, down = traffic(work, best.topology, best.cut)
    here = 0 if best.topology is Topology.LOCAL else best.server.total - best.server.runtime
    estimate = Estimate(
        memory_bytes=best.memory.total,
        disk_bytes=disk_bytes(work, best.topology, best.cut),
        step_s=best.times.total,
        up_bytes=up,
        down_bytes=down,
        energy_j=(device.power_w or 0.0) * best.times.device,
        server_memory_bytes=here,
        server_step_s=best.times.server / question.clients,
    )
    return ClientPlan(
        client=name, topology=best.topology, cut=best.cut, layers=_layers(question, best), batch=work.batch,
        micro_batches=work.micro_batches, dtype=work.dtype, estimate=estimate,
        binding=binding(options, best, question.fixed), reasons=reasons(options, best, why_not, question),
        exposure=exposure(question.card, best.topology, best.cut, trains_head=work.trains_head),
    )  # fmt: skip


def _layers(question: Question, best: Option) -> tuple[LayerPlan, ...]:
    theirs = served(best.topology, best.cut, question.card.num_layers)
    return tuple(
        LayerPlan(
            layer=layer,
            place="server" if layer in theirs else "client",
            trains=bool(question.card.adapted(question.run.lora.targets, layer)),
            rank=question.run.lora.rank,
            bits=8 * DTYPE_BYTES[question.run.model.dtype],
        )
        for layer in range(question.card.num_layers)
    )


def _check_server(card: ModelCard, plans: list[ClientPlan], run: RunFile, server: DeviceProfile | None) -> None:
    """Each client alone fits the server (``price``); refuse when all of them together do not."""
    if server is None:
        return
    need = server_total(card, plans, DTYPE_BYTES[run.model.dtype]) + server.runtime_bytes
    if need > server.budget_bytes:
        raise PlanError(
            f"the server {server.name} needs {need / 1e6:,.0f} MB for {len(plans)} clients and may take "
            f"{server.budget_bytes / 1e6:,.0f} MB (binding: memory of the server); the smallest change: "
            f"fewer clients at once, a smaller batch, or {(need - server.budget_bytes) / 1e6:,.0f} MB more"
        )


def _assumptions(server: DeviceProfile | None) -> tuple[str, ...]:
    if server is not None:
        return (f"server: {server.name}",)
    return ("the server's profile is not known: 200 GFLOP/s and enough memory were assumed",)


def _key(question: Question) -> bytes:
    """Equal devices with equal demands are solved once."""
    counts = (question.data.tokens_mean, question.data.tokens_max) if question.data else None
    fixed = question.fixed
    section = (fixed.topology, fixed.cut, fixed.batch, fixed.threads) if fixed else None
    return msgspec.json.encode((question.device, counts, section))
