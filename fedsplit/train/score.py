"""What a head says of hidden states: the loss of rows with labels, and logits.

Legend: B samples, T padded width, D model width, C classes, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsplit.config.run import Task
from fedsplit.split.rows import Rows
from fedsplit.split.segment import Segment
from fedsplit.train.batch import Batch

Params = dict[str, Tensor]


def score(task: Task, segment: Segment, batch: Batch, h_BTD: Tensor, params: Params) -> tuple[Tensor, Tensor | None]:
    """(loss summed over label tokens, logits (B, C)); no logits for language models, their loss says all."""
    loss = segment.loss(batch.rows, h_BTD, batch.labels, 1, params)
    return loss, None if task == "causal-lm" else segment.logits(batch.rows, h_BTD, params)


def at_last(task: Task, rows: Rows, logits: Tensor) -> NDArray[np.float32]:
    """Logits as float32, (B, C), of language models those at each sample's last token, (B, V)."""
    if task == "causal-lm":
        logits = logits[torch.arange(logits.shape[0]), rows.last_B.to(logits.device)]
    found: NDArray[Any] = logits.float().cpu().numpy()
    return found
