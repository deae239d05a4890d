"""What computes a client's share of a model: torch (``fedsplit.train.part``) or exported graphs (``fedsplit.edge``).

Hidden states and gradients come and go as they travel: valid tokens only, (N, D), in the run's dtype. Micro-batches of
a step are told apart by ``index``; what a backward pass needs is kept from ``forward`` to ``backward``.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsplit.config.run import Task, TrainSection
from fedsplit.data.batches import Batch
from fedsplit.lora.adapter import Adapter, Head, Sides
from fedsplit.lora.patch import Patch
from fedsplit.plan.types import ClientPlan
from fedsplit.wire.tensors import WireTensor

Key = tuple[int | str, ...]
"""What dropout's masks are drawn from: the same for a layer wherever it is."""


class Part(Protocol):
    """Front and tail (``u``, ``w``), the front (``v``) or the whole model (``local``) of one client."""

    @property
    def plan(self) -> ClientPlan: ...
    @property
    def task(self) -> Task: ...
    @property
    def train(self) -> TrainSection: ...
    @property
    def split(self) -> bool:
        """Whether the body is elsewhere."""
        ...

    @property
    def labels_leave(self) -> bool:
        """Whether the tail is elsewhere, too."""
        ...

    def load(self, adapter: Adapter, head: Head, trains: Sides = "AB", patch: Patch | None = None) -> None:
        """Start from these factors, with a fresh optimiser. Those not in ``trains`` rest: they get no gradient norm and
        no step. ``patch``: what rounds have folded into the base."""
        ...

    def read(self) -> tuple[Adapter, Head]:
        """What was trained, as it is now."""
        ...

    # ---- a step ------------------------------------------------------------------------------------------------------

    def forward(self, index: int, batch: Batch, key: Key) -> WireTensor:
        """Through the front: what the body gets."""
        ...

    def tail(self, batch: Batch, h_ND: WireTensor, label_tokens: int, key: Key) -> tuple[float, WireTensor]:
        """(share of the step's mean loss, gradient of ``h_ND``); the tail's own gradients are added up."""
        ...

    def backward(self, index: int, g_ND: WireTensor | None) -> None:
        """Add up the front's gradients; None: nothing there wants one. What was kept is let go."""
        ...

    def learn(self, batch: Batch, label_tokens: int, key: Key) -> float:
        """All segments being here: the share of the loss, gradients added up."""
        ...

    def squares(self) -> tuple[float, ...]:
        """Squared gradient norm of every tensor that learns here."""
        ...

    def scale(self, factor: float) -> None:
        """Multiply the gradients."""
        ...

    def step(self, clip: float, rate: float) -> None:
        """One update; gradients and what was kept are let go."""
        ...

    def drop(self) -> None:
        """Forget a step that was not committed."""
        ...

    # ---- without learning --------------------------------------------------------------------------------------------

    def look(self, batch: Batch) -> WireTensor:
        """Through the front, nothing kept."""
        ...

    def score(self, batch: Batch, h_ND: WireTensor | None) -> tuple[float, NDArray[Any] | None]:
        """(loss summed over label tokens, logits (B, C); none of language models). None: all segments are here."""
        ...

    def logits(self, batch: Batch, h_ND: WireTensor | None) -> NDArray[np.float32]:
        """(B, C), or for language models (B, V) at each sample's last token. None: all segments are here."""
        ...
