"""One (micro-)batch as torch sees it: rows, labels and how many label tokens the loss counts.

Legend: B samples, T padded width, N valid tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsplit.config.run import Task
from fedsplit.split.rows import Rows, pack, unpack

IGNORED = -100
"""Label of a position without loss."""


@dataclass(frozen=True, eq=False)
class Batch:
    """``labels``: (B, T) for language models (not shifted, ``IGNORED`` where there is no loss), else (B,)."""

    rows: Rows
    labels: Tensor
    label_tokens: int

    @property
    def examples(self) -> int:
        return len(self.rows.lengths)


def labels_to_wire(task: Task, batch: Batch) -> Tensor:
    """(N,) for language models, padding left out; else (B,)."""
    return pack(batch.labels, batch.rows) if task == "causal-lm" else batch.labels


def labels_from_wire(task: Task, labels: Tensor, rows: Rows) -> Tensor:
    """The inverse: (B, T) with ``IGNORED`` at padding, or (B,)."""
    if task != "causal-lm":
        return labels
    valid_BT = rows.mask_BT.to(labels.device).bool()
    return torch.where(valid_BT, unpack(labels, rows), IGNORED)
