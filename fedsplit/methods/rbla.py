"""RBLA: average each rank component over the clients that have it, instead of averaging in zeros.

Idea. Devices have different ranks. Zero-padding the short factors before averaging shrinks the components that few
clients have; RBLA leaves a client out of the mean of those components that it does not hold.

Legend: K clients that arrived, p_k their weights (sum 1), r_k their ranks, O_i = clients with r_k > i, r = max_k r_k::

    A[i, :] <- sum_{k in O_i} p_k A_k[i, :] / sum_{k in O_i} p_k        for i < r, and the columns of B likewise
    client k starts the next round from the first r_k components

alpha/r is part of B here. A component that nobody in this round holds keeps what it was (the paper's code gives 0 or
NaN, which would lose it), so that the tail survives rounds without large devices. Where a device has more components
than the global factors, new ones get random rows of A and B = 0, since a component with both zero never learns. With
equal ranks this is FedAvg on the factors. Not exact: components far up are averaged over few clients.

Source. Chen et al. 2024, "RBLA: Rank-Based-LoRA-Aggregation for Fine-tuning Heterogeneous Models in FLaaS"
(arXiv:2408.08699), and the authors' framework, which marks absence with NaN; here absence is a mask, and an update with
a NaN is left out and named. Unverified: the paper's numbers, which are of small image models.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedsplit.lora.lowrank import LowRank
from fedsplit.method import Memory, Merged, Method, mean, merge_rule, method, per_device


@merge_rule(secure_sum=True)
def by_component(parts: Sequence[LowRank], p_K: Sequence[float], memory: Memory) -> Merged:
    """The mean of each component over its owners, then the global components that nobody in this round owns."""
    ranks = sorted({part.rank for part in parts})
    bands = []
    for low, high in zip([0, *ranks], ranks, strict=False):
        owners = [(part, p) for part, p in zip(parts, p_K, strict=True) if part.rank >= high]
        share = sum(p for _, p in owners)
        bands.append(mean([_band(part, low, high) for part, _ in owners], [p / share for _, p in owners]))
    if memory.previous is not None and memory.previous.rank > ranks[-1]:
        bands.append(_band(memory.previous, ranks[-1], memory.previous.rank))
    return Merged(sum(bands[1:], start=bands[0]))


def _band(part: LowRank, low: int, high: int) -> LowRank:
    return LowRank(part.B_MR[:, low:high], part.A_RN[low:high, :])


@method(paper="arXiv:2408.08699", title="RBLA")
def rbla() -> Method:
    """Average each rank component over the clients that have it; any mix of ranks, linear cost at the server."""
    return Method(merge=by_component, ranks=per_device(fit="slice"))
