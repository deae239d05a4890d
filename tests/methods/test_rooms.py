"""Layers drawn anew every round: how many each client gets, that none is left out, and what it rests on."""

from __future__ import annotations

from collections import Counter

import pytest

from fedsplit.errors import IncompatibleParts
from fedsplit.method import Ask, check, stock
from fedsplit.method.rooms import given, random_rooms
from fedsplit.methods.fedra import fedra

PAPER = dict(zip("abcdef", [12, 10, 8, 6, 4, 3], strict=True))
FLEETS = [PAPER, {"a": 4, "b": 4, "c": 4}, {"a": 11, "b": 1}, dict.fromkeys("abcdefghijkl", 1), {"a": 3, "b": 2}]


@pytest.mark.parametrize("rooms", FLEETS, ids=lambda rooms: "-".join(str(room) for room in rooms.values()))
def test_everybody_gets_its_count_and_no_layer_is_left_out(rooms: dict[str, int]) -> None:
    for round in range(50):
        held = given(7, round, 12, rooms)
        assert {name: len(mine) for name, mine in held.items()} == rooms
        union = frozenset[int]().union(*held.values())
        assert union <= set(range(12))
        assert len(union) == min(12, sum(rooms.values())) or sum(rooms.values()) > 12
        if sum(rooms.values()) >= 12:
            assert len(union) == 12


def test_every_layer_is_drawn_about_equally_often() -> None:
    count = Counter(layer for round in range(3000) for layer in given(1, round, 12, {"a": 4, "b": 6})["a"])
    assert set(count) == set(range(12))
    assert all(850 < number < 1150 for number in count.values())


def test_the_draw_rests_on_seed_round_and_rooms_alone() -> None:
    first = given(3, 5, 12, PAPER)
    assert given(3, 5, 12, dict(reversed(PAPER.items()))) == first
    assert given(4, 5, 12, PAPER) != first
    assert given(3, 6, 12, PAPER) != first
    asks = [Ask(round=5, client=name, seed=3, layers=12, rank=8, rooms=PAPER) for name in reversed(PAPER)]
    assert {ask.client: random_rooms.choose(ask).holds for ask in asks} == first
    assert random_rooms.choose(asks[0]).trains == first["f"]


def test_only_devices_without_a_body_at_the_server_leave_layers_out() -> None:
    check(fedra())
    assert not fedra().edge
    with pytest.raises(IncompatibleParts, match=r"layers = random_rooms does not go with topology = planned.*local"):
        check(fedra().but(topology=stock.planned))
