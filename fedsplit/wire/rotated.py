"""Three to five bits a value: groups of 32 neighbours, turned so that no one of them stands out, and one scale each.

A group x is sent as q, 32 whole numbers of so many bits, and a bfloat16 scale s, with H the Hadamard matrix of size 32
(entries ±1, H H = 32 I)::

    y = H x / 32        s = (the entry of y of largest size) / -L        q = round(y / s) in -L ... L - 1
    x = H q · s         L = 2^(bits - 1)

Hidden states have a few channels that are many times larger than the rest; beside one of them a scale of max|x| leaves
little of 31 neighbours. In y all entries are alike, and the error of what comes back is the same whatever x was: of its
length 4 % with 5 bits, 8 % with 4, 17 % with 3. The sign of the scale puts the largest entry on -L, so that all levels
are used. H q is a whole number and s has 8 bits, so that H q · s is exact in float32: decoding has the same bits
everywhere, and what was decoded encodes to the same bytes again where D is a multiple of 32. Encoding adds in one
order, so that it has the same bits everywhere, too.

Bytes of a group: its bits in planes, lowest first (4 bytes each, the first value the lowest bit), then the scale.
Source: rotation before rounding as in QuaRot (arXiv:2404.00456), groups as in QLoRA (arXiv:2305.14314), a signed scale
as in llama.cpp's Q4_0. Legend: N rows, D width, G groups of a row, K = 32 values of a group, M = N G.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

GROUP = 32
"""Values that share a scale."""
_SCALE_BYTES = 2
_LARGEST = np.float32(2.0**120)
"""Of a scale; with it no sum of 32 levels overflows."""


def groups_of(width: int) -> int:
    """Groups of a row; the last one is filled up with zeros."""
    return -(-width // GROUP)


def group_bytes(bits: int) -> int:
    """Of one group, its scale included."""
    return bits * GROUP // 8 + _SCALE_BYTES


def packed(x_ND: Floats, bits: int) -> Bytes:
    """(N, G · ``group_bytes``) of finite values."""
    count, groups, level = len(x_ND), groups_of(x_ND.shape[1]), 1 << (bits - 1)
    filled = np.pad(x_ND, ((0, 0), (0, groups * GROUP - x_ND.shape[1])))
    # Groups side by side: then every step is over long rows of memory.
    x_KM = np.ascontiguousarray(filled.reshape(count * groups, GROUP).T)
    y_KM = _turned(x_KM * np.float32(1 / GROUP))
    scale_M = _scales(y_KM, level)
    q_KM = np.clip(np.rint(y_KM / scale_M), -level, level - 1).astype(np.int8)
    codes_KM = (q_KM + np.int8(level)).view(np.uint8)
    planes = [np.packbits((codes_KM >> bit) & 1, axis=0, bitorder="little").T for bit in range(bits)]
    scales = (scale_M.view(np.uint32) >> 16).astype("<u2").view(np.uint8).reshape(count * groups, _SCALE_BYTES)
    return np.concatenate([*planes, scales], axis=1).reshape(count, groups * group_bytes(bits))


def unpacked(rows: Bytes, width: int, bits: int) -> tuple[Floats, Floats]:
    """(the (N, ``width``) values, the scale of each group), unchecked: with a wrong scale they are not finite."""
    count, groups, level = len(rows), groups_of(width), 1 << (bits - 1)
    group = rows.reshape(count * groups, group_bytes(bits))
    scale_M = (np.ascontiguousarray(group[:, -_SCALE_BYTES:]).view("<u2").astype(np.uint32) << 16).view(np.float32)
    planes = np.ascontiguousarray(group[:, :-_SCALE_BYTES].reshape(count * groups, bits, GROUP // 8).transpose(1, 2, 0))
    codes_KM = np.zeros((GROUP, count * groups), np.uint8)
    for bit in range(bits):
        codes_KM |= np.unpackbits(planes[bit], axis=0, bitorder="little") << bit
    with np.errstate(over="ignore", invalid="ignore"):
        x_KM = _turned(codes_KM.astype(np.float32) - np.float32(level)) * scale_M.reshape(-1)
    values = np.ascontiguousarray(x_KM.T).reshape(count, groups * GROUP)
    return np.ascontiguousarray(values[:, :width]), scale_M


def _turned(x_KM: Floats) -> Floats:
    """H x of every column, as sums and differences of halves: five times 32 additions."""
    half = GROUP // 2
    while half:
        pairs = x_KM.reshape(GROUP // (2 * half), 2, half, x_KM.shape[1])
        x_KM = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(x_KM.shape)
        half //= 2
    return x_KM


def _scales(y_KM: Floats, level: int) -> Floats:
    """Rounded away from zero to the 8 bits of bfloat16; 1 where all values are 0, or as good as that."""
    first = np.abs(y_KM).argmax(axis=0)
    bits = (np.take_along_axis(y_KM, first[None], axis=0)[0] / np.float32(-level)).view(np.uint32)
    scale_M: Floats = ((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)
    scale_M = np.clip(scale_M, -_LARGEST, _LARGEST)
    return np.where(np.abs(scale_M) >= np.finfo(np.float32).tiny, scale_M, np.float32(1.0))
