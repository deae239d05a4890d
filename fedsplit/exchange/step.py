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

import numpy as np

from fedsplit.data.batches import Batch
from fedsplit.errors import RemoteProtocolError
from fedsplit.exchange.part import Key, Part
from fedsplit.exchange.rate import clip_factor
from fedsplit.wire import Packet, WireTensor
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


def dropout_key(run_seed: int, client: str, global_step: int, micro: int) -> Key:
    """The same for every cut, on whichever side a layer is."""
    return (run_seed, client, global_step, micro, "dropout")


def label_tokens(batches: Sequence[Batch]) -> int:
    """What the step's loss is divided by; at least 1, so that a step without any label is one without a gradient."""
    return max(1, sum(batch.label_tokens for batch in batches))


def local_step(part: Part, batches: Sequence[Batch], rate: float, at: At, seed: int) -> Outcome:
    """The step of a client that holds everything. Arithmetic and order are those of the split step."""
    tokens = label_tokens(batches)
    total = 0.0
    for micro, batch in enumerate(batches):
        total += part.learn(batch, tokens, dropout_key(seed, at.client, at.first_step + at.step, micro))
    examples = sum(len(batch) for batch in batches)
    norms = part.squares()
    if not all(map(math.isfinite, norms)):
        part.drop()
        return Outcome(total, False, examples)
    part.step(clip_factor(norms, part.train.clip), rate)
    return Outcome(total, True, examples)


@dataclass
class _Micro:
    """One micro-batch on its way: the front's output, until it is done, and the gradient the tail answered with."""

    h_ND: WireTensor | None
    attempt: int = 0
    g_ND: WireTensor | None = None
    done: bool = False


@dataclass
class SplitStep:
    """The step of a client whose body is elsewhere (``u``, ``v``, ``w``)."""

    part: Part
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
        # In a together-batch the loss counts everybody's tokens; this client's own factors want its own mean.
        if self._scale != 1.0:
            self.part.scale(self._scale)
        self.line.send(self._prepare(), {})
        while (outcome := self._answer(self.line.receive())) is None:
            pass
        return outcome

    @property
    def _tokens(self) -> int:
        return label_tokens(self.batches)

    @property
    def _examples(self) -> int:
        return sum(len(batch) for batch in self.batches)

    def _key(self, micro: int) -> Key:
        return dropout_key(self.seed, self.at.client, self.at.first_step + self.at.step, micro)

    def _forward(self, index: int) -> None:
        self._micros[index] = _Micro(self.part.forward(index, self.batches[index], self._key(index)))
        self._send_forward(index)

    def _send_forward(self, index: int) -> None:
        batch, micro = self.batches[index], self._micros[index]
        message = Forward(
            **self.at.fields(index, micro.attempt),
            lengths=batch.lengths,
            starts=batch.starts,
            width=batch.width,
            label_tokens=self._tokens,
            micros=len(self.batches),
        )
        assert micro.h_ND is not None
        self.line.send(message, upward(self.part, batch, micro.h_ND))

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
                self._missing(message)
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
        if micro.done or message.attempt != micro.attempt:
            return
        # After Missing the same hidden states come again: the tail has already counted them once.
        if micro.g_ND is None:
            tokens = message.label_tokens
            loss, micro.g_ND = self.part.tail(batch, packet.tensors["h"], tokens, self._key(message.micro))
            self._scale = tokens / self._tokens
            self._loss += loss * self._scale
        self.line.send(Backward(**self.at.fields(message.micro, micro.attempt)), {"g": micro.g_ND})

    def _grad(self, message: Grad, packet: Packet) -> None:
        micro = self._micros[message.micro]
        if micro.done or message.attempt != micro.attempt:
            return
        self.part.backward(message.micro, packet.tensors.get("g"))
        if message.loss is not None:
            self._scale = message.label_tokens / self._tokens
            self._loss += message.loss * self._scale
        micro.done, micro.h_ND, micro.g_ND = True, None, None

    def _missing(self, message: Missing) -> None:
        """The server has let this micro-batch go: from the start, unless its answer has come meanwhile."""
        micro = self._micros[message.micro]
        if not micro.done:
            micro.attempt = message.attempt + 1
            self._send_forward(message.micro)

    def _prepare(self) -> Prepare:
        norms = self.part.squares()
        finite = all(map(math.isfinite, norms))
        return Prepare(**self.at.fields(), squares=norms, finite=finite, examples=self._examples)


def upward(part: Part, batch: Batch, h_ND: WireTensor) -> dict[str, WireTensor]:
    """What a Forward carries: hidden states, and the labels where the tail is at the server."""
    return {"h": h_ND, "labels": labels_of(part, batch)} if part.labels_leave else {"h": h_ND}


def labels_of(part: Part, batch: Batch) -> WireTensor:
    """(N,) for language models, padding left out; else (B,)."""
    labels = batch.labels
    if part.task == "causal-lm":
        rows = zip(labels, batch.starts, batch.lengths, strict=True)
        labels = np.concatenate([row[start : start + length] for row, start, length in rows])
    return WireTensor.of(labels)
