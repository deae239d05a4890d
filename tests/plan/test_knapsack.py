"""The knapsack of layers, ranks and bits: equal to trying everything, within its bound, never over the budget."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from fedsplit.plan.knapsack import SCALE, Item, Segment, best, bound, layer_value


def instance(key: int) -> tuple[Segment, int]:
    """A small random segment and a budget that usually binds. Entering a layer lower costs its activations."""
    chance = random.Random(key)
    count = chance.randint(1, 8 if key % 2 else 5)
    ranks = chance.sample([4, 8, 16], chance.randint(1, 2 if count > 5 else 3))
    bits = chance.sample([4, 16], chance.randint(1, 1 if count > 5 else 2))
    kept = [chance.randint(0, 12) for _ in range(count)]
    floor: list[int | None] = [sum(kept[layer:]) for layer in range(count)]
    layers = [_items(chance, chance.random() / count, ranks, bits) for _ in range(count)]
    if chance.random() < 0.2:
        floor[chance.randrange(count)] = None
    if chance.random() < 0.2:
        layers[chance.randrange(count)] = [Item(rank=0, value=0.0, bytes=2)]
    most = sum(max(item.bytes for item in items) for items in layers) + sum(kept)
    return Segment(layers=layers, floor=[*floor, chance.choice([0, None])]), chance.randint(0, most)


def _items(chance: random.Random, importance: float, ranks: Sequence[int], bits: Sequence[int]) -> list[Item]:
    trained = chance.randint(0, 6)
    found = []
    for width, rank in itertools.product(bits, [0, *ranks]):
        value = layer_value(importance, rank, penalty=0.1, error=chance.random() / width)
        found.append(Item(rank=rank, value=value, bits=width, bytes=width + (rank // 4 + trained if rank else 0)))
    chance.shuffle(found)
    return found


def taken(segment: Segment, items: Sequence[Item]) -> int | None:
    """Bytes of a choice by definition; None: not allowed."""
    lowest = next((layer for layer, item in enumerate(items) if item.rank), len(items))
    floor = segment.floor[lowest]
    return None if floor is None else floor + sum(item.bytes for item in items)


def worth(items: Sequence[Item]) -> float:
    return sum(round(item.value * SCALE) for item in items) / SCALE


def by_trying(segment: Segment, budget: int) -> float | None:
    fitting = [
        worth(items) for items in itertools.product(*segment.layers)
        if (need := taken(segment, items)) is not None and need <= budget
    ]  # fmt: skip
    return max(fitting, default=None)


def test_equal_to_trying_everything() -> None:
    found = nothing = 0
    for key in range(600):
        segment, budget = instance(key)
        expected, items = by_trying(segment, budget), best(segment, budget)
        top = bound(segment, budget)
        if items is None:
            assert expected is None
            assert top is None
            nothing += 1
            continue
        need = taken(segment, items)
        assert need is not None
        assert need <= budget
        assert worth(items) == expected
        assert top is not None
        assert top >= worth(items) - 1e-9
        found += 1
    assert found >= 350
    assert nothing >= 50


def test_charging_every_layer_for_itself_breaks_the_budget() -> None:
    """The plain knapsack: each trained layer pays for its own activations, though backprop walks through all above."""
    broken = 0
    for key in range(200):
        chance = random.Random(f"plain {key}")
        count = chance.randint(3, 8)
        kept, values = [chance.randint(5, 20) for _ in range(count)], [chance.random() for _ in range(count)]
        lora, budget = [chance.randint(1, 5) for _ in range(count)], sum(kept) // 2
        subsets = [s for n in range(count + 1) for s in itertools.combinations(range(count), n)]
        plain = max(
            (s for s in subsets if sum(kept[i] + lora[i] for i in s) <= budget), key=lambda s: sum(values[i] for i in s)
        )
        broken += bool(plain) and sum(kept[plain[0] :]) + sum(lora[i] for i in plain) > budget
        layers = [
            [Item(rank=0, value=0, bytes=0), Item(rank=8, value=v, bytes=b)] for v, b in zip(values, lora, strict=True)
        ]
        segment = Segment(layers=layers, floor=[sum(kept[i:]) for i in range(count + 1)])
        items = best(segment, budget)
        assert items is not None
        need = taken(segment, items)
        assert need is not None
        assert need <= budget
    assert broken > 120


@pytest.mark.parametrize("units", [7, 50, 2000])
def test_coarse_units_stay_within_the_budget_and_lose_at_most_a_unit_a_layer(units: int) -> None:
    chance = random.Random(5)
    layers = [
        [Item(rank=0, value=0.0, bytes=0)]
        + [Item(rank=r, value=layer_value(1 / 12, r), bytes=chance.randint(10**6, 10**7)) for r in (2, 4, 8)]
        for _ in range(12)
    ]
    segment = Segment(layers=layers, floor=[(12 - layer) * 10**6 for layer in range(13)])
    most = sum(max(item.bytes for item in items) for items in layers)
    unit = -(-most // units)
    before = -1.0
    for budget in range(0, 100 * 10**6, 5 * 10**6):
        items = best(segment, budget, units=units)
        assert items is not None or budget < 0
        need = taken(segment, items or ())
        assert need is not None
        assert need <= budget
        assert worth(items or ()) >= before
        before = worth(items or ())
        top, less = bound(segment, budget), bound(segment, budget - 13 * unit)
        assert top is not None
        assert before <= top + 1e-9
        if less is not None:
            # The bound of a budget that is a unit a layer smaller, less one step of a hull: more cannot be lost.
            assert before >= less - layer_value(1 / 12, 8) - 1e-9


def test_ties_go_to_the_deepest_start_then_to_the_top_layers() -> None:
    layers = [[Item(rank=0, value=0.0, bytes=0), Item(rank=8, value=0.25, bytes=10)] for _ in range(4)]
    segment = Segment(layers=layers, floor=[0] * 5)
    items = best(segment, 25)
    assert items is not None
    assert [item.rank for item in items] == [0, 0, 8, 8]
    assert best(segment, 25) == items


def test_one_layer_low_down_makes_all_above_it_nearly_free() -> None:
    """Where a deep start costs little, adapters decide; where activations cost much, the depth does."""
    layers = [[Item(rank=0, value=0.0, bytes=0), Item(rank=8, value=1.0, bytes=1)] for _ in range(6)]
    dear = Segment(layers=layers, floor=[100 * (6 - layer) for layer in range(7)])
    items = best(dear, 310)
    assert items is not None
    assert [item.rank for item in items] == [0, 0, 0, 8, 8, 8]


def test_the_value_of_a_rank() -> None:
    assert layer_value(1.0, 0) == 0
    assert layer_value(1.0, 4) == 0.5
    assert layer_value(0.5, 8) == 0.375
    assert layer_value(1.0, 4, penalty=2.0, error=0.1) == pytest.approx(0.3)
