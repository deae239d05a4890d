"""A plan for each device that asks to join: the planner with this run's model, policy and fixed clients."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from fedsplit.config.run import ClientSection, RunFile
from fedsplit.devices.profile import DeviceProfile
from fedsplit.plan.card import card
from fedsplit.plan.explain import FIXED
from fedsplit.plan.solve import solve
from fedsplit.plan.types import ClientPlan
from fedsplit.split.base import Base
from fedsplit.split.loader import frozen_head
from fedsplit.wire.messages import DataSummary


@dataclass(frozen=True)
class Planning:
    """Calls the planner for one client at a time; clients do not compete yet."""

    run: RunFile
    base: Base
    server: DeviceProfile | None = None

    def __call__(self, name: str, profile: DeviceProfile, data: DataSummary, topology: str) -> ClientPlan:
        """:raises PlanError: nothing fits; says what binds and what would fit."""
        run = insist(self.run, name, topology)
        task, labels = run.model.task, len(run.model.labels)
        model = card(self.base.config.to_dict(), task, labels)
        model = msgspec.structs.replace(model, head_frozen=frozen_head(self.base, task, labels or None))
        plan = solve(model, {name: profile}, run, server=self.server, data={name: data}).clients[0]
        theirs = run.clients != insist(self.run, name, "").clients
        insisted = theirs and plan.binding == FIXED
        return msgspec.structs.replace(plan, binding="the topology that this device asked for") if insisted else plan


def insist(run: RunFile, name: str, topology: str) -> RunFile:
    """The run file as this client sees it: only its own section, with the topology its owner insists on."""
    own = [section for section in run.clients if section.name == name]
    section = own[0] if own else ClientSection(name=name)
    if topology and topology != section.topology:
        section = msgspec.structs.replace(section, topology=topology, cut=None)
    return msgspec.structs.replace(run, clients=(section,) if own or topology else ())
