"""Hidden states and gradients in fewer bits: what a codec makes of a tensor, row by row, and back.

    raw          as the model computes it
    bf16, f16    cast, to nearest even; f16 is clamped to ±65504, which outliers of a residual stream can reach
    int8         a row's values as multiples q of its scale, -127 ≤ q ≤ 127
    int4         the same in groups of 32 values, -7 ≤ q ≤ 7, two a byte

A row (one token) of int8 is its D values and a float32 scale; one of int4 is ⌈D/2⌉ bytes, the even value in the low
half, q + 8 in each, and a bfloat16 scale a group (float16 would lose the scale of a small gradient). A scale is
max|x| / 127 or / 7, rounded up to so few bits that q · scale is exact in float32: decoding has the same bits
everywhere, and what was decoded encodes to the same bytes again. Source: per-token absmax, as in LLM.int8()
(arXiv:2208.07339); groups as in QLoRA (arXiv:2305.14314). Legend: N rows, D width, G groups of a row.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedsplit.errors import LocalProtocolError, RemoteProtocolError
from fedsplit.wire.tensors import WireTensor

CodecName = Literal["raw", "bf16", "f16", "int8", "int4"]
Floats = NDArray[np.float32]

BITS: dict[str, int] = {"raw": 32, "bf16": 16, "f16": 16, "int8": 8, "int4": 4}
"""Of one value, without scales; ``raw`` in a run of bfloat16 has 16."""
GROUP = 32
"""Values that share a scale in ``int4``."""
F16_MAX = 65504.0
_LIMIT = {"int8": 127, "int4": 7}
_CAST = {"bf16": "bf16", "f16": "f16"}


def row_bytes(codec: str, width: int, raw_bytes: int) -> int:
    """Bytes of one row of ``width`` values, scales included. ``raw_bytes``: of one value as the model computes it."""
    if codec == "int8":
        return width + 4
    if codec == "int4":
        return _ceil(width, 2) + 2 * _ceil(width, GROUP)
    return width * (raw_bytes if codec == "raw" else 2)


def widest(codec: str, columns: int) -> int:
    """At most so many values stand in ``columns`` elements of a row on the wire."""
    return 2 * columns if codec == "int4" else columns


def coded(tensor: WireTensor, codec: str, chance: np.random.Generator | None = None) -> WireTensor:
    """A raw (N, D) tensor as it travels. ``chance``: integers are rounded up or down at random so that the mean is
    exact (to 2^-17 of a scale); None: to nearest.

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
    rows = _int8(x_ND, chance) if codec == "int8" else _int4(x_ND, chance)
    return WireTensor("u8", rows, codec)


def plain(tensor: WireTensor, width: int, dtype: str) -> WireTensor:
    """The raw (N, ``width``) tensor of ``dtype`` (``float32`` or ``bfloat16``) that a coded one stands for.

    :raises RemoteProtocolError: its bytes are not those of its codec at this width, or a scale is no positive number.
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
        values = np.asarray(tensor.numpy(), np.float32)
    else:
        rows: NDArray[np.uint8] = np.asarray(tensor.data, np.uint8)
        values = _from_int8(rows, width) if tensor.codec == "int8" else _from_int4(rows, width)
    return WireTensor.bf16(values) if dtype == "bfloat16" else WireTensor.of(values)


# ---- integers --------------------------------------------------------------------------------------------------------


def _int8(x_ND: Floats, chance: np.random.Generator | None) -> NDArray[np.uint8]:
    scale_N1 = _scales(np.abs(x_ND).max(axis=1, keepdims=True, initial=0.0), "int8")
    q_ND = _rounded(x_ND / scale_N1, _LIMIT["int8"], chance).astype(np.int8)
    return np.concatenate([q_ND.view(np.uint8), scale_N1.astype("<f4").view(np.uint8)], axis=1)


def _from_int8(rows: NDArray[np.uint8], width: int) -> Floats:
    scale_N1 = _positive(np.ascontiguousarray(rows[:, width:]).view("<f4").astype(np.float32))
    return _times(rows[:, :width].view(np.int8).astype(np.float32), scale_N1)


def _int4(x_ND: Floats, chance: np.random.Generator | None) -> NDArray[np.uint8]:
    count, width = x_ND.shape
    groups = _ceil(width, GROUP)
    x_NGK = _padded(x_ND, groups * GROUP).reshape(count, groups, GROUP)
    scale_NG1 = _scales(np.abs(x_NGK).max(axis=2, keepdims=True, initial=0.0), "int4")
    q_NGK = _rounded(x_NGK / scale_NG1, _LIMIT["int4"], chance).astype(np.int8) + 8
    halves = q_NGK.reshape(count, groups * GROUP)[:, : 2 * _ceil(width, 2)].astype(np.uint8)
    packed = halves[:, ::2] | (halves[:, 1::2] << 4)
    scales = (scale_NG1.reshape(count, groups).view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    return np.concatenate([packed, scales], axis=1)


def _from_int4(rows: NDArray[np.uint8], width: int) -> Floats:
    count, groups, size = len(rows), _ceil(width, GROUP), _ceil(width, 2)
    bits = np.ascontiguousarray(rows[:, size:]).view("<u2").astype(np.uint32) << 16
    scale_NG = _positive(bits.view(np.float32))
    halves = np.empty((count, 2 * size), np.int8)
    halves[:, ::2], halves[:, 1::2] = rows[:, :size] & 15, rows[:, :size] >> 4
    q_NGK = _padded((halves[:, :width] - 8).astype(np.float32), groups * GROUP).reshape(count, groups, GROUP)
    values = _times(q_NGK, scale_NG[:, :, None]).reshape(count, groups * GROUP)
    return np.ascontiguousarray(values[:, :width])


def _scales(largest: Floats, codec: str) -> Floats:
    """Rounded up to 17 bits (int8) or to 8, those of bfloat16 (int4); 1 where all values are 0, or as good as that."""
    limit, mask = np.float32(_LIMIT[codec]), np.uint32((1 << (7 if codec == "int8" else 16)) - 1)
    bits = (largest.astype(np.float32) / limit).view(np.uint32)
    most = (np.finfo(np.float32).max / limit).view(np.uint32) & ~mask
    scale: Floats = np.minimum((bits + mask) & ~mask, most).view(np.float32)
    return np.where(scale >= np.finfo(np.float32).tiny, scale, np.float32(1.0))


def _rounded(y: Floats, limit: int, chance: np.random.Generator | None) -> Floats:
    if chance is None:
        found = np.rint(y)
    else:
        # 17 bits, so that adding them to a whole number of the range is exact and it stays itself.
        draws = chance.integers(0, 1 << 16, size=y.shape, dtype=np.uint16)
        found = np.floor(y + (draws.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-16))
    return np.clip(found, -limit, limit)


def _padded(values: Floats, width: int) -> Floats:
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))


def _positive(scale: Floats) -> Floats:
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise RemoteProtocolError("a row's scale is not a positive number: the sender encoded it wrongly")
    return scale


def _times(q: Floats, scale: Floats) -> Floats:
    with np.errstate(over="ignore"):
        values: Floats = q * scale
    if not np.isfinite(values).all():
        raise RemoteProtocolError("a row's scale is too large for its values: the sender encoded it wrongly")
    return values


def _ceil(number: int, parts: int) -> int:
    return -(-number // parts)
