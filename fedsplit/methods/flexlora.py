"""FlexLoRA: add up the products, hand every client the best approximation of its own rank.

Idea. Devices have different ranks. The server forms the full-size average of the products and gives each device the
truncated SVD of it; devices with more memory learn more.

Legend: K clients that arrived, p_k their weights (sum 1), r_k their ranks, SVD_r the best approximation of rank r::

    D <- sum_k p_k B_k A_k        client k starts the next round from SVD_{r_k}(D):  B = U_r S_r,  A = V_r^T

alpha/r is part of B here, so that ranks need no correction. D is held as its factors (ranks add up, at most min(M, N)),
exactly; its SVD comes from QR of the thin factors and an SVD of the small core, for each rank once. All singular values
go into B. Where D is zero a client keeps the first rows of A with B = 0. Evaluation and export use D; what a client of
lower rank cannot hold is lost to *its* next round, every round. ``global_rank`` keeps D itself at that rank, by the
same SVD, for a smaller state and export; no client can hold more then (its further components begin anew, with B = 0).

Source. Bai et al. 2024, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources"
(arXiv:2402.11505), and the authors' code, which forms D densely. In that code equal ranks mean plain FedAvg; here they
do not. Unverified: the paper's tables.
"""

from __future__ import annotations

from fedsplit.method import merge
from fedsplit.method.card import method
from fedsplit.method.ranks import per_device
from fedsplit.method.record import Method


@method(paper="arXiv:2402.11505", title="FlexLoRA")
def flexlora(global_rank: int | None = None) -> Method:
    """Add up the products exactly and hand every client their best approximation at its own rank (SVD)."""
    rule = merge.exact if global_rank is None else merge.exact_up_to(global_rank)
    return Method(merge=rule, ranks=per_device(fit="svd"))
