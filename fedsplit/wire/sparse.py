"""How many entries of a vector a density keeps, and the bytes they take as they travel, planned and sent."""

from __future__ import annotations


def kept(count: int, density: float) -> int:
    """How many of ``count`` entries stay: the whole part of ``count * density``, at least one of any."""
    return min(count, max(1, int(count * density)))


def nbytes(count: int, k: int) -> int:
    """Bytes of ``k`` of ``count`` entries in float32: values, and a bit for every entry or a number for every value
    that is kept, whichever is less."""
    return 4 * k + min(-(-count // 8), 4 * k)
