"""Segments that leave layers out: what they hold, and that they compute the model without those layers, to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fedsplit.config.run import LoraSection
from fedsplit.split.base import Base, open_base
from fedsplit.split.rows import Rows
from fedsplit.split.segment import Dropout, Segment, build
from fedsplit.split.span import Absent, Span

HELD = (1, 2, 4)
Make = Callable[[tuple[int, ...]], Segment]


@pytest.fixture(scope="module")
def base() -> Base:
    return open_base("pydoc-llama")


@pytest.fixture(scope="module")
def segment(base: Base) -> Make:
    def make(held: tuple[int, ...]) -> Segment:
        skips = frozenset(range(base.num_layers)) - set(held)
        span = Span(0, base.num_layers, embeds=True, heads=True, skips=skips)
        return build(base, span, task="causal-lm", lora=LoraSection(rank=3, dropout=0.1))

    return make


def test_layers_left_out_take_no_memory_and_bring_no_factors(base: Base, segment: Make) -> None:
    everything = tuple(range(base.num_layers))
    sizes = {count: segment(everything[:count]).parameter_bytes for count in (0, 1, 2, 6)}
    one = sizes[1] - sizes[0]
    assert one > 0
    assert sizes == {count: sizes[0] + count * one for count in sizes}
    mine = segment(HELD)
    assert [isinstance(layer, Absent) for layer in mine._layers] == [layer not in HELD for layer in everything]
    assert {int(name.split("layers.")[1].split(".")[0]) for name in mine.trainable_names()} == set(HELD)


def test_it_is_the_model_with_identities_in_their_place(base: Base, segment: Make) -> None:
    """Forward and gradients, dropout included: masks go by a layer's number."""
    torch.manual_seed(0)
    rows = Rows(torch.randint(1, base.config.vocab_size, (2, 7)), (7, 5), (0, 0), 7)
    found = []
    for make in (_compact, _with_identities):
        whole = segment(tuple(range(base.num_layers)))
        params = {name: value + 0.01 for name, value in whole.new_params(1).items()}
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        h_BTD, seg = make(segment, rows, leaves)
        assert rows.ids_BT is not None
        loss = seg.loss(rows, h_BTD, rows.ids_BT, 10, leaves, dropout=Dropout(("x",)))
        loss.backward()
        found.append((loss.detach(), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}))
    (one, gradients), (other, wanted) = found
    assert torch.equal(one, other)
    assert gradients.keys() == wanted.keys()
    assert all(torch.equal(gradients[name], wanted[name]) for name in wanted)
    assert {int(name.split("layers.")[1].split(".")[0]) for name in gradients} == set(HELD)


def _compact(segment: Make, rows: Rows, leaves: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Segment]:
    mine = segment(HELD)
    return mine.run(rows, None, leaves, dropout=Dropout(("x",))), mine


def _with_identities(segment: Make, rows: Rows, leaves: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Segment]:
    whole = segment(tuple(range(6)))
    h_BTD = whole.run(rows, None, leaves, layers=(0, 0), dropout=Dropout(("x",)))
    for layer in HELD:
        h_BTD = whole.run(rows, h_BTD, leaves, layers=(layer, layer + 1), dropout=Dropout(("x",)))
    return h_BTD, whole
