"""Hidden states and gradients in fewer bits: what a codec makes of a tensor, row by row, and back.

    raw          as the model computes it
    bf16, f16    cast, to nearest even; f16 is clamped to ±65504, which outliers of a residual stream can reach
    int8         a row's values as multiples q of its scale, -127 ≤ q ≤ 127
    int5 int4 int3   groups of 32 values, turned and rounded to 32, 16 or 8 levels (``rotated``)

A row (one token) of int8 is its D values and a bfloat16 scale, so that q · scale is exact in float32: decoding has the
same bits everywhere. The scale is max|x| / 127 to nearest: the largest q is 127 whatever was rounded, and what was
decoded encodes to the same bytes again. Where values are rounded at random it is rounded up, so that none is cut off.
Source: per-token absmax, as in LLM.int8() (arXiv:2208.07339). Legend: N rows, D width.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedsplit.errors import LocalProtocolError, RemoteProtocolError
from fedsplit.wire.rotated import GROUP, group_bytes, groups_of, packed, unpacked
from fedsplit.wire.tensors import WireTensor

CodecName = Literal["raw", "bf16", "f16", "int8", "int5", "int4", "int3"]
Floats = NDArray[np.float32]

BITS: dict[str, int] = {"raw": 32, "bf16": 16, "f16": 16, "int8": 8, "int5": 5, "int4": 4, "int3": 3}
"""Of one value, without scales; ``raw`` in a run of bfloat16 has 16."""
F16_MAX = 65504.0
_LIMIT = 127
_CAST = {"bf16": "bf16", "f16": "f16"}
_TURNED = {"int5": 5, "int4": 4, "int3": 3}


def row_bytes(codec: str, width: int, raw_bytes: int) -> int:
    """Bytes of one row of ``width`` values, scales included. ``raw_bytes``: of one value as the model computes it."""
    if codec == "int8":
        return width + 2
    if codec in _TURNED:
        return groups_of(width) * group_bytes(_TURNED[codec])
    return width * (raw_bytes if codec == "raw" else 2)


def widest(codec: str, columns: int) -> int:
    """At most so many values stand in ``columns`` elements of a row on the wire."""
    return -(-columns // group_bytes(_TURNED[codec])) * GROUP if codec in _TURNED else columns


def coded(tensor: WireTensor, codec: str, chance: np.random.Generator | None = None) -> WireTensor:
    """A raw (N, D) tensor as it travels. ``chance``: int8 is rounded up or down at random so that the mean is exact (to
    2^-17 of a scale); None: to nearest. Fewer bits are always rounded to nearest: there it is half of the error.

    :raises LocalProtocolError: no such codec, or a value that is not finite.
    """
    if codec == "raw":
        return tensor
    if codec not in BITS:
        raise LocalProtocolError(f"found codec {codec!r}, expected one of {', '.join(BITS)}")
    x_ND = np.asarray(tensor.numpy(), np.float32)
    if not np.isfinite(x_ND).all():
        raise LocalProtocolError(f"a tensor with a value that is not finite does not travel as {codec}")
    if codec == "bf16":
        # Largest values would round to infinity.
        limit = np.uint32(0x7F7F0000).view(np.float32)
        return WireTensor("bf16", WireTensor.bf16(np.clip(x_ND, -limit, limit)).data, codec)
    if codec == "f16":
        return WireTensor("f16", np.clip(x_ND, -F16_MAX, F16_MAX).astype("<f2"), codec)
    rows = _int8(x_ND, chance) if codec == "int8" else packed(x_ND, _TURNED[codec])
    return WireTensor("u8", rows, codec)


def plain(tensor: WireTensor, width: int, dtype: str) -> WireTensor:
    """The raw (N, ``width``) tensor of ``dtype`` (``float32`` or ``bfloat16``) that a coded one stands for.

    :raises RemoteProtocolError: its bytes are not those of its codec at this width, or a scale is none that it writes.
    """
    if tensor.codec == "raw":
        return tensor
    wanted, size = _CAST.get(tensor.codec, "u8"), row_bytes(tensor.codec, width, 0)
    size = width if tensor.codec in _CAST else size
    if tensor.codec not in BITS or tensor.dtype != wanted or tensor.shape[1:] != (size,):
        raise RemoteProtocolError(
            f"codec {tensor.codec!r}: found {tensor.dtype} of shape {tensor.shape}, "
            f"expected {wanted} of (tokens, {size})"
        )
    if tensor.codec in _CAST:
        values = _finite(np.asarray(tensor.numpy(), np.float32))
    else:
        rows: NDArray[np.uint8] = np.asarray(tensor.data, np.uint8)
        values = _from_int8(rows, width) if tensor.codec == "int8" else _unturned(rows, width, _TURNED[tensor.codec])
    return WireTensor.bf16(values) if dtype == "bfloat16" else WireTensor.of(values)


# ---- integers --------------------------------------------------------------------------------------------------------


def _int8(x_ND: Floats, chance: np.random.Generator | None) -> NDArray[np.uint8]:
    scale_N1 = _scales(np.abs(x_ND).max(axis=1, keepdims=True, initial=0.0), up=chance is not None)
    q_ND = _rounded(x_ND / scale_N1, chance).astype(np.int8)
    scales = (scale_N1.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    return np.concatenate([q_ND.view(np.uint8), scales], axis=1)


def _from_int8(rows: NDArray[np.uint8], width: int) -> Floats:
    scale_N1 = (np.ascontiguousarray(rows[:, width:]).view("<u2").astype(np.uint32) << 16).view(np.float32)
    if not (np.isfinite(scale_N1) & (scale_N1 > 0)).all():
        raise RemoteProtocolError("a row's scale is not a positive number: the sender encoded it wrongly")
    q_ND = rows[:, :width].view(np.int8)
    if (q_ND == -_LIMIT - 1).any():
        raise RemoteProtocolError(f"a value of {-_LIMIT - 1}, which no sender writes: expected {-_LIMIT} to {_LIMIT}")
    with np.errstate(over="ignore"):
        return _finite(q_ND.astype(np.float32) * scale_N1)


def _unturned(rows: NDArray[np.uint8], width: int, bits: int) -> Floats:
    values, scale_M = unpacked(rows, width, bits)
    if not (np.isfinite(scale_M) & (scale_M != 0)).all():
        raise RemoteProtocolError("a group's scale is not a number other than 0: the sender encoded it wrongly")
    return _finite(values)


def _scales(largest: Floats, *, up: bool) -> Floats:
    """Rounded to a bfloat16; 1 where all values are 0, or as good as that."""
    limit, mask = np.float32(_LIMIT), np.uint32(0xFFFF)
    bits = (largest.astype(np.float32) / limit).view(np.uint32)
    most = (np.finfo(np.float32).max / limit).view(np.uint32) & ~mask
    more = mask if up else np.uint32(0x8000)
    scale: Floats = np.minimum((bits + more) & ~mask, most).view(np.float32)
    return np.where(scale >= np.finfo(np.float32).tiny, scale, np.float32(1.0))


def _rounded(y: Floats, chance: np.random.Generator | None) -> Floats:
    if chance is None:
        found = np.rint(y)
    else:
        # 17 bits, so that adding them to a whole number of the range is exact and it stays itself.
        draws = chance.integers(0, 1 << 16, size=y.shape, dtype=np.uint16)
        found = np.floor(y + (draws.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-16))
    return np.clip(found, -_LIMIT, _LIMIT)


def _finite(values: Floats) -> Floats:
    if not np.isfinite(values).all():
        raise RemoteProtocolError("a value is not finite, or its scale too large: the sender encoded it wrongly")
    return values
