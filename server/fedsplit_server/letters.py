"""What the server writes to one client: the opening of a round, a measurement, the result; each with its factors."""

from __future__ import annotations

from fedsplit.errors import RemoteProtocolError
from fedsplit.lora.adapter import flatten, select
from fedsplit.method.record import GlobalState
from fedsplit.wire import WireTensor
from fedsplit.wire.messages import Evaluate, Finish, Start
from fedsplit_server.desk import Opened, Out, Seat
from fedsplit_server.roster import Member
from fedsplit_server.rounds import OpenMeasure


def start(member: Member, opened: Opened, state: GlobalState) -> Out:
    """The round begins (again) for this client."""
    message = Start(
        round=opened.round,
        era=opened.era,
        steps=opened.steps,
        first_step=opened.first_step,
        base_version=opened.base_version,
        adapter_version=opened.adapter_version,
    )
    return Out(member.name, message, factors(member, state))


def evaluate(member: Member, measure: OpenMeasure, state: GlobalState) -> Out:
    return Out(member.name, Evaluate(round=measure.round, phase=measure.phase), factors(member, state))


def finish(member: Member, reason: str, state: GlobalState, metrics: dict[str, float]) -> Out:
    return Out(member.name, Finish(round=state.round, reason=reason, metrics=metrics), factors(member, state))


def factors(member: Member, state: GlobalState) -> dict[str, WireTensor]:
    """The factors of what the client holds; modules outside the layers (-1) go wherever the head is."""
    layers = {*member.client_layers, -1} if member.holds_head else set(member.client_layers)
    arrays = flatten(select(state.adapter, layers=layers), state.head if member.holds_head else {})
    return {name: WireTensor.of(array) for name, array in arrays.items()}


def seat(member: Member) -> Seat:
    """What the desk must know of a client whose body is here.

    :raises RemoteProtocolError: the client holds the whole model.
    """
    held = member.held_by_server
    if held is None:
        raise RemoteProtocolError(f"{member.name} holds the whole model; the server runs nothing for it")
    trains = any(layer.place == "client" and layer.trains and layer.layer < held.lo for layer in member.plan.layers)
    return Seat(held, front_trains=trains, labels_here=held.head)
