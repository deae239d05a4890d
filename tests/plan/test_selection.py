"""A cut as a knapsack: its sums are the closed forms', and the worked example comes out of it to the MiB."""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import pytest
from families import config_of
from test_cost import LLAMA_1B, MIB, ONE_FLOPS, WORK

from fedsplit.devices.profile import DeviceProfile
from fedsplit.plan.card import card
from fedsplit.plan.factors import factor_bytes
from fedsplit.plan.knapsack import Item, best
from fedsplit.plan.memory import Memory, client_memory
from fedsplit.plan.selection import ROUNDING, chosen_ranks, own_layers, segment_of, value_of
from fedsplit.plan.timing import step_times, traffic
from fedsplit.plan.types import Cut, Topology
from fedsplit.plan.work import Work

PROCESS = msgspec.structs.replace(ONE_FLOPS, runtime_bytes=5_000_000)
LOCAL = (Topology.LOCAL, Cut(16, 16))


def total(work: Work, topology: Topology, cut: Cut, device: DeviceProfile) -> int:
    memory = client_memory(work, topology, cut).with_holes(work, device)
    return memory.total - memory.runtime


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_sums_are_the_closed_forms(family: str, checkpoint: bool) -> None:
    """Floor and items of any choice come to the bytes of its closed form: never below, and hardly above."""
    chance = random.Random(f"{family} {checkpoint}")
    depth = {"n_layer" if family == "gpt2" else "num_hidden_layers": 6}
    model = card(config_of(family, **depth), "classification" if family == "bert" else "causal-lm", 3)
    only = (*(f"{model.layer_prefix}.{layer}.{model.linears[0].path}" for layer in (1, 4)),)
    cuts = [(Topology.LOCAL, Cut(6, 6)), (Topology.U, Cut(2, 4)), (Topology.U, Cut(3, 6)), (Topology.V, Cut(4, 6))]
    for topology, cut in cuts:
        for targets in ((), only):
            work = Work(
                card=model, batch=6, tokens=16, typical=16, valid=12, rank=8, targets=targets, micro_batches=3,
                dtype=chance.choice(("float32", "bfloat16")), lora_dropout=chance.choice((0, 0.1)),
                checkpoint=checkpoint,
            )  # fmt: skip
            for device in (ONE_FLOPS, PROCESS):
                segment = segment_of(work, topology, cut, device, (2, 8))
                for _ in range(8):
                    items = [chance.choice(items) for items in segment.layers]
                    lowest = next((i for i, item in enumerate(items) if item.rank), len(items))
                    floor = segment.floor[lowest]
                    if floor is None:
                        continue
                    chosen = replace(work, ranks=chosen_ranks(work, topology, cut, items))
                    need = total(chosen, topology, cut, device)
                    summed = floor + sum(item.bytes for item in items)
                    # What is inside the largest layer is taken at the largest rank: six more elements a projection.
                    spare = 2 * ROUNDING + len(items) + 72 * work.peak_tokens * work.width_bytes
                    assert need <= summed <= need + spare


def acts(memory: Memory) -> int:
    return memory.acts_front + memory.acts_tail


def test_the_worked_rows_come_out_of_the_selection() -> None:
    """Memory for the last four layers' adapters; then the same with two layers that matter, the lowest among them."""
    four = replace(WORK, ranks=(0,) * 12 + (8,) * 4)
    found = selected(total(four, *LOCAL, ONE_FLOPS) + MIB)
    memory = client_memory(found, *LOCAL)
    assert found.ranks == four.ranks
    assert memory.total / MIB == pytest.approx(3925, abs=1)
    assert acts(memory) / MIB == pytest.approx(312, abs=0.55)
    assert memory.adapters / MIB == pytest.approx(3.3, abs=0.55)

    two = replace(WORK, ranks=(8, *(0,) * 14, 8))
    found = selected(total(two, *LOCAL, ONE_FLOPS) + MIB // 10, importance=[100.0, *[1.0] * 14, 100.0])
    memory = client_memory(found, *LOCAL)
    assert found.ranks == two.ranks
    assert memory.total / MIB == pytest.approx(4803, abs=1)
    assert acts(memory) / MIB == pytest.approx(1192, abs=0.55)
    assert memory.adapters / MIB == pytest.approx(1.6, abs=0.55)


def selected(budget: int, importance: list[float] | None = None, ranks: tuple[int, ...] = (8,)) -> Work:
    items = best(segment_of(WORK, *LOCAL, ONE_FLOPS, ranks, importance or ()), budget)
    assert items is not None
    return replace(WORK, ranks=chosen_ranks(WORK, *LOCAL, items))


def test_all_layers_at_full_rank_when_there_is_memory() -> None:
    assert selected(2**40, ranks=(2, 4, 8)).ranks == (8,) * 16
    assert value_of(selected(2**40)) == pytest.approx(1 - 2**-2)


def test_less_memory_never_gives_more_and_never_less_than_it_takes() -> None:
    full = total(WORK, *LOCAL, ONE_FLOPS)
    before, seen = 2.0, set()
    for budget in range(full + 50 * MIB, full - 1500 * MIB, -40 * MIB):
        items = best(segment_of(WORK, *LOCAL, ONE_FLOPS, (2, 8)), budget)
        if items is None:
            break
        found = replace(WORK, ranks=chosen_ranks(WORK, *LOCAL, items))
        assert total(found, *LOCAL, ONE_FLOPS) <= budget
        value = value_of(found)
        assert value <= before
        before = value
        seen.add(found.ranks)
    assert len(seen) > 10
    assert items is None


def test_the_server_trains_all_it_holds() -> None:
    segment = segment_of(WORK, Topology.U, Cut(2, 15), ONE_FLOPS, (8,))
    assert own_layers(WORK, Topology.U, Cut(2, 15)) == [0, 1, 15]
    frozen = [Item(rank=0, value=0, bytes=0)] * 3
    assert chosen_ranks(WORK, Topology.U, Cut(2, 15), frozen) == (0, 0, *(8,) * 13, 0)
    front = [floor for floor in segment.floor if floor is not None]
    # A front in which nothing trains keeps nothing, and no gradient travels back to it.
    keeps = 1024 * 2 * WORK.kept
    assert front[0] - front[2] == pytest.approx(1.1 * (2 * keeps + 1024 * 2 * 2048), rel=0.001)
    assert front[2] == pytest.approx(front[3], abs=2 * ROUNDING)


def test_a_local_plan_trains_something() -> None:
    assert segment_of(WORK, *LOCAL, ONE_FLOPS, (8,)).floor[-1] is None
    assert segment_of(WORK, Topology.V, Cut(2, 16), ONE_FLOPS, (8,)).floor[-1] is not None


def test_bytes_and_seconds_follow_the_selection() -> None:
    cut = Cut(2, 15)
    whole, frozen = WORK, replace(WORK, ranks=(0, 0, *(8,) * 14))
    per_layer = 4 * LLAMA_1B_FACTORS
    assert factor_bytes(whole, Topology.U, cut, own_head=False)[0] == 3 * per_layer
    assert factor_bytes(frozen, Topology.U, cut, own_head=False)[0] == per_layer
    assert traffic(frozen, Topology.U, cut)[1] * 2 == traffic(whole, Topology.U, cut)[1]
    slow, quick = (step_times(work, Topology.U, cut, ONE_FLOPS, ONE_FLOPS).device for work in (whole, frozen))
    assert quick < slow
    half = replace(WORK, ranks=(4,) * 16)
    assert factor_bytes(half, Topology.U, cut, own_head=False)[0] == 3 * per_layer // 2


LLAMA_1B_FACTORS = 8 * sum(linear.out + linear.inp for linear in LLAMA_1B.adapted((), 0))
