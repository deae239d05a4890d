"""Before every round: which layers each device holds in it, for methods that give layers out (``LayerRule.rooms``).

It stands where the replanner stands: a device that gets other layers is offered another plan and waited for, fetches
what it does not have, and loads them. How many layers it holds never changes.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedsplit.config.run import RunFile
from fedsplit.method.record import Method, Phases
from fedsplit.method.rooms import given_out
from fedsplit.plan.measured import Step
from fedsplit.plan.replan import Replanned
from fedsplit.plan.solve import sealed
from fedsplit.plan.types import ClientPlan, Plan
from fedsplit_server.replanning import is_idle
from fedsplit_server.roster import Member
from fedsplit_server.rounds import drawn


class Giving:
    """The method's layers, round by round. A pure function of run, round and who is here with how much room."""

    def __init__(self, method: Method | Phases, run: RunFile) -> None:
        self._method, self._run = method, run

    def first(self, plan: ClientPlan) -> ClientPlan:
        """Of a device that joins, before anybody knows who else will."""
        return given_out({plan.client: plan}, self._method.at(0).layers, self._run.run.seed, 0)[plan.client]

    def __call__(self, members: Sequence[Member], round: int) -> Replanned:
        """Moves of all that take part in the round and shall hold other layers in it."""
        taking_part = drawn([member.name for member in members], self._run, round)
        plans = {member.name: member.plan for member in members}
        some = {name: plans[name] for name in taking_part}
        new = given_out(some, self._method.at(round).layers, self._run.run.seed, round)
        idle = {member.name for member in members if is_idle(member)}
        moves = {name: plan for name, plan in new.items() if plan != plans[name] and name in idle}
        clients = tuple(moves.get(name, plan) for name, plan in plans.items())
        plan = sealed(Plan(round=round, clients=clients, seed=self._run.run.seed))
        return Replanned(plan=plan, moves=moves, slowest_s=(0.0, 0.0))

    def measured(self, member: Member, step: Step, steps: int) -> None:
        """A measured step changes nothing: layers are drawn, not chosen."""

    def held(self, name: str, round: int) -> None:
        """Nobody stays where it is for longer."""

    def why(self, member: Member) -> str:
        return ""
