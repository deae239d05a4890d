"""A sum of many products in memory that does not grow with their number: one pass, one part after the other.

Legend: M out, N in, R rank, K parts. ``stack`` keeps all K R components. Here at most ``rank`` are kept between parts,
plus ``room`` that fill up before the next truncation: (rank + room)(M + N) numbers, whatever K is.

When is it exact? Truncating again and again loses what the exact sum would keep, so the result is *not* the best
approximation of the sum, unless nothing was cut: where the parts together span no more than ``rank`` components, always
with ``rank`` >= min(M, N). ``lost`` is the sum of the norms of all that was cut: by the triangle inequality a bound on
the Frobenius distance from the exact sum; 0.0 but for rounding means exact.
"""

from __future__ import annotations

from fedsplit.errors import DataError
from fedsplit.lora.lowrank import LowRank, stack


class RunningSum:
    """``sum w_k X_k`` of matrices of one shape. Raises DataError on a rank below 1."""

    def __init__(self, rank: int, room: int | None = None) -> None:
        if rank < 1:
            raise DataError(f"a running sum of rank {rank}: expected 1 or more")
        self._rank, self._room = rank, rank if room is None else max(0, room)
        self._kept: LowRank | None = None
        self.lost = 0.0
        """Upper bound on the Frobenius distance between ``total`` and the exact sum, rounding aside."""

    def add(self, part: LowRank, weight: float = 1.0) -> None:
        """One more product; the weight multiplies B alone."""
        scaled = part if weight == 1.0 else part * weight
        self._kept = scaled if self._kept is None else stack((self._kept, scaled))
        if self._kept.rank > self._rank + self._room:
            self._cut()

    def total(self) -> LowRank:
        """The sum so far at rank ``rank`` or less. Raises DataError where nothing was added."""
        if self._kept is None:
            raise DataError("the sum of no matrices has no shape: add one first")
        self._cut()
        return self._kept

    def _cut(self) -> None:
        assert self._kept is not None
        self._kept, lost = self._kept.nearest(self._rank)
        self.lost += lost
