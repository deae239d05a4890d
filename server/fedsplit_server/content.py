"""Does a step message fit this model? Checked when it arrives, so that a wrong one costs its sender only.

What follows from the message alone (shapes beside header) was checked by the wire; here come the model's own numbers.
Legend: B samples, T padded width, N valid tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsplit.config.run import ModelSection
from fedsplit.data.examples import IGNORED
from fedsplit.errors import DataError, RemoteProtocolError
from fedsplit.exchange.coded import Codecs, decoded
from fedsplit.split.base import Base
from fedsplit.split.rows import Rows
from fedsplit.wire import Packet, WireTensor
from fedsplit.wire.messages import Backward, Exchange, Forward

_DTYPES = {"float32": "f32", "bfloat16": "bf16"}


class WrongContent(RemoteProtocolError):
    """A message that would be wrong again if its sender repeated the round: its part in the run is over."""


def read(codecs: Codecs, packet: Packet, base: Base) -> Packet:
    """The packet with raw tensors.

    :raises WrongContent: a tensor does not travel as planned.
    """
    try:
        return decoded(codecs, packet, int(base.hidden_size))
    except RemoteProtocolError as error:
        raise WrongContent(str(error)) from None


def check_content(
    message: Exchange, tensors: Mapping[str, WireTensor], model: ModelSection, base: Base, *, labels_here: bool
) -> None:
    """:raises WrongContent: says what was found and expected; nothing has been computed."""
    match message:
        case Forward():
            _hidden("h", tensors, model, base)
            _rows(message, tensors["h"], model)
            if labels_here and (message.train or "labels" in tensors):
                _labels(message, tensors.get("labels"), model, base)
        case Backward():
            _hidden("g", tensors, model, base)


def _hidden(name: str, tensors: Mapping[str, WireTensor], model: ModelSection, base: Base) -> None:
    tensor = tensors.get(name)
    if tensor is None:
        raise WrongContent(f"found no tensor {name!r}, expected hidden states of shape (tokens, width)")
    wanted = _DTYPES[model.dtype]
    if tensor.dtype != wanted or len(tensor.shape) != 2 or tensor.shape[1] != base.hidden_size:
        raise WrongContent(
            f"tensor {name!r}: found {tensor.dtype} of shape {tensor.shape}, "
            f"expected {wanted} of (tokens, {base.hidden_size})"
        )


def _rows(message: Forward, h_ND: WireTensor, model: ModelSection) -> None:
    try:
        rows = Rows(None, tuple(message.lengths), tuple(message.starts), message.width)
    except DataError as error:
        raise WrongContent(str(error)) from None
    if rows.tokens != h_ND.shape[0]:
        raise WrongContent(f"the samples have {rows.tokens} tokens, tensor 'h' {h_ND.shape[0]}")
    if model.task != "image-classification" and message.width > model.max_length:
        raise WrongContent(f"rows of {message.width} tokens, at most model.max_length = {model.max_length}")


def _labels(message: Forward, labels: WireTensor | None, model: ModelSection, base: Base) -> None:
    """In topology ``v`` a label out of range would end the loss in an index error."""
    if labels is None:
        raise WrongContent("found no tensor 'labels'; topology v computes the loss here")
    language = model.task == "causal-lm"
    wanted = "f32" if model.task == "regression" else "i64"
    count = sum(message.lengths) if language else len(message.lengths)
    if labels.dtype != wanted or labels.shape != (count,):
        raise WrongContent(
            f"tensor 'labels': found {labels.dtype} of shape {labels.shape}, expected {wanted} of ({count},)"
        )
    values: NDArray[Any] = labels.numpy()
    if model.task == "regression":
        if not np.isfinite(values).all():
            raise WrongContent("tensor 'labels' holds a number that is not finite")
        return
    classes = int(base.config.vocab_size) if language else len(model.labels)
    outside = (values < 0) | (values >= classes)
    if language:
        outside &= values != IGNORED
    if outside.any():
        raise WrongContent(f"tensor 'labels' holds {values[outside][0]}, expected 0 to {classes - 1}")
