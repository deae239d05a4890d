"""From K factors of one module to one: the stock merge rules and the two sums they are built from.

Legend: K clients, p_K their weights (sum 1). ``parts`` are in float64; the result is rounded once, by the round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedsplit.errors import ConfigError, IncompatibleParts, Problem
from fedsplit.lora.lowrank import Array, LowRank, stack
from fedsplit.method.parts import Merge, MergeFunction
from fedsplit.method.values import Memory, Merged


def mean(parts: Sequence[LowRank], p_K: Sequence[float]) -> LowRank:
    """``(sum p_k B_k, sum p_k A_k)``: factors averaged apart. Raises IncompatibleParts where ranks differ."""
    ranks = sorted({part.rank for part in parts})
    if len(ranks) > 1:
        raise IncompatibleParts(
            f"clients sent ranks {', '.join(map(str, ranks))} for one module: averaging A and B apart needs one rank; "
            "use ranks = uniform, or merge = exact"
        )
    return LowRank(
        weighted_sum([part.B_MR for part in parts], p_K),
        weighted_sum([part.A_RN for part in parts], p_K),
    )


def total(parts: Sequence[LowRank], p_K: Sequence[float]) -> LowRank:
    """``sum p_k B_k A_k``, the ideal aggregate, as factors side by side: exact for any mix of ranks.

    A weight multiplies B only. Beyond min(M, N) components it is compressed, which loses nothing but rounding.
    """
    whole = stack([part if p == 1.0 else part * p for part, p in zip(parts, p_K, strict=True)])
    return whole.compress()


def weighted_sum(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    """``sum w_k x_k`` in the given order, so that equal input gives equal bits. One array of weight 1 comes back."""
    if len(arrays) == 1 and weights[0] == 1.0:
        return arrays[0]
    result = arrays[0] * float(weights[0])
    for array, weight in zip(arrays[1:], weights[1:], strict=True):
        result = result + array * float(weight)
    return result


def merge_rule(
    *,
    exact: bool = False,
    equal_ranks: bool = False,
    secure_sum: bool = False,
    mutates_base: bool = False,
    empties: bool = False,
) -> Callable[[MergeFunction], Merge]:
    """Decorate a merge function with what is true of it (see ``Merge``)."""

    def declare(function: MergeFunction) -> Merge:
        name = getattr(function, "__name__", "merge")
        return Merge(name, function, exact, equal_ranks, secure_sum, mutates_base, empties)

    return declare


@merge_rule(equal_ranks=True, secure_sum=True)
def fedavg(parts: Sequence[LowRank], p_K: Sequence[float], memory: Memory) -> Merged:
    """Average A and B apart. Off the ideal by ``sum p_k (B_k - B)(A_k - A)``, zero where one factor is common."""
    return Merged(mean(parts, p_K))


@merge_rule(exact=True, mutates_base=True, empties=True)
def fold_all(parts: Sequence[LowRank], p_K: Sequence[float], memory: Memory) -> Merged:
    """The ideal aggregate goes into the base, the adapter begins again from nothing (see ``stock.redrawn``)."""
    whole = total(parts, p_K)
    return Merged(LowRank.zeros(whole, parts[0].rank), fold=whole)


@merge_rule(exact=True)
def exact(parts: Sequence[LowRank], p_K: Sequence[float], memory: Memory) -> Merged:
    """The ideal aggregate itself; the ranks part cuts it to what each client can hold."""
    return Merged(total(parts, p_K))


def exact_up_to(rank: int) -> Merge:
    """The ideal aggregate, or where its rank is above ``rank`` the nearest of that rank (Frobenius). Raises ConfigError
    on a rank below 1."""
    if rank < 1:
        raise ConfigError([Problem("merge.exact_up_to.rank", str(rank), "1 or more")])

    def nearest(parts: Sequence[LowRank], p_K: Sequence[float], memory: Memory) -> Merged:
        return Merged(total(parts, p_K).truncate(rank))

    return Merge(f"exact_up_to({rank})", nearest, mutates_base=False)
