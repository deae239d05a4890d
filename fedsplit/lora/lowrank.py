"""Matrices that are only ever held as two thin factors, and the algebra that never multiplies them out.

Legend: M out, N in, R rank. ``LowRank(B_MR, A_RN)`` stands for the M x N matrix ``B_MR @ A_RN``. A sum of products is
a concatenation of factors, hence exact; the best approximation of lower rank comes from QR of the thin factors and an
SVD of the R x R core. Nothing here forms M x N (``dense`` does, for tests and reports).

Array-API code: NumPy on a device, torch on a server, the result is of the kind and dtype that came in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace

from fedsplit.errors import DataError, InternalError

Array: TypeAlias = Any
"""An array of the array API (NumPy, torch): the standard has no static type that both libraries satisfy."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """``B_MR @ A_RN`` without the product. Both factors share one dtype; rank 0 is the zero matrix.

    Raises DataError where the factors do not fit together.
    """

    B_MR: Array
    A_RN: Array

    def __post_init__(self) -> None:
        b, a = tuple(self.B_MR.shape), tuple(self.A_RN.shape)
        if len(b) != 2 or len(a) != 2 or b[1] != a[0]:
            raise DataError(f"factors B {b} and A {a} do not fit: expected B (out, rank) and A (rank, in)")
        if self.B_MR.dtype != self.A_RN.dtype:
            raise DataError(f"factors B and A have dtypes {self.B_MR.dtype} and {self.A_RN.dtype}: expected one dtype")

    @property
    def rank(self) -> int:
        """Number of rank-one components held (the rank of the matrix can be lower)."""
        return int(self.A_RN.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(M, N) of the matrix this stands for."""
        return int(self.B_MR.shape[0]), int(self.A_RN.shape[1])

    @property
    def dtype(self) -> Any:
        return self.A_RN.dtype

    @staticmethod
    def zeros(like: LowRank, rank: int = 0) -> LowRank:
        """The zero matrix of ``like``'s shape, dtype and array library."""
        xp = array_namespace(like.B_MR)
        (m, n), where = like.shape, {"dtype": like.dtype, "device": _device(like.B_MR)}
        return LowRank(xp.zeros((m, rank), **where), xp.zeros((rank, n), **where))

    def astype(self, dtype: Any) -> LowRank:
        """The same factors in another dtype; ``self`` when nothing changes. ``dtype`` may be a name (``float64``)."""
        xp = array_namespace(self.B_MR)
        dtype = getattr(xp, dtype) if isinstance(dtype, str) else dtype
        if dtype == self.dtype:
            return self
        return LowRank(xp.astype(self.B_MR, dtype), xp.astype(self.A_RN, dtype))

    # ---- algebra ---------------------------------------------------------------------------------------------------

    def __add__(self, other: LowRank) -> LowRank:
        """The exact sum; ranks add up."""
        return stack((self, other))

    def __neg__(self) -> LowRank:
        return LowRank(-self.B_MR, self.A_RN)

    def __sub__(self, other: LowRank) -> LowRank:
        return stack((self, -other))

    def __mul__(self, scale: float) -> LowRank:
        """``scale`` goes into B alone: scaling both factors would square it."""
        return LowRank(self.B_MR * float(scale), self.A_RN)

    __array_ufunc__ = None  # else NumPy scalars on the left would try to multiply the factors as objects
    __rmul__ = __mul__

    # ---- rank ------------------------------------------------------------------------------------------------------

    def truncate(self, rank: int) -> LowRank:
        """The nearest matrix (Frobenius, spectral) of at most ``rank``; ``self`` where it has no more already.

        B carries the singular values, A has orthonormal rows, as FlexLoRA hands them out (arXiv:2402.11505). Signs are
        fixed by the first largest entry of each left vector, so that every machine gives the same factors. The zero
        matrix keeps its first rows of A with B = 0, so that it can go on learning.
        """
        return self.nearest(rank)[0]

    def nearest(self, rank: int) -> tuple[LowRank, float]:
        """``truncate(rank)`` and how far it is from ``self``: the Frobenius norm of what was cut off (0: nothing)."""
        if rank < 0:
            raise DataError(f"cannot truncate to rank {rank}: expected 0 or more")
        return (self, 0.0) if rank >= self.rank else self._best(rank)

    def compress(self) -> LowRank:
        """The same matrix with at most min(M, N) components."""
        return self.truncate(min(self.shape))

    def slice(self, rank: int) -> LowRank:
        """The first ``rank`` components as they are (rows of A, columns of B); ``self`` where there are no more."""
        return self if rank >= self.rank else LowRank(self.B_MR[:, :rank], self.A_RN[:rank, :])

    def pad(self, rank: int, rows_RN: Array | None = None) -> LowRank:
        """The same matrix with ``rank`` components; ``self`` where it has as many.

        New columns of B are zero. New rows of A come from ``rows_RN`` (rank - self.rank, N): a component whose row and
        column are both zero has no gradient and stays dead for ever. Without ``rows_RN`` the padding is zero.
        """
        if rank <= self.rank:
            return self
        more = LowRank.zeros(self, rank - self.rank)
        return stack((self, more if rows_RN is None else LowRank(more.B_MR, rows_RN)))

    # ---- numbers ---------------------------------------------------------------------------------------------------

    def singular_values(self) -> Array:
        """Singular values in descending order, min(M, N, R) of them."""
        xp = array_namespace(self.B_MR)
        return xp.linalg.svdvals(_core(self)[1])

    def norm(self) -> float:
        """Frobenius norm, from the R x R core: no cancellation, unlike the trace of two Gram matrices."""
        if self.rank == 0:
            return 0.0
        xp = array_namespace(self.B_MR)
        return float(xp.linalg.vector_norm(_core(self)[1]))

    def inner(self, other: LowRank) -> float:
        """``<self, other>`` of the two matrices, in O(R1 R2 (M + N))."""
        _same_shape(self, other)
        gram_b = self.B_MR.T @ other.B_MR
        gram_a = self.A_RN @ other.A_RN.T
        return float((gram_b * gram_a).sum())

    def dense(self) -> Array:
        """M x N. For tests and reports on small layers only."""
        return self.B_MR @ self.A_RN

    def _best(self, rank: int) -> tuple[LowRank, float]:
        xp = array_namespace(self.B_MR)
        left_MP, core_PQ, right_NQ = _core(self)
        u_PS, s_S, vt_SQ = _svd(xp, core_PQ)
        if rank == 0 or float(s_S[0]) == 0.0:
            zero = LowRank.zeros(self, rank)
            return LowRank(zero.B_MR, self.A_RN[:rank, :]), float(xp.linalg.vector_norm(s_S))
        u_MR, v_RN = left_MP @ u_PS[:, :rank], vt_SQ[:rank, :] @ right_NQ.T
        sign_R = _signs(xp, u_MR)
        lost = float(xp.linalg.vector_norm(s_S[rank:]))
        return LowRank(u_MR * (s_S[:rank] * sign_R), v_RN * sign_R[:, None]), lost


def stack(parts: tuple[LowRank, ...] | list[LowRank]) -> LowRank:
    """The exact sum of all ``parts``: factors side by side, in the given order. At least one part."""
    first = parts[0]
    if len(parts) == 1:
        return first
    for other in parts[1:]:
        _same_shape(first, other)
    xp = array_namespace(first.B_MR)
    return LowRank(
        xp.concat([part.B_MR for part in parts], axis=1),
        xp.concat([part.A_RN for part in parts], axis=0),
    )


def _same_shape(one: LowRank, other: LowRank) -> None:
    if one.shape != other.shape:
        raise DataError(f"matrices of {one.shape} and {other.shape} do not combine: expected one (out, in)")


def _core(matrix: LowRank) -> tuple[Array, Array, Array]:
    """Orthonormal left (M, P), small core (P, Q), orthonormal right (N, Q); P = min(M, R), Q = min(N, R)."""
    xp = array_namespace(matrix.B_MR)
    left_MP, r_PR = xp.linalg.qr(matrix.B_MR)
    right_NQ, r_QR = xp.linalg.qr(matrix.A_RN.T)
    return left_MP, r_PR @ r_QR.T, right_NQ


def _svd(xp: Any, core_PQ: Array) -> tuple[Array, Array, Array]:
    """Thin SVD; where LAPACK's divide and conquer does not converge, the transpose usually does."""
    try:
        u, s, vt = xp.linalg.svd(core_PQ, full_matrices=False)
        return u, s, vt
    except (np.linalg.LinAlgError, RuntimeError):
        pass
    try:
        v, s, ut = xp.linalg.svd(core_PQ.T, full_matrices=False)
    except (np.linalg.LinAlgError, RuntimeError) as error:
        size = "x".join(str(n) for n in core_PQ.shape)
        raise InternalError(f"the SVD of a {size} core does not converge, neither way round: {error}") from error
    return ut.T, s, v.T


def _signs(xp: Any, u_MR: Array) -> Array:
    """+1 or -1 per column: the sign of its first largest entry, so that a decomposition is the same everywhere."""
    row_R = xp.argmax(xp.abs(u_MR), axis=0)
    signs = [math.copysign(1.0, float(u_MR[int(row), column])) for column, row in enumerate(row_R)]
    return xp.asarray(signs, dtype=u_MR.dtype, device=_device(u_MR))


def _device(array: Array) -> Any:
    return getattr(array, "device", None)
