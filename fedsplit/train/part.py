"""What one client holds: its segments, its trainable factors, their optimiser."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsplit.config.run import RunFile
from fedsplit.lora.adapter import Adapter, Head, ModuleKey
from fedsplit.lora.lowrank import LowRank
from fedsplit.plan.streaming import streams
from fedsplit.plan.types import ClientPlan, Topology
from fedsplit.split.base import Base
from fedsplit.split.lora import read, write
from fedsplit.split.placement import device_of
from fedsplit.split.rows import Rows
from fedsplit.split.segment import Dropout, Segment, build
from fedsplit.split.spans import client_spans
from fedsplit.train.batch import Batch
from fedsplit.train.follow import check_plan
from fedsplit.train.optim import Stepper, make


class ClientPart:
    """Front and tail of ``u`` and ``w``, the front of ``v``, or the whole model (``local``), as the plan says.

    ``params`` are the leaves that train, by peft name, ``frozen`` those that only take part: factors of layers that the
    plan leaves alone, a head that stays. ``load`` replaces both at each round's start and begins a new optimiser.
    Raises PlanError on a plan that this version cannot follow.
    """

    def __init__(self, base: Base, plan: ClientPlan, run: RunFile, device: str | torch.device = "cpu") -> None:
        check_plan(plan, run, base.num_layers)
        self.plan, self.task, self.train = plan, run.model.task, run.train
        self._resting = frozenset(layer.layer for layer in plan.layers if not layer.trains)
        self.device = device_of(device)
        self.split = plan.topology is not Topology.LOCAL
        self.labels_leave = plan.topology is Topology.V
        self._segments = [
            build(
                base,
                span,
                task=run.model.task,
                num_labels=len(run.model.labels),
                lora=run.lora,
                dtype=run.model.dtype,
                device=device,
                train_head=run.model.head != "frozen",
                map_embedding=self._streams(base, run),
            )
            for span in client_spans(plan, base.num_layers)
        ]
        self.params: dict[str, Tensor] = {}
        self.frozen: dict[str, Tensor] = {}
        self._optimizer: Stepper | None = None

    def _streams(self, base: Base, run: RunFile) -> bool:
        """Large vocabularies stay in the file, in every topology alike. A GPU would wait for them in every step."""
        vocabulary, width = int(getattr(base.config, "vocab_size", 0)), 2 if run.model.dtype == "bfloat16" else 4
        return self.device.type == "cpu" and streams(vocabulary, base.hidden_size, width)

    @property
    def first(self) -> Segment:
        return self._segments[0]

    @property
    def last(self) -> Segment:
        return self._segments[-1]

    def load(self, adapter: Adapter, head: Head) -> None:
        """Start from these factors (of the modules held here, at whatever rank they have) with a fresh optimiser."""
        self.params, self.frozen = {}, {}
        training = {key: part for key, part in adapter.items() if key.layer not in self._resting}
        resting = {key: part for key, part in adapter.items() if key.layer in self._resting}
        for segment in self._segments:
            leaves = write(training, head, segment)
            self.params |= {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
            leaves = write(resting, {}, segment) | {
                name: leaf for name, leaf in leaves.items() if name not in self.params
            }
            self.frozen |= {name: leaf.requires_grad_(False) for name, leaf in leaves.items()}
        self._optimizer = make(self.train, self.params) if self.params else None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that a pass through the segments needs: what trains, and what does not."""
        return {**self.frozen, **self.params}

    def read(self) -> tuple[Adapter, Head]:
        """What was trained, as it is now, alpha/r absorbed."""
        adapter: dict[ModuleKey, LowRank] = {}
        head: dict[str, NDArray[Any]] = {}
        for segment in self._segments:
            factors, tensors = read(self.params, segment)
            adapter |= factors
            head |= tensors
        return adapter, head

    def front(self, rows: Rows, dropout: Dropout | None = None) -> Tensor:
        """(B, T, D) input of the body, with its graph where the front trains."""
        return self.first.run(rows, None, self.tensors, dropout=dropout, checkpoint=self.plan.checkpoint)

    def tail_loss(self, batch: Batch, h_BTD: Tensor, label_tokens: int, dropout: Dropout | None = None) -> Tensor:
        """The batch's share of the step's mean loss, from the body's output."""
        h_BTD = self.last.run(batch.rows, h_BTD, self.tensors, dropout=dropout, checkpoint=self.plan.checkpoint)
        return self.last.loss(batch.rows, h_BTD, batch.labels, label_tokens, self.tensors, dropout=dropout)

    def loss(self, batch: Batch, label_tokens: int, dropout: Dropout | None = None) -> Tensor:
        """The batch's share of the step's mean loss, all segments being here."""
        h_BTD = self.front(batch.rows, dropout)
        return self.first.loss(batch.rows, h_BTD, batch.labels, label_tokens, self.tensors, dropout=dropout)

    def step(self, clip: float, rate: float) -> None:
        if self._optimizer is not None:
            self._optimizer.step(clip=clip, rate=rate)
        self.drop()

    def drop(self) -> None:
        """Forget the gradients of a step that was not committed."""
        for value in self.params.values():
            value.grad = None
