"""Measuring a client's factors on rows: forward passes only, through the body where there is one.

Legend: B samples, N valid tokens, D model width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from numpy.typing import NDArray

from fedsplit.config.run import Task
from fedsplit.data.batches import Batch
from fedsplit.errors import InternalError
from fedsplit.exchange.metrics import meter
from fedsplit.exchange.part import Part
from fedsplit.exchange.step import At, Line, upward
from fedsplit.wire import WireTensor
from fedsplit.wire.ends import Tensors
from fedsplit.wire.messages import Forward, Hidden

Far = Callable[[Batch, WireTensor, int], Tensors]
"""(batch, h_ND, index) → what the body answers: ``h`` (N, D); where the head is there, ``loss`` (1,) and ``logits``."""


def evaluate(part: Part, batches: Iterable[Batch], classes: int, far: Far) -> tuple[dict[str, float], int]:
    """(metrics, examples) of the client's loaded factors on ``batches``."""
    counts = meter(part.task, classes)
    for index, batch in enumerate(batches):
        loss, logits = _score(part, batch, index, far)
        _add(part.task, counts, batch, loss, logits)
    return counts.result(), counts.examples


def nowhere(batch: Batch, h_ND: WireTensor, index: int) -> Tensors:
    """The body of a client that holds everything: never asked."""
    raise InternalError("a part that holds the whole model asked for a body")


def through(line: Line, part: Part, at: At) -> Far:
    """The body at the other end of ``line``, for ``evaluate``."""

    def far(batch: Batch, h_ND: WireTensor, index: int) -> Tensors:
        message = Forward(
            **at.fields(micro=index),
            lengths=batch.lengths,
            starts=batch.starts,
            width=batch.width,
            label_tokens=batch.label_tokens,
            train=False,
        )
        line.send(message, upward(part, batch, h_ND))
        while True:
            packet = line.receive()
            if isinstance(packet.message, Hidden) and packet.message.micro == index:
                return packet.tensors

    return far


def _score(part: Part, batch: Batch, index: int, far: Far) -> tuple[float, NDArray[Any] | None]:
    if not part.split:
        return part.score(batch, None)
    beyond = far(batch, part.look(batch), index)
    if not part.labels_leave:
        return part.score(batch, beyond["h"])
    [loss] = beyond["loss"].numpy().tolist()
    return loss, beyond["logits"].numpy() if "logits" in beyond else None


def _add(task: Task, counts: Any, batch: Batch, loss: float, logits: NDArray[Any] | None) -> None:
    """One batch into its meter."""
    if task == "causal-lm":
        counts.add(loss, batch.label_tokens, examples=len(batch))
        return
    assert logits is not None
    if task == "regression":
        counts.add(logits.reshape(-1), batch.labels)
    else:
        counts.add(logits, batch.labels, loss)
