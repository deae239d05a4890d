"""Folds beside base weights: the same function as wider factors, in every kind of module, thin and dense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedsplit.config.run import LoraSection
from fedsplit.lora.lowrank import LowRank
from fedsplit.method.values import whole
from fedsplit.split.base import open_base
from fedsplit.split.beside import LEFT, RIGHT
from fedsplit.split.lora import read, write, write_patch
from fedsplit.split.rows import Rows
from fedsplit.split.segment import Span, build
from fedsplit.split.verify import trainables
from fedsplit.testing.models import IMAGE, default_task, tiny

ROWS = Rows.of([[5, 6, 7, 8], [9, 10, 11, 12]])
KINDS = {
    "linear": ("llama", ("all-linear",)),
    "transposed linear": ("gpt2", ("all-linear",)),
    "embedding": ("llama", ("embed_tokens", "q_proj")),
    "convolution": ("vit", ("projection", "query")),
}


@pytest.mark.parametrize("rank", [1, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fold_is_what_wider_factors_are(kind: str, rank: int, tmp_path: Path) -> None:
    family, targets = KINDS[kind]
    base = open_base(str(tiny(tmp_path, family)))
    lora = LoraSection(rank=3, alpha=5, targets=targets)
    task = default_task(family)
    labels = None if task == "causal-lm" else 4
    segment = build(base, Span(0, base.num_layers, True, True), task=task, num_labels=labels, lora=lora)
    adapter, head = read(trainables(segment), segment)
    rng = np.random.default_rng(0)
    patch = {}
    for key, part in adapter.items():
        (m, n), size = part.shape, 0.3 * rank**-0.5
        b_MR, a_RN = size * rng.normal(size=(m, rank)), size * rng.normal(size=(rank, n))
        patch[key] = LowRank(b_MR.astype(np.float32), a_RN.astype(np.float32))
    beside = write_patch(patch, segment)
    assert any(name.endswith(LEFT) for name in beside)
    assert (rank == 1) == any(name.endswith(RIGHT) for name in beside), "too wide to be thin: dense"
    rows = Rows.images(torch.randn(2, *IMAGE), 10) if family == "vit" else ROWS
    with torch.no_grad():
        plain = write(adapter, head, segment)
        before = segment.logits(rows, segment.run(rows, None, plain), plain)
        patched = {**plain, **beside}
        found = segment.logits(rows, segment.run(rows, None, patched), patched)
        after = segment.logits(rows, segment.run(rows, None, plain), plain)
        wide = write(whole(adapter, patch), head, segment)
        expected = segment.logits(rows, segment.run(rows, None, wide), wide)
    assert torch.equal(before, after), "a patch belongs to the call that brings it"
    assert not torch.allclose(found, before, atol=1e-2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
