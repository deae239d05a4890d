"""The body's side of the split step: batches of jobs in, results out. It knows tensors, no messages and no rounds.

Shapes: B samples, T padded tokens, D model width, N valid tokens of all samples together. Jobs carry packed (N, D)
tensors because that is what travels; the engine unpacks, runs the layers and packs again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsplit.errors import Lost
from fedsplit.split.rows import Rows, pack, unpack
from fedsplit.split.segment import Dropout, Segment
from fedsplit.split.stash import GraphMeter, Kept, Key, Stash


@dataclass(frozen=True, kw_only=True)
class ForwardJob:
    """Run ``layers`` = [c1, c2) on ``h_ND`` with these factors. ``needs_grad``: something in the front trains."""

    key: Key
    rows: Rows
    h_ND: Tensor
    layers: tuple[int, int]
    params: Mapping[str, Tensor]
    attempt: int = 0
    train: bool = True
    needs_grad: bool = True
    dropout: Dropout | None = None


@dataclass(frozen=True, kw_only=True)
class BackwardJob:
    """Push ``g_ND``, the gradient of the forward's output, back through the kept graph."""

    key: Key
    g_ND: Tensor
    attempt: int = 0


@dataclass(frozen=True, kw_only=True)
class LossJob(ForwardJob):
    """Topology ``v``: forward, loss and backward in one go. ``labels`` as in the Forward message."""

    labels: Tensor
    label_tokens: int


@dataclass(frozen=True)
class LossResult:
    """Loss of the micro-batch (a share of the step's) and the gradient for the front, if it wants one."""

    loss: float
    g_ND: Tensor | None


class Engine:
    """One frozen segment, shared by all clients; the factors come with each job."""

    def __init__(self, segment: Segment, *, stash_bytes: int) -> None:
        self.segment = segment
        self.stash = Stash(stash_bytes)
        self._bytes_per_token: dict[tuple[int, int], float] = {}

    @property
    def device(self) -> torch.device:
        return self.segment.device

    def forward(self, jobs: Sequence[ForwardJob]) -> list[Tensor]:
        """(N, D) outputs, in the order of the jobs. Training jobs stay in the stash until their backward."""
        return [self._forward(job) for job in jobs]

    def backward(self, jobs: Sequence[BackwardJob]) -> list[Tensor | None]:
        """(N, D) gradients of the inputs, or None where the front wants none. Factors accumulate ``grad``.

        :raises Lost: the forward was evicted or belongs to another attempt.
        """
        return [self._backward(job) for job in jobs]

    def loss(self, jobs: Sequence[LossJob]) -> list[LossResult]:
        """Forward, head, loss and backward of jobs whose labels are here (topology ``v``)."""
        return [self._loss(job) for job in jobs]

    def forget(self, client: str, round: int | None = None) -> None:
        """Free every graph of a client (of one round, if given)."""
        self.stash.drop(lambda key: key[0] == client and round in (None, key[1]))

    def _forward(self, job: ForwardJob) -> Tensor:
        if not job.train:
            with torch.no_grad():
                return pack(self._run(job, unpack(job.h_ND, job.rows)), job.rows)
        x_BTD = unpack(job.h_ND, job.rows).requires_grad_(job.needs_grad)
        y_BTD, nbytes = self._metered(job, x_BTD)
        self.stash.put(job.key, Kept(x_BTD, y_BTD, job.rows, job.attempt, nbytes))
        return pack(y_BTD.detach(), job.rows)

    def _metered(self, job: ForwardJob, x_BTD: Tensor) -> tuple[Tensor, int]:
        """Run, and say what the graph holds: measured once per span, then scaled by the number of padded tokens."""
        tokens = x_BTD.shape[0] * x_BTD.shape[1]
        if job.layers not in self._bytes_per_token:
            frozen = {parameter.untyped_storage().data_ptr() for parameter in self.segment.parameters()}
            frozen |= {value.untyped_storage().data_ptr() for value in job.params.values()}
            with GraphMeter(frozen) as meter:
                y_BTD = self._run(job, x_BTD)
            self._bytes_per_token[job.layers] = meter.nbytes / tokens
            return y_BTD, meter.nbytes
        return self._run(job, x_BTD), round(self._bytes_per_token[job.layers] * tokens)

    def _backward(self, job: BackwardJob) -> Tensor | None:
        kept = self.stash.pop(job.key)
        if kept is None or kept.attempt != job.attempt:
            raise Lost(f"the activations of {job.key[0]}, step {job.key[3]}, micro-batch {job.key[4]} are gone")
        if kept.y_BTD.requires_grad:
            kept.y_BTD.backward(unpack(job.g_ND, kept.rows))
        return pack(kept.x_BTD.grad, kept.rows) if kept.x_BTD.grad is not None else None

    def _loss(self, job: LossJob) -> LossResult:
        x_BTD = unpack(job.h_ND, job.rows).requires_grad_(job.needs_grad)
        loss = self.segment.loss(
            job.rows, self._run(job, x_BTD), job.labels, job.label_tokens, job.params, dropout=job.dropout
        )
        if loss.requires_grad:
            loss.backward()
        return LossResult(float(loss.detach()), pack(x_BTD.grad, job.rows) if x_BTD.grad is not None else None)

    def _run(self, job: ForwardJob, x_BTD: Tensor) -> Tensor:
        return self.segment.run(job.rows, x_BTD, job.params, layers=job.layers, dropout=job.dropout)
