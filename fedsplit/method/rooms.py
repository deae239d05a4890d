"""Which layers every client holds in a round when none needs to hold all: drawn at random, no layer left out.

A client has room for so many layers; the plan counts how many. Each draws that many of the model's, then layers that
nobody drew are given to clients that hold one which others hold, too. All of it follows from the run's seed, the round
and the rooms of the clients that take part: the order in which they are asked leaves no trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from msgspec import structs

from fedsplit.method.parts import Ask, LayerChoice, LayerRule
from fedsplit.plan.types import ABSENT, ClientPlan
from fedsplit.seeds import generator

Given = Mapping[str, frozenset[int]]


@lru_cache(maxsize=8)
def _given(seed: int, round: int, layers: int, rooms: tuple[tuple[str, int], ...]) -> Given:
    held = {name: _drawn(seed, round, layers, name, room) for name, room in rooms}
    # In an order of its own: where rooms do not reach, it is not always the last layers that nobody has.
    for layer in generator(seed, round, "repair").permutation(layers).tolist():
        count = Counter(one for mine in held.values() for one in mine)
        twice = [(name, one) for name, mine in held.items() for one in sorted(mine) if count[one] > 1]
        if not count[layer] and twice:
            # Who holds a layer of two holders does not hold this one, which nobody does.
            name, given_up = twice[int(generator(seed, round, layer, "swapped").integers(len(twice)))]
            held[name] = held[name] - {given_up} | {layer}
    return held


def _drawn(seed: int, round: int, layers: int, name: str, room: int) -> frozenset[int]:
    return frozenset(generator(seed, round, name, "layers").permutation(layers)[:room].tolist())


def given(seed: int, round: int, layers: int, rooms: Mapping[str, int]) -> Given:
    """The layers of every client: as many as it has room for, each layer with at least one client where all rooms
    together reach."""
    return _given(seed, round, layers, tuple(sorted(rooms.items())))


def _choose(ask: Ask) -> LayerChoice:
    rooms = ask.rooms or {ask.client: ask.layers}
    mine = given(ask.seed, ask.round, ask.layers, rooms)[ask.client]
    return LayerChoice(mine, mine)


random_rooms = LayerRule("random_rooms", _choose, rooms=True)
"""FedRA's: other layers every round, all that are held train."""


def room_of(plan: ClientPlan) -> int:
    """How many layers the client holds."""
    return sum(layer.place == "client" for layer in plan.layers)


def holding(plan: ClientPlan, choice: LayerChoice) -> ClientPlan:
    """The plan with these layers on the device and no others anywhere."""
    layers = tuple(
        structs.replace(
            layer, place="client" if layer.layer in choice.holds else ABSENT, trains=layer.layer in choice.trains
        )
        for layer in plan.layers
    )
    return structs.replace(plan, layers=layers)


def given_out(plans: Mapping[str, ClientPlan], rule: LayerRule, seed: int, round: int) -> dict[str, ClientPlan]:
    """The plans of all who take part in the round, each with its layers of that round."""
    rooms = {name: room_of(plan) for name, plan in plans.items()}
    found = {}
    for name, plan in plans.items():
        ask = Ask(round=round, client=name, seed=seed, layers=len(plan.layers), rank=0, rooms=rooms)
        found[name] = holding(plan, rule.choose(ask))
    return found
