"""One (micro-)batch as torch sees it: rows, labels and how many label tokens the loss counts.

Legend: B samples, T padded width, N valid tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsplit.config.run import Task
from fedsplit.data.batches import Batch as Arrays
from fedsplit.data.examples import IGNORED
from fedsplit.split.rows import Rows, unpack


@dataclass(frozen=True, eq=False)
class Batch:
    """``labels``: (B, T) for language models (not shifted, ``IGNORED`` where there is no loss), else (B,)."""

    rows: Rows
    labels: Tensor
    label_tokens: int


def as_torch(arrays: Arrays) -> Batch:
    """NumPy arrays of a batch as tensors that share their memory."""
    labels = torch.from_numpy(arrays.labels)
    if arrays.pixels_BCHW is not None:
        return Batch(Rows.images(torch.from_numpy(arrays.pixels_BCHW), arrays.width), labels, arrays.label_tokens)
    assert arrays.ids_BT is not None
    types = None if arrays.types_BT is None else torch.from_numpy(arrays.types_BT)
    rows = Rows(torch.from_numpy(arrays.ids_BT), arrays.lengths, arrays.starts, arrays.width, types_BT=types)
    return Batch(rows, labels, arrays.label_tokens)


def labels_from_wire(task: Task, labels: Tensor, rows: Rows) -> Tensor:
    """The inverse: (B, T) with ``IGNORED`` at padding, or (B,)."""
    if task != "causal-lm":
        return labels
    valid_BT = rows.mask_BT.to(labels.device).bool()
    return torch.where(valid_BT, unpack(labels, rows), IGNORED)
