"""What rounds have folded into the base, summed up module by module: thin factors side by side, then one matrix.

A sum of products is a concatenation, and stays one as long as that is smaller than the matrix itself, R (M + N) < M N.
From then on it is the matrix, to which later products are added one by one. What a sum is depends on the products and
their order alone, not on where somebody began: whoever has the sum of the first ten goes on to the same bits as who
has added up all of them. So a device that comes late gets the sum and no history.

Legend: M out, N in, R rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from array_api_compat import array_namespace

from fedsplit.lora.adapter import Adapter, ModuleKey
from fedsplit.lora.lowrank import Array, LowRank, stack


@dataclass(frozen=True, eq=False)
class Dense:
    """A sum that is thin no more, (M, N)."""

    W_MN: Array

    @property
    def shape(self) -> tuple[int, int]:
        """(M, N)."""
        return int(self.W_MN.shape[0]), int(self.W_MN.shape[1])

    def dense(self) -> Array:
        """The matrix, as ``LowRank.dense`` gives it."""
        return self.W_MN


Sum: TypeAlias = LowRank | Dense
Patch: TypeAlias = Mapping[ModuleKey, Sum]


@dataclass(frozen=True)
class Step:
    """What brings a base to ``version``: one fold, or the sum of all."""

    version: int
    patch: Patch


def thin(part: LowRank) -> bool:
    """Whether the factors take less than the matrix."""
    m, n = part.shape
    return part.rank * (m + n) < m * n


def added(before: Sum | None, fold: Sum) -> Sum:
    """One more product. ``fold``: where it is a matrix, it is the sum of all there was, and takes its place."""
    if isinstance(fold, Dense):
        return fold
    if isinstance(before, Dense):
        return Dense(before.W_MN + fold.dense())
    after = fold if before is None else stack((before, fold))
    return after if thin(after) else Dense(after.dense())


def summed(patches: Iterable[Patch], onto: Patch | None = None) -> dict[ModuleKey, Sum]:
    """The patches added to ``onto``, in their order; by module."""
    found = dict(onto or {})
    for patch in patches:
        for key, part in patch.items():
            found[key] = added(found.get(key), part)
    return dict(sorted(found.items()))


def beside(part: LowRank, fold: Sum) -> LowRank:
    """Factors that do what ``part`` does beside ``fold``, as wide as need be: of a matrix, itself and the identity."""
    if isinstance(fold, LowRank):
        both = (fold, part.astype(fold.dtype)) if _any(part) else (fold,)
        return stack(both).astype("float64").compress().astype(part.dtype)
    matrix, xp = fold.W_MN + part.dense(), array_namespace(fold.W_MN)
    (m, n), where = fold.shape, {"dtype": matrix.dtype, "device": getattr(matrix, "device", None)}
    return LowRank(matrix, xp.eye(n, **where)) if n <= m else LowRank(xp.eye(m, **where), matrix)


def nbytes(patch: Patch) -> int:
    """Bytes of all sums, as they travel."""
    arrays = (
        array for part in patch.values() for array in ((part.W_MN,) if isinstance(part, Dense) else _factors(part))
    )
    return sum(int(array.nbytes) for array in arrays)


def whole(adapter: Adapter, patch: Patch) -> dict[ModuleKey, LowRank]:
    """Factors that do beside the file's weights what ``adapter`` does beside the patched ones. Ranks add up, at most to
    min(M, N); an adapter that is zero adds none."""
    return {**adapter, **{key: beside(adapter[key], patch[key]) for key in adapter.keys() & patch.keys()}}


def _any(part: LowRank) -> bool:
    return bool((part.B_MR != 0).any()) and bool((part.A_RN != 0).any())


def _factors(part: LowRank) -> tuple[Array, Array]:
    return part.A_RN, part.B_MR
