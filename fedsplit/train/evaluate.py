"""Measuring an adapter on rows: forward passes only, through the body where there is one.

Legend: B samples, T padded width, N valid tokens, D model width, C classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsplit.config.run import Task
from fedsplit.errors import InternalError
from fedsplit.split.rows import Rows, pack, unpack
from fedsplit.split.segment import Segment
from fedsplit.split.tensors import from_wire, to_wire
from fedsplit.train.batch import Batch, labels_to_wire
from fedsplit.train.metrics import meter
from fedsplit.train.part import ClientPart
from fedsplit.train.step import At, Line
from fedsplit.wire.messages import Forward, Hidden

Params = dict[str, Tensor]
Far = Callable[[Batch, Tensor, int], Any]
"""(batch, h_BTD, index) -> the body's output (B, T, D), or (loss, logits) where the head is there, too."""


def score(task: Task, segment: Segment, batch: Batch, h_BTD: Tensor, params: Params) -> tuple[Tensor, Tensor | None]:
    """(loss summed over label tokens, logits (B, C)); no logits for language models, their loss says all."""
    loss = segment.loss(batch.rows, h_BTD, batch.labels, 1, params)
    return loss, None if task == "causal-lm" else segment.logits(batch.rows, h_BTD, params)


def add(task: Task, counts: Any, batch: Batch, loss: float, logits: Tensor | None) -> None:
    """One batch into its meter."""
    if task == "causal-lm":
        counts.add(loss, batch.label_tokens, examples=batch.examples)
        return
    assert logits is not None
    values, labels = logits.float().cpu().numpy(), batch.labels.cpu().numpy()
    if task == "regression":
        counts.add(values.reshape(-1), labels)
    else:
        counts.add(values, labels, loss)


def evaluate(
    part: ClientPart, batches: Iterable[Batch], classes: int, far: Callable[[Batch, Tensor, int], Any]
) -> tuple[dict[str, float], int]:
    """(metrics, examples) of the client's loaded factors on ``batches``."""
    counts = meter(part.task, classes)
    with torch.no_grad():
        for index, batch in enumerate(batches):
            loss, logits = _score(part, batch, index, far)
            add(part.task, counts, batch, float(loss), logits)
    return counts.result(), counts.examples


def nowhere(batch: Batch, h_BTD: Tensor, index: int) -> Any:
    """The body of a client that holds everything: never asked."""
    raise InternalError("a part that holds the whole model asked for a body")


def _score(part: ClientPart, batch: Batch, index: int, far: Far) -> Any:
    if not part.split:
        h_BTD = part.first.run(batch.rows, None, part.tensors)
        return score(part.task, part.first, batch, h_BTD, part.tensors)
    beyond = far(batch, part.front(batch.rows), index)
    if part.labels_leave:
        return beyond
    return score(part.task, part.last, batch, part.last.run(batch.rows, beyond, part.tensors), part.tensors)


def through(line: Line, part: ClientPart, at: At) -> Far:
    """The body at the other end of ``line``, for ``evaluate``."""

    def far(batch: Batch, h_BTD: Tensor, index: int) -> Any:
        rows = batch.rows
        message = Forward(
            **at.fields(micro=index),
            lengths=rows.lengths,
            starts=rows.starts,
            width=rows.width,
            label_tokens=batch.label_tokens,
            train=False,
        )
        tensors = {"h": to_wire(pack(h_BTD, rows))}
        if part.labels_leave:
            tensors["labels"] = to_wire(labels_to_wire(part.task, batch))
        line.send(message, tensors)
        while True:
            packet = line.receive()
            if isinstance(packet.message, Hidden) and packet.message.micro == index:
                break
        if not part.labels_leave:
            return unpack(from_wire(packet.tensors["h"], part.device), rows)
        loss = float(from_wire(packet.tensors["loss"]))
        return loss, from_wire(packet.tensors["logits"]) if "logits" in packet.tensors else None

    return far


def predictions(segment: Segment, rows: Rows, h_BTD: Tensor, params: Params) -> np.ndarray[Any, Any]:
    """Logits as float32 NumPy, (B, C) or for language models (B, V) at each sample's last token."""
    with torch.no_grad():
        logits: np.ndarray[Any, Any] = segment.logits(rows, h_BTD, params).float().cpu().numpy()
    return logits
