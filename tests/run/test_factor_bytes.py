"""Factors cost what the plan says: for every method that ships, planned bytes are those that then travel."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
import pytest

from fedsplit.config.load import loads
from fedsplit.method.of_run import method_of
from fedsplit.method.registry import names
from fedsplit.method.settled import settled
from fedsplit.method.stored import FOLD
from fedsplit.plan.types import ClientPlan, Estimate, Topology
from fedsplit.wire.frames import Packet
from fedsplit.wire.messages import Evaluate, Finish, Start, Update, Welcome
from tests.run.conftest import run_file
from tests.run.party import Party

Make = Callable[..., Party]
ROUNDS = 2
PLACES = {
    Topology.U: 'topology = "u"\ncut = [1, 3]',
    Topology.V: 'topology = "v"\ncut = [4, 6]',
    Topology.LOCAL: 'topology = "local"',
}


def settings(method: str) -> dict[str, object]:
    name, _, version = method.partition(" ")
    options = {"method.options__version": version} if version else {}
    return options | {"method__name": name, "train__rounds": ROUNDS, "train__steps": 1, "lora__rank": 4}


def clients(method: str) -> dict[str, str]:
    """One a topology that the method admits."""
    run = loads(run_file({"a": ""}, **settings(method)))
    admitted = settled(run, method_of(run)).policy.topologies or tuple(PLACES)
    return dict(zip("abc", (text for place, text in PLACES.items() if place in admitted), strict=False))


@pytest.mark.parametrize("method", [*names(), "splitfed v3"])
def test_planned_bytes_are_those_on_the_link(party: Make, method: str) -> None:
    run = party(clients(method), **settings(method))
    assert run.keeper.state.round == ROUNDS
    for name, end in run.ends.items():
        cost = planned(end.received)
        starts, whole = (of_kind(end.received, kind) for kind in (Start, Evaluate | Finish))
        whole = [packet for packet in whole if not (isinstance(packet.message, Evaluate) and packet.message.sensing)]
        updates = of_kind(end.sent, Update)
        assert len(starts) == len(updates) == ROUNDS, name
        assert nbytes(updates) == pytest.approx(ROUNDS * cost.factors_up_bytes, abs=ROUNDS), name
        assert nbytes(starts) == pytest.approx(ROUNDS * (cost.start_bytes or cost.factors_down_bytes), abs=ROUNDS), name
        assert nbytes(whole) == pytest.approx(len(whole) * cost.factors_down_bytes, abs=ROUNDS), name
        assert nbytes([*starts, *whole], folds=True) == ROUNDS * cost.fold_bytes, name


def planned(packets: Iterable[Packet]) -> Estimate:
    """The costs that the client was offered."""
    [text] = [packet.message.plan for packet in packets if isinstance(packet.message, Welcome)]
    cost = msgspec.json.decode(text, type=ClientPlan).estimate
    assert cost is not None
    return cost


def of_kind(packets: Iterable[Packet], kind: object) -> list[Packet]:
    return [packet for packet in packets if isinstance(packet.message, kind)]  # type: ignore[arg-type]


def nbytes(packets: Iterable[Packet], *, folds: bool = False) -> int:
    """Bytes of their tensors: factors and head, or what goes into the base."""
    tensors = ((name, tensor) for packet in packets for name, tensor in packet.tensors.items())
    return sum(tensor.numpy().nbytes for name, tensor in tensors if name.startswith(FOLD) == folds)
