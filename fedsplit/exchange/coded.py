"""Hidden states and gradients travel as the plan says: encoded when they are sent, decoded when they arrive.

Both ends use this, above whatever computes, so that torch and exported graphs send the same bytes. Gradients in
integers are rounded at random, by a key of run, client, round, step and micro-batch: a repeated message, another
attempt and a run that goes on after a crash have the same bits. A tensor with a value that is not finite travels raw:
both sides then see it, and drop the step. Legend: N valid tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedsplit.errors import RemoteProtocolError
from fedsplit.plan.types import ClientPlan
from fedsplit.seeds import generator
from fedsplit.wire.codecs import coded, plain
from fedsplit.wire.ends import Tensors
from fedsplit.wire.frames import Packet
from fedsplit.wire.messages import Backward, Exchange, Forward, Grad, Hidden, Message
from fedsplit.wire.tensors import WireTensor

if TYPE_CHECKING:
    from fedsplit.exchange.step import Line


@dataclass(frozen=True)
class Codecs:
    """Of one client's link: hidden states and gradients, up and down. ``dtype``: what both ends compute in."""

    h_up: str = "raw"
    h_down: str = "raw"
    g_up: str = "raw"
    g_down: str = "raw"
    dtype: str = "float32"

    @staticmethod
    def of(plan: ClientPlan) -> Codecs:
        return Codecs(plan.wire_up, plan.wire_down, plan.grad_up, plan.grad_down, plan.dtype)

    @property
    def raw(self) -> bool:
        """Nothing is encoded."""
        return {self.h_up, self.h_down, self.g_up, self.g_down} == {"raw"}

    def tensor(self, message: Message) -> tuple[str, str]:
        """(name, codec) of the tensor that a codec is for in this message; ("", "raw"): it has none."""
        match message:
            case Forward():
                return "h", self.h_up
            case Hidden():
                return "h", self.h_down
            case Backward():
                return "g", self.g_up
            case Grad():
                return "g", self.g_down
        return "", "raw"


RAW = Codecs()


def encoded(codecs: Codecs, message: Message, tensors: Tensors, seed: int) -> Tensors:
    """``tensors`` as they travel with ``message``. ``seed``: the run's."""
    name, codec = codecs.tensor(message)
    if codec == "raw" or name not in tensors or not np.isfinite(tensors[name].numpy()).all():
        return tensors
    chance = None
    if name == "g":
        assert isinstance(message, Exchange)
        place = message.client, message.round, message.step, message.micro
        chance = generator(seed, *place, f"rounding of {type(message).__name__}")
    return {**tensors, name: coded(tensors[name], codec, chance)}


def decoded(codecs: Codecs, packet: Packet, width: int) -> Packet:
    """``packet`` with raw tensors, rows of ``width`` values.

    :raises RemoteProtocolError: another codec than the plan's, or bytes that are not of that codec.
    """
    name, codec = codecs.tensor(packet.message)
    tensor = packet.tensors.get(name)
    for other, one in packet.tensors.items():
        if one.codec != "raw" and other != name:
            raise RemoteProtocolError(f"tensor {other!r}: found codec {one.codec!r}, expected 'raw'")
    if tensor is None or (codec == "raw" and tensor.codec == "raw"):
        return packet
    if tensor.codec != codec and not (tensor.codec == "raw" and not np.isfinite(tensor.numpy()).all()):
        raise RemoteProtocolError(f"tensor {name!r}: found codec {tensor.codec!r}, expected {codec!r} as in the plan")
    return replace(packet, tensors={**packet.tensors, name: plain(tensor, width, codecs.dtype)})


class CodedLine:
    """A client's line on which tensors travel as its plan says. Answers have the width of what was asked."""

    def __init__(self, line: Line, codecs: Codecs, seed: int) -> None:
        self._line, self._codecs, self._seed = line, codecs, seed
        self._width = 0

    def send(self, message: Message, tensors: Mapping[str, WireTensor]) -> None:
        if "h" in tensors:
            self._width = tensors["h"].shape[-1]
        self._line.send(message, encoded(self._codecs, message, tensors, self._seed))

    def receive(self) -> Packet:
        """As the line's own; raises RemoteProtocolError for a tensor that is not as planned."""
        return decoded(self._codecs, self._line.receive(), self._width)


def as_planned(line: Line, plan: ClientPlan, seed: int) -> Line:
    """The line as ``plan`` has it; itself where everything travels raw."""
    codecs = Codecs.of(plan)
    return line if codecs.raw else CodedLine(line, codecs, seed)
