"""The two numbers of a step that depend on everybody's tensors, computed alike by every process of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fedsplit.config.run import TrainSection

EPSILON = 1e-6
"""Added to the norm before dividing, as in ``torch.nn.utils.clip_grad_norm_``."""


def learning_rate(train: TrainSection, step: int, total: int) -> float:
    """Multiplier of the learning rate at global ``step`` (from 0) of ``total``: warm-up to 1, then the schedule.

    The first step of a warm-up already moves (1/warmup_steps); ``linear`` and ``cosine`` would reach 0 at ``total``.
    """
    if step < train.warmup_steps:
        return (step + 1) / train.warmup_steps
    done = min(1.0, (step - train.warmup_steps) / max(1, total - train.warmup_steps))
    if train.schedule == "linear":
        return 1.0 - done
    if train.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0


def clip_factor(squares_of_all: Iterable[float], clip: float) -> float:
    """What to multiply every gradient with so that their joint norm is at most ``clip`` (0: no clipping, 1.0).

    ``squares_of_all`` are the squared norms of all tensors of all segments in any order: the sum is exact. NaN when
    the norm is no finite number; such a step must be aborted.
    """
    values = list(squares_of_all)
    if any(not math.isfinite(value) or value < 0.0 for value in values):
        return math.nan
    if clip <= 0.0:
        return 1.0
    try:
        norm = math.sqrt(math.fsum(values))
    except OverflowError:
        return math.nan
    return min(1.0, clip / (norm + EPSILON))
