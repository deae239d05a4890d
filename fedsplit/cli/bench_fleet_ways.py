"""The ways that ``fedsplit bench fleet`` compares: a method each, who takes part, and what the planner says of it.

All get the same rows, steps and devices. They differ in what the slow devices do: stay out (FedIT on those devices
that hold the whole model and a whole batch at once), hold one common cut (SplitLoRA), hold fewer layers (FedRA), or
each what the planner gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import structs

from fedsplit.cli.plan import model_card
from fedsplit.config.run import (
    ClientSection,
    DataSection,
    EvaluateSection,
    LoraSection,
    MethodSection,
    ModelSection,
    PlanSection,
    PolicySection,
    RoundsSection,
    RunFile,
    RunSection,
    ServerSection,
    TrainSection,
)
from fedsplit.devices.fleet import Fleet
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import PlanError
from fedsplit.method import registry
from fedsplit.method.of_run import method_of
from fedsplit.method.settled import settled
from fedsplit.plan.codec import with_codecs
from fedsplit.plan.memory import client_memory
from fedsplit.plan.model import ModelCard
from fedsplit.plan.options import describe
from fedsplit.plan.prices import Shelf
from fedsplit.plan.question import questions
from fedsplit.plan.rooms import in_rooms
from fedsplit.plan.solve import planned
from fedsplit.plan.timing import ASSUMED_LINK
from fedsplit.plan.types import ClientPlan, Cut, Plan, Topology
from fedsplit.plan.work import work_of

CLASSES = ("World", "Sports", "Business", "Sci/Tech")
WAYS = ("FedIT", "SplitLoRA", "FedRA", "FibecFed", "fedsplit")
METHODS = {"FedIT": "fedavg", "SplitLoRA": "splitlora", "FedRA": "fedra", "FibecFed": "fibecfed", "fedsplit": "fedavg"}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is trained and measured. ``goal``: the accuracy whose time is asked for; ``model``: a name or folder."""

    model: str = "minilm"
    goal: float = 0.85
    batch: int = 16
    tokens: int = 32
    rounds: int = 10
    steps: int = 5
    train_rows: int = 10_000
    validation_rows: int = 160
    test_rows: int = 600


@dataclass(frozen=True, kw_only=True)
class Way:
    """``clients``: who takes part, with what is fixed of its plan. ``round_s``: the limit for planned rounds, 0: none.

    ``plan``: what the planner says of it with the fleet's own server.
    """

    name: str
    clients: tuple[ClientSection, ...]
    plan: Plan
    round_s: float = 0.0

    @property
    def plans(self) -> str:
        """Every client's plan in words, those alike together."""
        alike: dict[str, list[str]] = {}
        for one in self.plan.clients:
            alike.setdefault(_words(one), []).append(one.client)
        return "; ".join(f"{', '.join(names)}: {words}" for words, names in alike.items())


def ways(fleet: Fleet, scale: Scale, names: Sequence[str] = WAYS) -> list[Way]:
    """Those of ``names`` whose method is registered. Raises PlanError where one has no plan for this fleet."""
    return [_way(name, fleet, scale) for name in names if METHODS[name] in registry.names()]


def run_of(
    way: Way,
    scale: Scale,
    *,
    seed: int = 0,
    rate: float = 1e-3,
    rounds: int = 0,
    data: Mapping[str, Path] | None = None,
) -> RunFile:
    """The run file of a way; without ``rounds`` all of ``scale``. Rounds are planned once, and nobody measures."""
    clients = [structs.replace(one, data=str((data or {}).get(one.name, ""))) for one in way.clients]
    run = _run(METHODS[way.name], scale, clients, seed=seed, rate=rate, rounds=rounds)
    return structs.replace(run, policy=PolicySection(round_s=way.round_s))


def plain_run(scale: Scale) -> RunFile:
    """The run file of whoever trains without the others."""
    return _run("fedavg", scale, ())


def round_s(plan: ClientPlan, device: DeviceProfile, steps: int) -> float:
    """Planned seconds of a device's round: its steps, and its factors there and back."""
    assert plan.estimate is not None
    link, cost = device.link or ASSUMED_LINK, plan.estimate
    return steps * cost.step_s + cost.factors_up_bytes / link.up_bps + cost.factors_down_bytes / link.down_bps


def slowest(way: Way, fleet: Fleet, steps: int) -> float:
    """Planned seconds of a round: those of the slowest device."""
    return max(round_s(one, fleet.devices[one.client], steps) for one in way.plan.clients)


def alone(fleet: Fleet, scale: Scale) -> Way:
    """Every device with the whole model: what training by itself, or all rows on one of them, is planned to take."""
    return _planned("FedIT", fleet, scale, _sections(fleet.devices, topology="local"))


def _way(name: str, fleet: Fleet, scale: Scale) -> Way:
    if name == "FedIT":
        roomy = [client for client, device in fleet.devices.items() if holds_all(device, scale)]
        return _planned(name, fleet, scale, _sections(roomy, topology="local"))
    if name == "SplitLoRA":
        topology, cut = common_cut(fleet, scale)
        sections = _sections(fleet.devices, topology=topology.value, cut=(cut.c1, cut.c2))
        return _planned(name, fleet, scale, sections)
    own = _planned(name, fleet, scale, _sections(fleet.devices))
    if name == "FedRA":
        # Where memory would let everybody hold everything, layers are left out to be as fast as the planned cuts are.
        limit = slowest(_way("fedsplit", fleet, scale), fleet, scale.steps)
        return _planned(name, fleet, scale, _sections(fleet.devices, topology="local"), limit)
    fixed = [
        structs.replace(section, topology=one.topology.value, cut=(one.cut.c1, one.cut.c2))
        for section, one in ((section, _of(own.plan, section.name)) for section in own.clients)
    ]
    return Way(name=name, clients=tuple(fixed), plan=own.plan)


def holds_all(device: DeviceProfile, scale: Scale) -> bool:
    """Whether the whole model trains on a device with its whole batch at once, every layer computed once."""
    run = _run("fedavg", scale, _sections(["one"], topology="local"))
    card = _card(run)
    whole = Cut(card.num_layers, card.num_layers)
    work = work_of(card, run)
    return client_memory(work, Topology.LOCAL, whole).with_holes(work, device).total <= device.budget_bytes


def common_cut(fleet: Fleet, scale: Scale) -> tuple[Topology, Cut]:
    """The split with the fastest slowest device among those that all devices can do.

    :raises PlanError: there is none.
    """
    run = _run("splitlora", scale, _sections(fleet.devices))
    asked = questions(_card(run), fleet.devices, settled(run, method_of(run)), server=fleet.server)
    shelf = Shelf(question=next(iter(asked.values())))
    total_O = np.zeros(len(shelf.grid.chosen))
    for _, block in shelf.blocks(list(asked.values())):
        total_O = np.maximum(total_O, np.where(block.usable_KO, block.seconds.total_KO, np.inf).max(axis=0))
    splits = [index for index, (topology, _) in enumerate(shelf.grid.chosen) if topology is not Topology.LOCAL]
    best = min(splits, key=lambda index: float(total_O[index]), default=-1)
    if best < 0 or not np.isfinite(total_O[best]):
        raise PlanError(f"no cut that all of {', '.join(fleet.devices)} can do")
    return shelf.grid.chosen[best]


def _planned(name: str, fleet: Fleet, scale: Scale, sections: Sequence[ClientSection], round_s: float = 0.0) -> Way:
    run = _run(METHODS[name], scale, sections)
    run = structs.replace(run, policy=PolicySection(round_s=round_s))
    run = settled(run, method_of(run))
    devices = {section.name: fleet.devices[section.name] for section in sections}
    asked = with_codecs(questions(_card(run), devices, run, server=fleet.server))
    plan, _ = in_rooms(asked) if run.plan.layers == "rooms" else planned(asked)
    return Way(name=name, clients=tuple(sections), plan=plan, round_s=round_s)


def _run(
    method: str,
    scale: Scale,
    clients: Sequence[ClientSection],
    *,
    seed: int = 0,
    rate: float = 1e-3,
    rounds: int = 0,
) -> RunFile:
    return RunFile(
        run=RunSection(name="fleet", seed=seed),
        model=ModelSection(path=scale.model, task="classification", labels=CLASSES, max_length=scale.tokens),
        data=DataSection(text="text", label="label", eval_fraction=0.0),
        lora=LoraSection(targets=("query", "value", "intermediate.dense", "output.dense")),
        train=TrainSection(
            rounds=rounds or scale.rounds,
            steps=scale.steps,
            batch=scale.batch,
            learning_rate=rate,
            schedule="linear",
            warmup_steps=scale.steps,
            clip=1.0,
        ),
        rounds=RoundsSection(clients=len(clients), deadline_s=3600.0),
        server=ServerSection(port=0),
        plan=PlanSection(replan=False),
        evaluate=EvaluateSection(every=0, clients=False),
        method=MethodSection(name=method),
        clients=tuple(clients),
    )


def _sections(names: Sequence[str] | Mapping[str, Any], **fixed: object) -> tuple[ClientSection, ...]:
    return tuple(msgspec.convert({"name": name, **fixed}, ClientSection) for name in names)


def _card(run: RunFile) -> ModelCard:
    return model_card(run, Path())


def _of(plan: Plan, client: str) -> ClientPlan:
    return next(one for one in plan.clients if one.client == client)


def _words(plan: ClientPlan) -> str:
    held = sum(layer.place == "client" for layer in plan.layers)
    layers = f", {held} of {len(plan.layers)} layers" if plan.topology is Topology.LOCAL else ""
    return f"{describe(plan.topology, plan.cut)}{layers}"
