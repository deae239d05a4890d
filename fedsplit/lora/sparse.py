"""The largest entries of many tensors at once, and how they travel: their values, and where they belong.

The tensors are one vector: in the order of their names, each row by row. One threshold holds for all of them. Equal
magnitudes are told apart by position, the first ones win, so that every machine finds the same entries.

How many are kept, and the bytes that these take, says ``fedsplit.wire.sparse``. Legend: N entries, K of them kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsplit.errors import DataError
from fedsplit.lora.adapter import Tensor

VALUES, BITS, AT = "sparse/values", "sparse/bits", "sparse/at"
"""Names of the tensors: (K,) float32, then (ceil(N / 8),) uint8, the first entry's bit the highest, or (K,) int32."""
LARGEST = 2**31 - 1
Shapes = Mapping[str, tuple[int, ...]]


def entries(shapes: Shapes) -> int:
    """N of tensors of these shapes."""
    return sum(int(np.prod(shape)) for shape in shapes.values())


def tensors_of(count: int, k: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Wire dtype and shape of the tensors that carry ``k`` of ``count`` entries."""
    words = -(-count // 8)
    places = (BITS, ("u8", (words,))) if words <= 4 * k else (AT, ("i32", (k,)))
    return {VALUES: ("f32", (k,)), places[0]: places[1]}


def largest(vector_N: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Positions, ascending, of the ``k`` entries of largest magnitude. What is not finite counts as the largest, so
    that it is seen where it arrives."""
    size_N = np.abs(vector_N)
    size_N[~np.isfinite(size_N)] = np.inf
    if k >= size_N.size:
        return np.arange(size_N.size)
    threshold = np.partition(size_N, size_N.size - k)[size_N.size - k]
    above = np.flatnonzero(size_N > threshold)
    ties = np.flatnonzero(size_N == threshold)[: k - above.size]
    return np.sort(np.concatenate([above, ties]))


def thinned(tensors: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """The same tensors with zeros but in the ``k`` largest entries of all: what ``unpacked(packed(...))`` gives."""
    vector_N = _vector(tensors)
    only_N = np.zeros_like(vector_N)
    at_K = largest(vector_N, k)
    only_N[at_K] = vector_N[at_K]
    return _cut(only_N, {name: tensor.shape for name, tensor in tensors.items()})


def packed(tensors: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """The ``k`` largest entries of all, as they travel. Raises DataError on more entries than 32 bits can count."""
    vector_N = _vector(tensors)
    if vector_N.size > LARGEST:
        raise DataError(f"a mask over {vector_N.size} entries: expected at most {LARGEST}; adapt fewer modules")
    at_K = largest(vector_N, k)
    values_K = np.ascontiguousarray(vector_N[at_K], dtype="<f4")
    if BITS not in tensors_of(vector_N.size, k):
        return {VALUES: values_K, AT: at_K.astype("<i4")}
    chosen_N = np.zeros(vector_N.size, dtype=bool)
    chosen_N[at_K] = True
    return {VALUES: values_K, BITS: np.packbits(chosen_N)}


def unpacked(tensors: Mapping[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
    """Tensors of these shapes, zero but where a value came.

    :raises DataError: the places are not those of as many entries, or none of tensors of these shapes.
    """
    count, values_K = entries(shapes), tensors.get(VALUES)
    if values_K is None or values_K.ndim != 1:
        raise DataError(f"a mask without values: expected {VALUES} of one dimension")
    for name, dtype in ((VALUES, np.float32), (BITS, np.uint8), (AT, np.int32)):
        if name in tensors and tensors[name].dtype != dtype:
            raise DataError(f"{name} of {tensors[name].dtype}: expected {np.dtype(dtype)}")
    at_K = _places(tensors, count)
    if at_K.size != values_K.size:
        raise DataError(f"a mask names {at_K.size} entries and brings {values_K.size} values: expected one each")
    vector_N = np.zeros(count, dtype=np.float32)
    vector_N[at_K] = values_K
    return _cut(vector_N, shapes)


def _places(tensors: Mapping[str, Tensor], count: int) -> NDArray[np.int64]:
    if (bits := tensors.get(BITS)) is not None:
        if bits.shape != (-(-count // 8),):
            expected = f"one bit for each of {count} entries"
            raise DataError(
                f"a mask of shape {bits.shape}: expected {expected}; it is of other modules or another rank"
            )
        chosen_N = np.unpackbits(bits)
        if chosen_N[count:].any():
            raise DataError(f"a mask names entries beyond the last of {count}")
        return np.flatnonzero(chosen_N)
    at_K = tensors.get(AT)
    if at_K is None or at_K.ndim != 1:
        raise DataError(f"a mask without places: expected {BITS} or {AT}")
    places_K = at_K.astype(np.int64)
    if places_K.size and (places_K[0] < 0 or places_K[-1] >= count or (np.diff(places_K) <= 0).any()):
        raise DataError(f"a mask names places that do not ascend from 0 to {count - 1}")
    return places_K


def _vector(tensors: Mapping[str, Tensor]) -> NDArray[np.float32]:
    flat = [np.ravel(tensors[name]) for name in sorted(tensors)]
    return np.concatenate(flat).astype(np.float32, copy=False) if flat else np.zeros(0, dtype=np.float32)


def _cut(vector_N: NDArray[np.float32], shapes: Shapes) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    begin = 0
    for name in sorted(shapes):
        end = begin + int(np.prod(shapes[name]))
        found[name] = vector_N[begin:end].reshape(shapes[name])
        begin = end
    return found
