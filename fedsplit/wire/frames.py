"""Packets to frames and back: one header frame, then one raw frame a tensor.

The header frame is eight bytes that no later version may change (magic ``fs``, protocol version, CRC-32 of the rest)
and the msgpack of one message. Nothing here owns a socket, and whatever bytes arrive, the answer is a ``Packet`` or
``RemoteProtocolError``: counts, lengths and limits are compared before memory is taken, checksums before a value is
used. CRC-32 of zlib because it is the fastest check in the standard library (docs/wire.md has the numbers).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from zlib import crc32

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from fedsplit.errors import LocalProtocolError, RemoteProtocolError
from fedsplit.wire.limits import Limits
from fedsplit.wire.messages import PROTOCOL, AnyMessage, Message, TensorSpec
from fedsplit.wire.shapes import mismatch
from fedsplit.wire.tensors import DTYPES, WireTensor

Frame = bytes | memoryview

ALIGNMENT = 64
"""Bytes. Frames that were decrypted start anywhere, and kernels give other last bits on memory that is not aligned."""

_PREFIX = struct.Struct("<2sHI")
_MAGIC = b"fs"
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(AnyMessage)
_ITEM_BYTES = {name: dtype.itemsize for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Packet:
    """One message and the tensors it names; ``nbytes`` is what it took on the wire (0 when it did not travel)."""

    message: Message
    tensors: Mapping[str, WireTensor] = field(default_factory=dict)
    nbytes: int = 0


def encode(
    message: Message, tensors: Mapping[str, WireTensor] | None = None, limits: Limits | None = None
) -> list[Frame]:
    """Frames of ``message``; tensor frames are views of the callers' memory, not copies.

    :raises LocalProtocolError: a tensor is not C-contiguous, its dtype does not travel, or ``limits`` are exceeded.
    """
    frames: list[Frame] = [b""]
    specs = []
    for name, tensor in (tensors or {}).items():
        view = _bytes_of(name, tensor)
        specs.append(TensorSpec(name, tensor.dtype, tensor.data.shape, len(view), crc32(view), tensor.codec))
        frames.append(view)
    if specs or message.tensors:
        message = replace(message, tensors=tuple(specs))
    body = _ENCODER.encode(message)
    frames[0] = _PREFIX.pack(_MAGIC, message.protocol & 0xFFFF, crc32(body)) + body
    if limits is not None and (problem := _beyond(frames, limits)):
        raise LocalProtocolError(f"{type(message).__name__} is too large to send: {problem}")
    return frames


def decode(frames: Sequence[Frame], limits: Limits | None = None) -> Packet:
    """The packet in ``frames``, every tensor in its own memory aligned to 64 bytes.

    :raises RemoteProtocolError: anything else than a packet of this protocol version within ``limits``.
    """
    if not frames:
        raise RemoteProtocolError("an empty packet: no header frame")
    limits = limits or Limits()
    if problem := _beyond(frames, limits):
        raise RemoteProtocolError(f"the packet is too large: {problem}")
    message = _header(frames[0])
    specs = message.tensors
    if len(specs) != len(frames) - 1:
        raise RemoteProtocolError(f"the header names {len(specs)} tensors, {len(frames) - 1} frames follow it")
    tensors = {spec.name: _tensor(spec, frame) for spec, frame in zip(specs, frames[1:], strict=True)}
    if len(tensors) != len(specs):
        raise RemoteProtocolError("the header names one tensor twice")
    if problem := mismatch(message, tensors, limits):
        raise RemoteProtocolError(problem)
    return Packet(message, tensors, size_of(frames))


def size_of(frames: Sequence[Frame]) -> int:
    """Bytes of all frames together, without the transport's own framing."""
    return sum(map(len, frames))


def _bytes_of(name: str, tensor: WireTensor) -> Frame:
    data = tensor.data
    if tensor.dtype not in DTYPES or data.dtype != DTYPES[tensor.dtype] or not data.flags.c_contiguous:
        raise LocalProtocolError(
            f"tensor {name!r} of dtype {tensor.dtype} holds {data.dtype}"
            f"{'' if data.flags.c_contiguous else ', not contiguous'}; the wire carries contiguous {', '.join(DTYPES)}"
        )
    return data.reshape(-1).view(np.uint8).data if data.size else b""


def _beyond(frames: Sequence[Frame], limits: Limits) -> str:
    if len(frames[0]) > limits.header_bytes:
        return f"header of {len(frames[0])} bytes, at most {limits.header_bytes} are allowed"
    if len(frames) - 1 > limits.tensors:
        return f"{len(frames) - 1} tensors, at most {limits.tensors} are allowed"
    largest = max(map(len, frames[1:]), default=0)
    if largest > limits.tensor_bytes:
        return f"tensor of {largest} bytes, at most {limits.tensor_bytes} are allowed"
    if (total := size_of(frames)) > limits.packet_bytes:
        return f"{total} bytes, at most {limits.packet_bytes} are allowed"
    return ""


def _header(frame: Frame) -> Message:
    if len(frame) < _PREFIX.size or bytes(frame[:2]) != _MAGIC:
        raise RemoteProtocolError("this is not a fedsplit packet: the other side is another program")
    _, version, checksum = _PREFIX.unpack_from(frame)
    if version != PROTOCOL:
        raise RemoteProtocolError(_versions(version))
    body = frame[_PREFIX.size :]
    if crc32(body) != checksum:
        raise RemoteProtocolError("the header's checksum is wrong: it was damaged on the way")
    try:
        message = _DECODER.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"the header is not a message of protocol {PROTOCOL}: {error}") from None
    if message.protocol != PROTOCOL:
        raise RemoteProtocolError(_versions(message.protocol))
    return message


def _versions(theirs: int) -> str:
    return (
        f"the other side speaks protocol {theirs}, this side protocol {PROTOCOL}; "
        "install the same version of fedsplit on both"
    )


def _tensor(spec: TensorSpec, frame: Frame) -> WireTensor:
    item_bytes = _ITEM_BYTES.get(spec.dtype)
    if item_bytes is None:
        raise RemoteProtocolError(f"tensor {spec.name!r}: found dtype {spec.dtype!r}, expected {', '.join(DTYPES)}")
    nbytes = math.prod(spec.shape) * item_bytes
    if not nbytes == spec.nbytes == len(frame):
        raise RemoteProtocolError(
            f"tensor {spec.name!r} of shape {spec.shape} and dtype {spec.dtype} needs {nbytes} bytes, "
            f"its header says {spec.nbytes}, its frame holds {len(frame)}"
        )
    data = _aligned(nbytes)
    data[:] = np.frombuffer(frame, np.uint8)
    # On the copy: it is in the cache now, and it is the memory that will be used.
    if crc32(data.data) != spec.crc:
        raise RemoteProtocolError(f"tensor {spec.name!r}: the checksum is wrong, its bytes were damaged on the way")
    return WireTensor(spec.dtype, data.view(DTYPES[spec.dtype]).reshape(spec.shape), spec.codec)


def _aligned(nbytes: int) -> NDArray[np.uint8]:
    block = np.empty(nbytes + ALIGNMENT, np.uint8)
    skip = -block.__array_interface__["data"][0] % ALIGNMENT
    return block[skip : skip + nbytes]
