"""Gradients of a client's share of a step, in torch and in exported graphs, tensor by tensor, in one process.

A run shows losses and, after a round, factors; gradients stay where they are computed. So the same client is computed
here three times beside each other, each with a body of its own: in torch, in graphs on their own way from the same
start, and in graphs that take torch's factors before every step. How far torch in float32 is from float64 says what
rounding alone does. Legend: B samples, T tokens, N valid tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsplit.config.run import RunFile
from fedsplit.data.batches import Batch
from fedsplit.edge.client import EdgeClient
from fedsplit.exchange.part import Part
from fedsplit.exchange.rate import clip_factor, learning_rate
from fedsplit.exchange.step import dropout_key, label_tokens
from fedsplit.lora.adapter import Adapter, select
from fedsplit.plan.types import ClientPlan, Topology
from fedsplit.split.base import Base
from fedsplit.split.lora import read, write
from fedsplit.split.rows import pack, unpack
from fedsplit.split.segment import Span, build
from fedsplit.split.tensors import from_wire, to_wire
from fedsplit.train.batch import as_torch
from fedsplit.train.optim import make, squares
from fedsplit.train.part import ClientPart
from fedsplit.train.start import first_state
from fedsplit.wire.tensors import WireTensor

Grads = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Apart:
    """How far gradients in graphs are from torch's: the largest of all steps.

    ``whole``: the length of the difference of all gradients, relative to their length, and ``same``: the difference in
    any tensor, relative to its largest entry; both from the same factors in every step. ``exact``: as ``same``, of
    torch against torch in float64, to compare with. ``own``: as ``same``, each on its own way from the same start.
    """

    whole: float
    same: float
    exact: float
    own: float


def gradients(base: Base, run: RunFile, plan: ClientPlan, steps: Sequence[Sequence[Batch]], folder: Path) -> Apart:
    """Train ``plan`` (``u`` or ``w``) on ``steps`` in torch and in the graphs in ``folder``."""
    config = base.config.to_dict()
    parts: list[Part] = [ClientPart(base, plan, run)]
    parts += [EdgeClient(folder, plan, run, config, threads=1) for _ in range(2)]
    theirs, own, same = (_Lane(base, run, part) for part in parts)
    double, found = _Double(base, run), []
    for number, batches in enumerate(steps):
        rate = learning_rate(run.train, number, len(steps))
        same.take(theirs)
        for lane in (theirs, own, same):
            lane.backward(batches, number)
        wanted, mine = theirs.grads, same.grads
        exact = furthest(wanted, double.grads(theirs, batches))
        found.append((length(mine, wanted), furthest(mine, wanted), exact, furthest(own.grads, wanted)))
        theirs.step(rate)
        own.step(rate)
    return Apart(*(max(values) for values in zip(*found, strict=True)))


def length(found: Grads, wanted: Grads) -> float:
    """Of the difference, all tensors being one vector, relative to the wanted one's; inf where the names differ."""
    if found.keys() != wanted.keys():
        return float("inf")
    squared = sum(np.square(found[name] - wanted[name], dtype=np.float64).sum() for name in wanted)
    return float(np.sqrt(squared / sum(np.square(grad, dtype=np.float64).sum() for grad in wanted.values())))


def furthest(found: Grads, wanted: Grads) -> float:
    """The largest difference in any tensor, relative to that tensor's largest entry; inf where the names differ."""
    if found.keys() != wanted.keys():
        return float("inf")
    return max(float(apart(found[name], wanted[name])) for name in wanted)


def apart(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Relative to the largest entry; of a tensor of zeros, absolute."""
    return float(np.abs(found - wanted).max() / (np.abs(wanted).max() or 1.0))


class _Lane:
    """A client's part with a body of its own, both starting from the run's first factors."""

    def __init__(self, base: Base, run: RunFile, part: Part) -> None:
        state = first_state(base, run)
        self.run, self.part, self.head = run, part, state.head
        part.load(state.adapter, state.head)
        self.body = _Body(base, run, part.plan)
        self.body.load(state.adapter)

    def take(self, other: _Lane) -> None:
        """Start from the factors that ``other`` has now."""
        self.part.load(*other.part.read())
        self.body.load(other.body.read())

    def backward(self, batches: Sequence[Batch], step: int) -> None:
        """Gradients, which stay until ``step``."""
        tokens = label_tokens(batches)
        for micro, batch in enumerate(batches):
            key = dropout_key(self.run.run.seed, "bench", step, micro)
            h_ND = self.body.forward(batch, self.part.forward(micro, batch, key))
            _, g_ND = self.part.tail(batch, h_ND, tokens, key)
            self.part.backward(micro, self.body.backward(batch, g_ND))

    @property
    def grads(self) -> Grads:
        if isinstance(self.part, EdgeClient):
            mine: Grads = self.part.gradients
        else:
            assert isinstance(self.part, ClientPart)
            mine = _arrays(self.part.params)
        return {**mine, **_arrays(self.body.params)}

    def step(self, rate: float) -> None:
        clip = clip_factor([*self.part.squares(), *squares(self.body.params)], self.run.train.clip)
        self.part.step(clip, rate)
        self.body.step(clip, rate)


class _Double:
    """The whole model in float64, without dropout."""

    def __init__(self, base: Base, run: RunFile) -> None:
        span, model = Span(0, base.num_layers, embeds=True, heads=True), run.model
        self._segment = build(
            base, span, task=model.task, num_labels=len(model.labels), lora=run.lora, dtype=torch.float64
        )

    def grads(self, lane: _Lane, batches: Sequence[Batch]) -> Grads:
        """At the factors that a lane in torch has now."""
        assert isinstance(lane.part, ClientPart)
        leaves = {**lane.part.params, **lane.body.params}
        params = {name: value.detach().double().requires_grad_() for name, value in leaves.items()}
        for batch in map(as_torch, batches):
            h_BTD = self._segment.run(batch.rows, None, params, train=False)
            tokens = label_tokens(batches)
            self._segment.loss(batch.rows, h_BTD, batch.labels, tokens, params, train=False).backward()
        return _arrays(params)


class _Body:
    """The layers between front and tail, in torch, as a server has them."""

    def __init__(self, base: Base, run: RunFile, plan: ClientPlan) -> None:
        assert plan.topology in (Topology.U, Topology.W)
        self._span, self._train = Span(plan.cut.c1, plan.cut.c2, embeds=False, heads=False), run.train
        model = run.model
        self._segment = build(
            base, self._span, task=model.task, num_labels=len(model.labels), lora=run.lora, dtype=model.dtype
        )
        self.params: dict[str, Tensor] = {}

    def load(self, adapter: Adapter) -> None:
        layers = set(range(self._span.lo, self._span.hi))
        self.params = write(select(adapter, layers=layers), {}, self._segment)
        self._optimizer = make(self._train, self.params)

    def read(self) -> Adapter:
        return read(self.params, self._segment)[0]

    def forward(self, batch: Batch, h_ND: WireTensor) -> WireTensor:
        rows = as_torch(batch).rows
        self._in = unpack(from_wire(h_ND, torch.device("cpu")), rows).requires_grad_()
        self._out = self._segment.run(rows, self._in, self.params)
        return to_wire(pack(self._out.detach(), rows))

    def backward(self, batch: Batch, g_ND: WireTensor) -> WireTensor:
        rows = as_torch(batch).rows
        self._out.backward(unpack(from_wire(g_ND, torch.device("cpu")), rows))
        assert self._in.grad is not None
        return to_wire(pack(self._in.grad, rows))

    def step(self, clip: float, rate: float) -> None:
        self._optimizer.step(clip=clip, rate=rate)
        for value in self.params.values():
            value.grad = None


def _arrays(params: Mapping[str, Tensor]) -> Grads:
    return {name: value.grad.numpy() for name, value in params.items() if value.grad is not None}
