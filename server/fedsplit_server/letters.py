"""What the server writes to one client (the opening of a round, a measurement, the result), and what must come back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from fedsplit.errors import Refused, RemoteProtocolError
from fedsplit.lora.adapter import ModuleKey, flatten, unflatten
from fedsplit.method.record import ClientUpdate, GlobalState
from fedsplit.wire import WireTensor
from fedsplit.wire.messages import Evaluate, Finish, Start, Update
from fedsplit_server.desk import Opened, Out, Seat
from fedsplit_server.roster import Member
from fedsplit_server.rounds import OpenMeasure


class Letters:
    """``head_modules``: adapted modules outside the layers that go with the head, at the server in topology ``v``.

    ``own_heads``: every client keeps its head to itself.
    """

    def __init__(self, head_modules: Collection[ModuleKey] = (), *, own_heads: bool = False) -> None:
        self._head_modules, self._own_heads = frozenset(head_modules), own_heads

    def start(self, member: Member, opened: Opened, era: int, state: GlobalState) -> Out:
        """The round begins (again) for this client."""
        message = Start(
            round=opened.round,
            era=era,
            steps=opened.steps,
            first_step=opened.first_step,
            base_version=opened.base_version,
            adapter_version=opened.adapter_version,
        )
        return Out(member.name, message, self.factors(member, state))

    def evaluate(self, member: Member, measure: OpenMeasure, state: GlobalState) -> Out:
        return Out(member.name, Evaluate(round=measure.round, phase=measure.phase), self.factors(member, state))

    def finish(self, member: Member, reason: str, state: GlobalState, metrics: dict[str, float]) -> Out:
        message = Finish(round=state.round, reason=reason, metrics=metrics)
        return Out(member.name, message, self.factors(member, state))

    def factors(self, member: Member, state: GlobalState) -> dict[str, WireTensor]:
        """The factors of what the client holds, and the head where it holds that."""
        adapter = {key: part for key, part in state.adapter.items() if self._holds(member, key)}
        arrays = flatten(adapter, state.head if member.holds_head else {})
        return {name: WireTensor.of(array) for name, array in arrays.items()}

    def arrived(
        self, member: Member, update: Update, tensors: Mapping[str, WireTensor], state: GlobalState
    ) -> ClientUpdate:
        """A client's update, when it has exactly the tensors that it should have, and finite numbers in them.

        :raises Refused: it has others; says which.
        """
        found = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        due = self.factors(member, state if not self._own_heads else replace(state, head={}))
        wanted = {name: (tensor.dtype, tensor.shape) for name, tensor in due.items()}
        wrong = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        if wrong:
            name = wrong[0]
            raise Refused(
                f"the update of {member.name} has {found.get(name, 'no tensor')} for {name}, expected "
                f"{wanted.get(name, 'no such tensor')} ({len(wrong)} of {len(wanted)} differ)"
            )
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        broken = sorted(name for name, array in arrays.items() if not np.isfinite(array).all())
        if broken:
            raise Refused(f"the update of {member.name} is not finite in {broken[0]} ({len(broken)} of {len(arrays)})")
        adapter, head = unflatten(arrays)
        return ClientUpdate(
            client=member.name, examples=update.examples, base_version=update.base_version, adapter=adapter, head=head
        )

    def seat(self, member: Member, state: GlobalState, era: int = 0) -> Seat:
        """What the desk must know of a client whose body is here. ``era``: its attempt at the open round.

        :raises RemoteProtocolError: the client holds the whole model.
        """
        held = member.held_by_server
        if held is None:
            raise RemoteProtocolError(f"{member.name} holds the whole model; the server runs nothing for it")
        layers = (layer for layer in member.plan.layers if layer.place == "client" and layer.layer < held.lo)
        embedding = any(key.layer < 0 and key not in self._head_modules for key in state.adapter)
        trains = embedding or any(layer.trains for layer in layers)
        return Seat(held, front_trains=trains, labels_here=held.head, era=era)

    def _holds(self, member: Member, key: ModuleKey) -> bool:
        if key.layer < 0:
            return member.holds_head or key not in self._head_modules
        return key.layer in member.client_layers
