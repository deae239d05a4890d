"""Layers that a plan leaves alone: in the forward pass, in nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedsplit.config.run import LoraSection, ModelSection, RunFile, TrainSection
from fedsplit.data.batches import Batch
from fedsplit.exchange.step import At, local_step
from fedsplit.plan.types import ClientPlan, Cut, LayerPlan, Topology
from fedsplit.split.base import Base, open_base
from fedsplit.split.stash import GraphMeter
from fedsplit.testing.models import tiny
from fedsplit.train.batch import as_torch
from fedsplit.train.part import ClientPart
from fedsplit.train.start import first_state

LAYERS = 4
RUN = RunFile(
    model=ModelSection(path="x"), lora=LoraSection(rank=2, alpha=4), train=TrainSection(optimizer="sgd", momentum=0.0)
)
AT = At(run="r", client="a", round=0, era=1, step=0, first_step=0, base_version=0, adapter_version=0, cut=(4, 4))


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return open_base(str(tiny(tmp_path, "llama", layers=LAYERS)))


def part_of(base: Base, trains: set[int]) -> ClientPart:
    layers = tuple(LayerPlan(layer=i, place="client", trains=i in trains, rank=2) for i in range(LAYERS))
    cut = Cut(LAYERS, LAYERS)
    part = ClientPart(base, ClientPlan(client="a", topology=Topology.LOCAL, cut=cut, layers=layers, batch=1), RUN)
    state = first_state(base, RUN)
    part.load(state.adapter, state.head)
    return part


def batch() -> Batch:
    ids = np.array([range(3, 15), range(5, 17)])
    return Batch(ids_BT=ids, lengths=(12, 12), starts=(0, 0), width=12, labels=ids, label_tokens=22)


def kept(part: ClientPart) -> int:
    """Bytes that backward waits for, the weights and factors themselves left out."""
    frozen = [*part.first.parameters(), *part.tensors.values()]
    with GraphMeter({tensor.untyped_storage().data_ptr() for tensor in frozen}) as meter:
        part.front(as_torch(batch()).rows)
    return meter.nbytes


def test_activations_count_from_the_lowest_layer_that_trains(base: Base) -> None:
    whole = kept(part_of(base, {0, 1, 2, 3}))
    assert kept(part_of(base, set())) == 0
    assert kept(part_of(base, {3})) < kept(part_of(base, {2, 3})) < 0.6 * whole
    assert kept(part_of(base, {0})) > 0.8 * whole


def test_what_rests_has_no_gradient_and_is_not_read(base: Base) -> None:
    part = part_of(base, {2, 3})
    before = {name: leaf.clone() for name, leaf in part.tensors.items()}
    local_step(part, [batch()], 1.0, AT, 0)
    assert {key.layer for key in part.read()[0]} == {2, 3}
    assert len(part.params) == len(part.frozen) == 8
    assert not any(leaf.requires_grad or leaf.grad is not None for leaf in part.frozen.values())
    moved = {name for name, leaf in part.tensors.items() if not torch.equal(leaf, before[name])}
    # A has no gradient in the first step, while B is zero.
    assert moved == {name for name in part.params if "lora_B" in name}


def test_what_rests_takes_part(base: Base) -> None:
    """With other frozen factors below, the loss is another one."""
    part = part_of(base, {3})
    for name, leaf in part.frozen.items():
        if "lora_B" in name:
            leaf.copy_(torch.full_like(leaf, 0.5))
    changed, plain = (float(one.loss(as_torch(batch()), 22).detach()) for one in (part, part_of(base, {3})))
    assert changed != pytest.approx(plain, abs=1e-3)


def test_a_part_in_which_nothing_trains_measures_its_loss(base: Base) -> None:
    outcome = local_step(part_of(base, set()), [batch()], 1.0, AT, 0)
    assert outcome.loss > 0
