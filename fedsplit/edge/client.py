"""Exported graphs as a ``Part`` of the exchange: what leaves is what a client with torch would send.

The graphs compute in float32; in a run of bfloat16 hidden states and gradients are rounded, to nearest even, when they
leave. Legend: B samples, N valid tokens, D model width, C classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsplit.config.run import RunFile, Task
from fedsplit.data.batches import Batch
from fedsplit.edge.follow import check
from fedsplit.edge.manifest import load
from fedsplit.edge.part import EdgePart
from fedsplit.edge.runner import Floats
from fedsplit.exchange.part import Key
from fedsplit.lora.adapter import Adapter, Head, Sides
from fedsplit.lora.patch import Patch
from fedsplit.plan.types import ClientPlan, Topology
from fedsplit.wire.tensors import WireTensor


class EdgeClient:
    """Front and tail, the front, or the whole model of a plan, from the ``folder`` of its graphs.

    ``config``: the base model's config.json. ``threads`` 0: as many as onnxruntime takes.

    :raises PlanError: a plan that a device without torch cannot follow. :raises DataError: graphs of another plan.
    """

    def __init__(
        self, folder: Path, plan: ClientPlan, run: RunFile, config: Mapping[str, Any], *, threads: int = 0
    ) -> None:
        check(load(folder), plan, run, config, folder)
        self.plan, self.train = plan, run.train
        self.task: Task = run.model.task
        self.split = plan.topology is not Topology.LOCAL
        self.labels_leave = plan.topology is Topology.V
        self._half = run.model.dtype == "bfloat16"
        learning = [layer.layer for layer in plan.layers if layer.trains]
        self._part = EdgePart(folder, run, trains=learning, threads=threads)
        self._open: dict[int, Batch] = {}

    def load(self, adapter: Adapter, head: Head, trains: Sides = "AB", patch: Patch | None = None) -> None:
        """Start from these factors, with a fresh optimiser. Raises DataError on a ``patch``."""
        self._open = {}
        self._part.load(adapter, head, trains, patch)

    def read(self) -> tuple[Adapter, Head]:
        """What was trained, as it is now."""
        return self._part.read()

    def drawn(self) -> Adapter:
        """The first factors of what is here."""
        return self._part.drawn()

    # ---- a step ------------------------------------------------------------------------------------------------------

    def forward(self, index: int, batch: Batch, key: Key) -> WireTensor:
        """The front's output; the inputs of its layers are kept under ``index``. No dropout: ``key`` is not used."""
        self._open[index] = batch
        return self._out(self._part.forward(index, batch))

    def tail(self, batch: Batch, h_ND: WireTensor, label_tokens: int, key: Key) -> tuple[float, WireTensor]:
        """(share of the step's mean loss, gradient of ``h_ND``)."""
        loss, g_ND = self._part.tail(batch, floats(h_ND), label_tokens)
        return loss, self._out(g_ND)

    def backward(self, index: int, g_ND: WireTensor | None) -> None:
        """Gradients of the front's factors, where it has some that learn."""
        batch = self._open.pop(index)
        if g_ND is not None:
            self._part.backward(index, batch, floats(g_ND))

    def learn(self, batch: Batch, label_tokens: int, key: Key) -> float:
        """The share of the loss, all layers being here; gradients are added up."""
        loss, g_ND = self._part.tail(batch, self._part.forward(0, batch), label_tokens)
        self._part.backward(0, batch, g_ND)
        return loss

    def squares(self) -> tuple[float, ...]:
        """Squared gradient norm of every tensor that learns here."""
        return self._part.squares()

    @property
    def gradients(self) -> Mapping[str, Floats]:
        """What was added up since the last step, by tensor name; to look at, not to write to."""
        return self._part.gradients

    def scale(self, factor: float) -> None:
        """Multiply the gradients."""
        self._part.scale(factor)

    def step(self, clip: float, rate: float) -> None:
        """One update; gradients and what was kept are let go."""
        self._open = {}
        self._part.step(clip, rate)

    def drop(self) -> None:
        """Forget a step that was not committed."""
        self._open = {}
        self._part.drop()

    # ---- without learning --------------------------------------------------------------------------------------------

    def look(self, batch: Batch) -> WireTensor:
        """The front's output, nothing kept."""
        return self._out(self._part.look(batch))

    def score(self, batch: Batch, h_ND: WireTensor | None) -> tuple[float, NDArray[Any] | None]:
        """(loss summed over label tokens, logits (B, C); none of language models)."""
        return self._part.score(batch, self._finished(batch, h_ND))

    def logits(self, batch: Batch, h_ND: WireTensor | None) -> NDArray[np.float32]:
        """(B, C), or for language models (B, V) at each sample's last token."""
        return self._part.logits(batch, self._finished(batch, h_ND))

    def _finished(self, batch: Batch, h_ND: WireTensor | None) -> Floats:
        return self._part.look(batch) if h_ND is None else floats(h_ND)

    def _out(self, array: Floats) -> WireTensor:
        return WireTensor.bf16(array) if self._half else WireTensor.of(array)


def floats(wire: WireTensor) -> Floats:
    """The values in float32."""
    return np.asarray(wire.numpy(), np.float32)
