"""Frozen matrices in fewer bits, chosen by the plan: their bytes are those of real segments, no plan is over budget, a
device short of memory keeps more layers in training than without them."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from families import config_of
from test_fitted import LOCAL_ONLY, MODEL, full_plans, question, run_file
from test_grid import device

from fedsplit.config.run import ModelSection, PlanSection, PolicySection, RunFile, ServerSection
from fedsplit.errors import PlanError
from fedsplit.plan.bits import torch_bytes, unpacked_bytes
from fedsplit.plan.card import card
from fedsplit.plan.fitted import EQUAL, Fitter
from fedsplit.plan.knapsack import Item
from fedsplit.plan.memory import client_memory
from fedsplit.plan.question import Question, priced, questions, step_of
from fedsplit.plan.selection import chosen_bits, chosen_ranks, own_layers, segment_of, value_of
from fedsplit.plan.solve import solve
from fedsplit.plan.trained import weighed
from fedsplit.plan.types import ClientPlan, Cut, Topology
from fedsplit.plan.work import Work, as_planned
from fedsplit.split.base import open_base
from fedsplit.split.segment import Span, build
from fedsplit.testing.models import FAMILIES, default_task, tiny

FEWER = PlanSection(layers="fit", bits=(8, 4), checkpoint=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_those_of_real_segments(family: str, tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path, family)))
    task = default_task(family)
    model = card(base.config.to_dict(), task, 3)
    for bits, (dtype, width) in itertools.product((32, 16, 8, 4), {"float32": 4, "bfloat16": 2}.items()):
        labels = None if task == "causal-lm" else 3
        one = build(base, Span(1, 2), task=task, num_labels=labels, dtype=dtype, bits={1: bits})
        assert one.parameter_bytes == torch_bytes(model, width, bits)


def test_minilm_and_llama_take_a_seventh_in_four_bits() -> None:
    for family, ratio in (("bert", 0.143), ("llama", 0.141)):
        sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12}
        model = card(config_of(family, **sizes), "classification", 4)
        assert torch_bytes(model, 4, 4) / torch_bytes(model, 4, 32) == pytest.approx(ratio, abs=0.001)
        assert torch_bytes(model, 4, 4) <= 0.15 * torch_bytes(model, 4, 32)


@pytest.mark.parametrize("edge", [False, True])
def test_the_sums_are_the_closed_forms(edge: bool) -> None:
    """Of any choice of ranks and bits: never below what it takes, above by the matrix that none may have to unpack."""
    chance = random.Random(7)
    for topology, cut in [(Topology.LOCAL, Cut(4, 4)), (Topology.U, Cut(1, 3)), (Topology.V, Cut(2, 4))]:
        run = run_file(plan=FEWER)
        asked = question(device(500, 1e10, 1e6, edge=edge), run)
        work = step_of(asked)[1][0]
        segment = segment_of(work, topology, cut, asked.device, (2, 8), bits=(32, 8, 4))
        for _ in range(30):
            items = [chance.choice(items) for items in segment.layers]
            lowest = next((place for place, item in enumerate(items) if item.rank), len(items))
            tried = chosen(work, topology, cut, items)
            memory = client_memory(tried, topology, cut).with_holes(tried, asked.device)
            floor = segment.floor[lowest]
            if floor is None:
                continue
            summed, need = floor + sum(item.bytes for item in items), memory.total - memory.runtime
            assert need <= summed
            if not edge:
                # And the inside of the largest layer, at the largest rank.
                assert summed <= need + unpacked_bytes(work) + 72 * work.peak_tokens * work.width_bytes + 16


def chosen(work: Work, topology: Topology, cut: Cut, items: list[Item]) -> Work:
    ranks, bits = chosen_ranks(work, topology, cut, items), chosen_bits(work, topology, cut, items)
    return replace(work, ranks=ranks, layer_bits=bits)


@pytest.mark.parametrize("policy", [LOCAL_ONLY, PolicySection(topologies=("u",))])
def test_as_good_as_trying_everything(policy: PolicySection) -> None:
    model = card(config_of("llama", num_hidden_layers=3), "causal-lm")
    run = run_file(policy=policy, plan=FEWER)

    def asked(megabytes: float) -> Question:
        return questions(model, {"c": device(megabytes, 1e10, 1e6)}, run)["c"]

    whole, hits = min(option.memory.total for option in full_plans(asked(1000))), 0
    for share in (0.97, 0.9, 0.8, 0.7, 0.6):
        one = asked(whole * share / 0.9 / 1e6)
        found, every = Fitter(one).best(one), by_trying(one)
        assert found is None or found.option.fits
        spare = one.device.budget_bytes - unpacked_bytes(step_of(one)[1][0])
        safe = [value for value, need in every if need <= spare]
        if found is None:
            assert not safe
            continue
        assert max(safe, default=0.0) - EQUAL <= found.value <= max(value for value, _ in every) + EQUAL
        hits += any(found.option.work.layer_bits)
    assert hits >= 2


def by_trying(one: Question) -> list[tuple[float, int]]:
    """(value, peak bytes) of every selection that fits."""
    cuts, works, _ = step_of(one)
    found = []
    for (topology, cut), work in itertools.product(cuts, works):
        ways = [Item(rank=rank, value=0, bytes=0, bits=bits) for rank in (0, 8) for bits in (32, 8, 4)]
        for items in itertools.product(ways, repeat=len(own_layers(work, topology, cut))):
            tried = chosen(work, topology, cut, list(items))
            option = priced(one, topology, cut, [tried])
            if tried.adapter_params[-1] and option.fits:
                found.append((value_of(tried), option.memory.total))
    return found


def plan(megabytes: float, run: RunFile) -> ClientPlan:
    return solve(MODEL, {"c": device(megabytes, 1e10, 1e6)}, run).clients[0]


def test_less_memory_takes_fewer_bits_before_it_gives_up_layers() -> None:
    run, without = (run_file(policy=LOCAL_ONLY, plan=FEWER), run_file(policy=LOCAL_ONLY))
    need = full_plans(question(device(500, 1e10, 1e6), run))[0].memory.total / 0.9 / 1e6
    enough = plan(need * 1.01, run)
    assert {(layer.bits, layer.trains) for layer in enough.layers} == {(32, True)}
    assert msgspec.json.encode(enough) == msgspec.json.encode(plan(need * 1.01, without))
    seen = set()
    for share in range(99, 40, -3):
        try:
            found = plan(need * share / 100, run)
        except PlanError:
            break
        assert found.estimate is not None
        assert found.estimate.memory_bytes <= 0.9 * need * share / 100 * 1e6
        seen.add(tuple((layer.bits if layer.trains else 0) for layer in found.layers))
        again = as_planned(step_of(question(device(500, 1e10, 1e6), run))[1][0], found)
        assert [again.bits_of(layer.layer) or 32 for layer in found.layers] == [layer.bits for layer in found.layers]
    assert any(len(set(bits) - {0}) > 1 and all(bits) for bits in seen), seen
    short = plan(need * 0.75, run)
    assert sum(layer.trains for layer in short.layers) > sum(
        layer.trains for layer in plan(need * 0.75, without).layers
    )
    assert any("frozen matrices in " in reason for reason in short.reasons)


def test_what_the_layers_weigh_counts_their_bits() -> None:
    run = run_file(policy=LOCAL_ONLY, plan=FEWER)
    one = question(device(500, 1e10, 1e6), run)
    small = full_plans(one)[0].memory.total * 0.55 / 0.9 / 1e6
    found = plan(small, run)
    assert any(layer.bits < 32 for layer in found.layers)
    lines = weighed(found, question(device(small, 1e10, 1e6), run))
    assert [line.rank for line in lines] == [layer.rank if layer.trains else 0 for layer in found.layers]


def test_a_body_in_four_bits_takes_less_of_the_server() -> None:
    def planned(bits: int) -> ClientPlan:
        server = msgspec.convert({"bits": bits}, ServerSection)
        return plan(
            500, run_file(policy=PolicySection(topologies=("w",), exposes_tokens=True, min_front=0), server=server)
        )

    full, four = planned(32), planned(4)
    assert {layer.bits for layer in four.layers if layer.place == "server"} == {4}
    assert {layer.bits for layer in four.layers if layer.place == "client"} <= {32}
    assert full.estimate is not None
    assert four.estimate is not None
    held = sum(layer.place == "server" for layer in full.layers)
    assert four.cut == full.cut
    saved = held * (torch_bytes(MODEL, 4, 32) - torch_bytes(MODEL, 4, 4))
    matrix = max(linear.out * linear.inp for linear in MODEL.linears) * 4
    assert full.estimate.server_memory_bytes - four.estimate.server_memory_bytes == saved - matrix


def test_half_precision_has_no_sixteen_bits_to_save() -> None:
    run = run_file(model=ModelSection(path="x", max_length=32, dtype="bfloat16"), plan=FEWER)
    assert {layer.bits for layer in plan(500, run).layers} == {16}
