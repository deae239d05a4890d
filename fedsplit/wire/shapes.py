"""What a step message's tensors must look like beside its header, so that nobody downstream trips over a stranger's.

Only what follows from the message itself; whether it fits the model is the engine's question. Legend: N valid tokens,
D model width, B samples, T padded width.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedsplit.wire.codecs import BITS, widest
from fedsplit.wire.limits import Limits
from fedsplit.wire.messages import PROBE_BYTES, Backward, Chunk, Forward, Message, Probe, Probed
from fedsplit.wire.tensors import WireTensor

_NEEDS = {Forward: "h", Backward: "g", Chunk: "data", Probe: "data", Probed: "data"}


def mismatch(message: Message, tensors: Mapping[str, WireTensor], limits: Limits) -> str:
    """What is wrong with ``message`` and its tensors together; empty when nothing is."""
    name = _NEEDS.get(type(message))
    if name is None:
        return ""
    tensor = tensors.get(name)
    if tensor is None:
        return f"{type(message).__name__} needs a tensor {name!r}, found {sorted(tensors) or 'none'}"
    if isinstance(message, Chunk | Probe | Probed):
        return _flat(message, tensor)
    if tensor.codec not in BITS:
        return f"tensor {name!r}: found codec {tensor.codec!r}, expected one of {', '.join(BITS)}"
    if len(tensor.shape) != 2:
        return f"tensor {name!r} must have two dimensions (tokens, width), found shape {tensor.shape}"
    return _rows(message, tensor, limits) if isinstance(message, Forward) else ""


def _flat(message: Message, tensor: WireTensor) -> str:
    if tensor.dtype != "u8" or len(tensor.shape) != 1:
        return f"{type(message).__name__} carries flat u8, found {tensor.dtype} of shape {tensor.shape}"
    if not isinstance(message, Chunk) and tensor.nbytes > PROBE_BYTES:
        return f"{type(message).__name__} carries at most {PROBE_BYTES} bytes, found {tensor.nbytes}"
    return ""


def _rows(forward: Forward, h_ND: WireTensor, limits: Limits) -> str:
    lengths, starts, width = forward.lengths, forward.starts, forward.width
    if len(lengths) != len(starts):
        return f"{len(lengths)} lengths and {len(starts)} starts, expected one of each a sample"
    if any(start + length > width for start, length in zip(starts, lengths, strict=True)):
        return f"a sample reaches beyond the padded width of {width} tokens"
    tokens, dim = h_ND.shape
    if sum(lengths) != tokens:
        return f"the lengths sum up to {sum(lengths)} tokens, tensor 'h' holds {tokens}"
    # Padding is not sent but will be allocated: a small packet must not ask for a large batch.
    size = h_ND.data.itemsize if h_ND.codec == "raw" else 4
    padded = len(lengths) * width * widest(h_ND.codec, dim) * size
    if padded > limits.tensor_bytes:
        return f"the padded batch takes {padded} bytes, at most {limits.tensor_bytes} are allowed"
    return ""
