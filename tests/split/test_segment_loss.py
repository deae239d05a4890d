"""The loss in slices, over tokens or over a vocabulary in a file, is the loss in one piece."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedsplit.config.run import LoraSection
from fedsplit.split import loss as losses
from fedsplit.split.base import Base, open_base
from fedsplit.split.rows import Rows
from fedsplit.split.segment import Segment, Span, build
from fedsplit.split.streamed import StreamedLinear, StreamedMatrix
from fedsplit.split.verify import trainables
from fedsplit.testing.models import VOCABULARY, tiny

ROWS = Rows.of([list(range(5, 16)), list(range(20, 27))])


def one(base: Base, lora: LoraSection, **options: bool) -> Segment:
    return build(base, Span(2, 3, heads=True), task="causal-lm", lora=lora, **options)


def step(segment: Segment, params: dict[str, Tensor], chunk: int | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    x = torch.randn(2, 11, 24, requires_grad=True)
    assert ROWS.ids_BT is not None
    labels = torch.where(ROWS.mask_BT.bool(), ROWS.ids_BT, losses.IGNORED)
    labels[0, :4] = losses.IGNORED
    loss = segment.loss(ROWS, segment.run(ROWS, x, params), labels, 13, params, chunk=chunk)
    loss.backward()
    assert x.grad is not None
    return loss.detach(), x.grad, {name: value.grad for name, value in params.items() if value.grad is not None}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("targets", [("q_proj",), ("lm_head", "v_proj")])
@pytest.mark.parametrize("stream", [False, True])
def test_slices_give_the_same_loss_and_gradients(
    family: str, targets: tuple[str, ...], stream: bool, tmp_path: Path
) -> None:
    base = open_base(str(tiny(tmp_path, family, tie_word_embeddings=False)))
    lora = LoraSection(rank=5, targets=targets)
    whole = one(base, lora)
    loss, grad, grads = step(whole, trainables(whole), None)
    for chunk in (1, 4, 1000):
        sliced = one(base, lora, map_embedding=stream)
        found = step(sliced, trainables(sliced), chunk)
        assert torch.allclose(found[0], loss, rtol=1e-5)
        assert torch.allclose(found[1], grad, rtol=1e-4, atol=1e-7)
        assert found[2].keys() == grads.keys()
        assert all(torch.allclose(found[2][name], grads[name], rtol=1e-4, atol=1e-6) for name in grads)


def test_a_streamed_head_is_really_not_in_memory(tmp_path: Path) -> None:
    segment = one(open_base(str(tiny(tmp_path, "llama"))), LoraSection(), map_embedding=True)
    assert isinstance(segment.model.lm_head, StreamedLinear)
    assert not any(value.shape[0] == VOCABULARY for value in segment.parameters())


def test_softmax_over_slabs_survives_extreme_logits(tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path, "llama", tie_word_embeddings=False)))
    matrix = StreamedMatrix(base.checkpoint.tensors["lm_head.weight"], torch.float32, torch.device("cpu"))
    weight = matrix.stored.read(torch.float32)
    targets = torch.tensor([0, 52, 17, 30, 3])
    for scale, rows in itertools.product((0.0, 1.0, 1e4), (1, 7, 52, None)):
        h = (scale * torch.randn(5, 24)).requires_grad_()
        twin = h.detach().clone().requires_grad_()
        found = losses.streamed(h, matrix, targets, 5, rows)
        wanted = F.cross_entropy(twin @ weight.T, targets)
        found.backward()
        wanted.backward()
        assert torch.allclose(found, wanted, rtol=1e-5)
        assert torch.allclose(h.grad, twin.grad, atol=1e-6)


def test_slabs_cover_the_matrix(tmp_path: Path) -> None:
    base = open_base(str(tiny(tmp_path, "llama", dtype=torch.bfloat16)))
    stored = base.checkpoint.tensors["model.embed_tokens.weight"]
    matrix = StreamedMatrix(stored, torch.float32, torch.device("cpu"))
    full = stored.read(torch.float32)
    for rows in (1, 7, 53, 100):
        assert torch.equal(torch.cat([slab for _, slab in matrix.slabs(rows)]), full)
    ids = torch.tensor([[3, 52, 3], [0, 1, 51]])
    assert torch.equal(matrix.take(ids), full[ids])
    with pytest.raises(IndexError, match="expected 0 to 52"):
        matrix.take(torch.tensor([53]))


def test_slices_only_where_logits_are_large() -> None:
    assert losses.slice_size(512, 2048, None) is None
    size = losses.slice_size(512, 128_256, None)
    assert size is not None
    assert size * 128_256 * 4 <= losses.LOGITS_BYTES
    assert losses.slice_size(100, 10, 30) == 30
    assert losses.slice_size(100, 10, 100) is None


def test_no_sample_predicts_its_own_first_token() -> None:
    for side in ("left", "right"):
        rows = Rows.of([[5, 6, 7], [8, 9]], side=side)
        assert rows.ids_BT is not None
        labels = torch.where(rows.mask_BT.bool(), rows.ids_BT, losses.IGNORED)
        shifted = losses.shifted(labels, rows)
        assert sorted(shifted[shifted != losses.IGNORED].tolist()) == [6, 7, 9]
        assert losses.label_tokens(labels, rows) == 3
