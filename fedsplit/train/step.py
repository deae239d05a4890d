"""One optimiser step of a client: its own segments here, the body behind a ``Line``, both stepping once or not at all.

    Forward ─▶ Hidden ─▶ Backward ─▶ Grad     for every micro-batch, several in flight
    Prepare ─▶ Commit | Abort                 one decision for both sides

The loss is normalised by the label tokens of the whole step; squared gradient norms are summed exactly (``math.fsum``),
so neither micro-batching nor the cut changes what is computed. Legend: N valid tokens, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from fedsplit.errors import RemoteProtocolError
from fedsplit.split.rows import pack, unpack
from fedsplit.split.segment import Dropout
from fedsplit.split.tensors import from_wire, to_wire
from fedsplit.train.batch import Batch, labels_to_wire
from fedsplit.train.optim import clip_factor, squares
from fedsplit.train.part import ClientPart
from fedsplit.wire import Packet
from fedsplit.wire.ends import Tensors
from fedsplit.wire.messages import Abort, Backward, Commit, Exchange, Forward, Grad, Hidden, Message, Missing, Prepare

IN_FLIGHT = 2
"""Micro-batches a client may have at the server at once."""


class Line(Protocol):
    """The client's end of the exchange. ``receive`` yields the answers to what was sent, in any order.

    It repeats what stays unanswered, and raises Timeout, Closed or Refused when that does not help.
    """

    def send(self, message: Message, tensors: Tensors) -> None: ...
    def receive(self) -> Packet: ...


@dataclass(frozen=True, kw_only=True)
class At:
    """Where in the run a step is; ``fields`` of every message of it."""

    run: str
    client: str
    round: int
    era: int
    step: int
    first_step: int
    base_version: int
    adapter_version: int
    cut: tuple[int, int]

    def fields(self, micro: int = 0, attempt: int = 0) -> dict[str, Any]:
        return {
            "run": self.run,
            "client": self.client,
            "round": self.round,
            "era": self.era,
            "step": self.step,
            "micro": micro,
            "attempt": attempt,
            "base_version": self.base_version,
            "adapter_version": self.adapter_version,
            "cut": self.cut,
        }


@dataclass(frozen=True)
class Outcome:
    """``loss`` is the mean over the step's label tokens; ``committed`` is False when both sides dropped the step."""

    loss: float
    committed: bool
    examples: int


def dropout(run_seed: int, client: str, global_step: int, micro: int) -> Dropout:
    """Keyed so that every cut draws the same masks, on whichever side a layer is."""
    return Dropout((run_seed, client, global_step, micro, "dropout"))


def label_tokens(batches: Sequence[Batch]) -> int:
    """What the step's loss is divided by; at least 1, so that a step without any label is one without a gradient."""
    return max(1, sum(batch.label_tokens for batch in batches))


def local_step(part: ClientPart, batches: Sequence[Batch], rate: float, at: At, seed: int) -> Outcome:
    """The step of a client that holds everything. Arithmetic and order are those of the split step."""
    tokens = label_tokens(batches)
    total = 0.0
    for micro, batch in enumerate(batches):
        loss = part.loss(batch, tokens, dropout(seed, at.client, at.first_step + at.step, micro))
        if loss.requires_grad:
            loss.backward()
        total += float(loss.detach())
    examples = sum(batch.examples for batch in batches)
    norms = squares(part.params)
    if not all(map(math.isfinite, norms)):
        part.drop()
        return Outcome(total, False, examples)
    part.step(clip_factor(norms, part.train.clip), rate)
    return Outcome(total, True, examples)


@dataclass
class _Micro:
    """One micro-batch on its way: the front's output with its graph, and the gradient the tail answered with."""

    h_BTD: Tensor
    attempt: int = 0
    g_ND: Tensor | None = None
    done: bool = False


@dataclass
class SplitStep:
    """The step of a client whose body is elsewhere (``u``, ``v``, ``w``)."""

    part: ClientPart
    line: Line
    batches: Sequence[Batch]
    at: At
    seed: int
    _micros: dict[int, _Micro] = field(default_factory=dict)
    _loss: float = 0.0
    _scale: float = 1.0

    def run(self) -> Outcome:
        """Raises what the line raises; then nothing was stepped here and the round is to be started again."""
        waiting = list(range(len(self.batches)))
        while waiting or any(not micro.done for micro in self._micros.values()):
            while waiting and sum(not micro.done for micro in self._micros.values()) < IN_FLIGHT:
                self._forward(waiting.pop(0))
            if (outcome := self._answer(self.line.receive())) is not None:
                return outcome
        self._rescale()
        self.line.send(self._prepare(), {})
        while (outcome := self._answer(self.line.receive())) is None:
            pass
        return outcome

    @property
    def _tokens(self) -> int:
        return label_tokens(self.batches)

    @property
    def _examples(self) -> int:
        return sum(batch.examples for batch in self.batches)

    def _dropout(self, micro: int) -> Dropout:
        return dropout(self.seed, self.at.client, self.at.first_step + self.at.step, micro)

    def _forward(self, index: int) -> None:
        batch = self.batches[index]
        self._micros[index] = _Micro(self.part.front(batch.rows, self._dropout(index)))
        self._send_forward(index)

    def _send_forward(self, index: int) -> None:
        batch, micro = self.batches[index], self._micros[index]
        message = Forward(
            **self.at.fields(index, micro.attempt),
            lengths=batch.rows.lengths,
            starts=batch.rows.starts,
            width=batch.rows.width,
            label_tokens=self._tokens,
            micros=len(self.batches),
        )
        tensors = {"h": to_wire(pack(micro.h_BTD.detach(), batch.rows))}
        if self.part.labels_leave:
            tensors["labels"] = to_wire(labels_to_wire(self.part.task, batch))
        self.line.send(message, tensors)

    def _answer(self, packet: Packet) -> Outcome | None:
        """Act on one message; an outcome when the step is over."""
        message = packet.message
        if not isinstance(message, Exchange) or (message.round, message.era, message.step) != self._place:
            return None
        match message:
            case Hidden():
                self._hidden(message, packet)
            case Grad():
                self._grad(message, packet)
            case Missing():
                self._micros[message.micro].attempt = message.attempt + 1
                self._send_forward(message.micro)
            case Commit():
                self.part.step(message.clip, message.rate)
                return Outcome(self._loss, True, self._examples)
            case Abort():
                self.part.drop()
                return Outcome(self._loss, False, self._examples)
            case other:
                raise RemoteProtocolError(f"a server does not send {type(other).__name__}")
        return None

    @property
    def _place(self) -> tuple[int, int, int]:
        return (self.at.round, self.at.era, self.at.step)

    def _hidden(self, message: Hidden, packet: Packet) -> None:
        micro, batch = self._micros[message.micro], self.batches[message.micro]
        if message.attempt != micro.attempt:
            return
        # After Missing the same hidden states come again: the tail has already counted them once.
        if micro.g_ND is None:
            h_BTD = unpack(from_wire(packet.tensors["h"], self.part.device), batch.rows).requires_grad_()
            loss = self.part.tail_loss(batch, h_BTD, message.label_tokens, self._dropout(message.micro))
            loss.backward()
            self._scale = message.label_tokens / self._tokens
            self._loss += float(loss.detach()) * self._scale
            assert h_BTD.grad is not None
            micro.g_ND = pack(h_BTD.grad, batch.rows)
        self.line.send(Backward(**self.at.fields(message.micro, micro.attempt)), {"g": to_wire(micro.g_ND)})

    def _grad(self, message: Grad, packet: Packet) -> None:
        micro, batch = self._micros[message.micro], self.batches[message.micro]
        if micro.done or message.attempt != micro.attempt:
            return
        if "g" in packet.tensors and micro.h_BTD.requires_grad:
            micro.h_BTD.backward(unpack(from_wire(packet.tensors["g"], self.part.device), batch.rows))
        if message.loss is not None:
            self._scale = message.label_tokens / self._tokens
            self._loss += message.loss * self._scale
        micro.done = True

    def _rescale(self) -> None:
        """In a together-batch the loss counts everybody's tokens; this client's own factors want its own mean."""
        if self._scale != 1.0:
            for value in self.part.params.values():
                if value.grad is not None:
                    value.grad.mul_(self._scale)

    def _prepare(self) -> Prepare:
        norms = squares(self.part.params)
        finite = all(map(math.isfinite, norms))
        return Prepare(**self.at.fields(), squares=norms, finite=finite, examples=self._examples)
