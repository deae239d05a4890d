"""What one client holds: its segments, its trainable factors, their optimiser; a ``Part`` of the exchange in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsplit.config.run import RunFile, Task
from fedsplit.data.batches import Batch as Arrays
from fedsplit.exchange.follow import check_plan
from fedsplit.exchange.part import Key
from fedsplit.exchange.probing import Neurons, Resting
from fedsplit.lora.adapter import Adapter, Head, ModuleKey, Sides
from fedsplit.lora.lowrank import LowRank
from fedsplit.lora.patch import Patch
from fedsplit.plan.streaming import streams
from fedsplit.plan.types import ClientPlan, Topology
from fedsplit.split.base import Base
from fedsplit.split.lora import read, write, write_patch
from fedsplit.split.placement import device_of
from fedsplit.split.rows import Rows, pack, unpack
from fedsplit.split.segment import Dropout, Segment, build
from fedsplit.split.spans import client_spans
from fedsplit.split.tensors import from_wire, to_wire
from fedsplit.train.batch import Batch, as_torch
from fedsplit.train.optim import Stepper, make, squares
from fedsplit.train.probing import RowsAtRest, rest, row_squares, sensitivity
from fedsplit.train.score import at_last, score
from fedsplit.wire.tensors import WireTensor


class ClientPart:
    """Front and tail of ``u`` and ``w``, the front of ``v``, or the whole model (``local``), as the plan says.

    ``params`` are the leaves that train, by peft name, ``frozen`` those that only take part: factors of layers that the
    plan leaves alone, a head that stays. ``load`` replaces both at each round's start and begins a new optimiser.
    Raises PlanError on a plan that this version cannot follow.
    """

    def __init__(self, base: Base, plan: ClientPlan, run: RunFile, device: str | torch.device = "cpu") -> None:
        check_plan(plan, run, base.num_layers)
        self.plan, self.train = plan, run.train
        self.task: Task = run.model.task
        self._seed = run.run.seed
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
                bits={layer.layer: layer.bits for layer in plan.layers if layer.place == "client"},
            )
            for span in client_spans(plan, base.num_layers)
        ]
        self.params: dict[str, Tensor] = {}
        self.frozen: dict[str, Tensor] = {}
        self._optimizer: Stepper | None = None
        self._kept: dict[int, tuple[Batch, Tensor]] = {}
        self._at_rest = RowsAtRest()

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

    def load(self, adapter: Adapter, head: Head, trains: Sides = "AB", patch: Patch | None = None) -> None:
        """Start from these factors (of the modules held here, at whatever rank they have) with a fresh optimiser.

        Factors not in ``trains`` rest. ``patch``: what rounds have folded into the base, for modules held here or not.
        """
        self.params, self.frozen, self._kept, self._at_rest = {}, {}, {}, RowsAtRest()
        training = {key: part for key, part in adapter.items() if key.layer not in self._resting}
        resting = {key: part for key, part in adapter.items() if key.layer in self._resting}
        for segment in self._segments:
            leaves = write(training, head, segment, trains)
            self.params |= {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
            leaves = write(resting, {}, segment) | {
                name: leaf for name, leaf in leaves.items() if name not in self.params
            }
            self.frozen |= {name: leaf.requires_grad_(False) for name, leaf in leaves.items()}
            self.frozen |= write_patch(patch or {}, segment)
        self._optimizer = make(self.train, self.params) if self.params else None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that a pass through the segments needs: what trains, and what does not."""
        return {**self.frozen, **self.params}

    def read(self) -> tuple[Adapter, Head]:
        """What was trained, as it is now, alpha/r absorbed, with factors of the same modules that rested."""
        adapter: dict[ModuleKey, LowRank] = {}
        head: dict[str, NDArray[Any]] = {}
        for segment in self._segments:
            factors, _ = read(self.tensors, segment)
            adapter |= {key: part for key, part in factors.items() if key.layer not in self._resting}
            head |= read(self.params, segment)[1]
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

    # ---- a step of the exchange --------------------------------------------------------------------------------------

    def forward(self, index: int, batch: Arrays, key: Key) -> WireTensor:
        """The front's output; its graph is kept under ``index``."""
        rows = as_torch(batch)
        h_BTD = self.front(rows.rows, Dropout(key))
        self._kept[index] = rows, h_BTD
        return to_wire(pack(h_BTD.detach(), rows.rows))

    def tail(self, batch: Arrays, h_ND: WireTensor, label_tokens: int, key: Key) -> tuple[float, WireTensor]:
        """(share of the step's mean loss, gradient of ``h_ND``)."""
        rows = as_torch(batch)
        h_BTD = unpack(from_wire(h_ND, self.device), rows.rows).requires_grad_()
        loss = self.tail_loss(rows, h_BTD, label_tokens, Dropout(key))
        loss.backward()
        assert h_BTD.grad is not None
        return float(loss.detach()), to_wire(pack(h_BTD.grad, rows.rows))

    def backward(self, index: int, g_ND: WireTensor | None) -> None:
        """Through the front's graph, where it has one."""
        batch, h_BTD = self._kept.pop(index)
        if g_ND is not None and h_BTD.requires_grad:
            h_BTD.backward(unpack(from_wire(g_ND, self.device), batch.rows))

    def learn(self, batch: Arrays, label_tokens: int, key: Key) -> float:
        """The share of the loss; gradients are added up."""
        loss = self.loss(as_torch(batch), label_tokens, Dropout(key))
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())

    def squares(self) -> tuple[float, ...]:
        """Squared gradient norm of every tensor that learns here."""
        return squares(self.params)

    def scale(self, factor: float) -> None:
        """Multiply the gradients."""
        for value in self.params.values():
            if value.grad is not None:
                value.grad.mul_(factor)

    def step(self, clip: float, rate: float) -> None:
        if self._optimizer is not None:
            self._optimizer.step(clip=clip, rate=rate)
            self._at_rest.restore()
        self.drop()

    def drop(self) -> None:
        """Forget the gradients of a step that was not committed."""
        self._kept = {}
        for value in self.params.values():
            value.grad = None

    # ---- looking inside (``exchange/probing.py``) --------------------------------------------------------------------

    def drawn(self) -> Adapter:
        """The first factors of what is here."""
        found: dict[ModuleKey, LowRank] = {}
        for segment in self._segments:
            found |= read(segment.new_params(self._seed), segment)[0]
        return found

    def neurons(self) -> Neurons:
        """Squared gradient of every row of B, of a part that holds the whole model."""
        return row_squares(self.params, self.first)

    def rest(self, rows: Resting) -> None:
        """These rows of B do not learn until the next ``load``."""
        self._at_rest = rest(self.params, self.first, rows)

    def sensitivity(self, batch: Arrays, radius: float, key: Key) -> dict[int, float]:
        """How far every layer's output moves with the embeddings of one row."""
        return sensitivity(self.first, as_torch(batch).rows, self.tensors, radius, key)

    # ---- without learning --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def look(self, batch: Arrays) -> WireTensor:
        """The front's output."""
        rows = as_torch(batch).rows
        return to_wire(pack(self.front(rows), rows))

    @torch.no_grad()
    def score(self, batch: Arrays, h_ND: WireTensor | None) -> tuple[float, NDArray[Any] | None]:
        """(loss summed over label tokens, logits (B, C); none of language models)."""
        rows = as_torch(batch)
        loss, logits = score(self.task, self.last, rows, self._finished(rows.rows, h_ND), self.tensors)
        return float(loss), None if logits is None else logits.float().cpu().numpy()

    @torch.no_grad()
    def logits(self, batch: Arrays, h_ND: WireTensor | None) -> NDArray[np.float32]:
        """(B, C), or for language models (B, V) at each sample's last token."""
        rows = as_torch(batch).rows
        return at_last(self.task, rows, self.last.logits(rows, self._finished(rows, h_ND), self.tensors))

    def _finished(self, rows: Rows, h_ND: WireTensor | None) -> Tensor:
        """What the head sees. None: all layers are here."""
        h_BTD = None if h_ND is None else unpack(from_wire(h_ND, self.device), rows)
        return self.last.run(rows, h_BTD, self.tensors)
