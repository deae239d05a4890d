"""FLoRA: stack the factors, fold the product into the base, start every round from new ones.

Idea. Side by side, the clients' factors are the exact weighted sum of their products, for any mix of ranks. It goes
into the base weight, and the next round starts from a new random A and B = 0.

Legend: K clients that arrived, p_k their weights (sum 1), r_k their ranks::

    L = [p_1 B_1 ... p_K B_K]    R = [A_1; ...; A_K]    W <- W + L R    then A random, B = 0, for all

alpha/r is part of B here; p_k multiplies one of the two. ``L R`` is a fold: it stays beside the base as factors, in
float32, so that a quantised or bfloat16 base loses nothing; devices get the folds that they have not. Beyond min(M, N)
components it is compressed, without loss. A new A in every round: the same one would confine all that is learnt to one
row space. With few local steps A hardly moves.

Source. Wang et al. 2024, "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations"
(arXiv:2409.05976), and the authors' code. Every device gets the others' factors, stacked, as in the paper: their
directions can be read off. Unverified: the paper's tables. Not here: local ranks by AdaLoRA.
"""

from __future__ import annotations

from fedsplit.method import merge, stock
from fedsplit.method.card import method
from fedsplit.method.ranks import per_device
from fedsplit.method.record import Method


@method(paper="arXiv:2409.05976", title="FLoRA")
def flora() -> Method:
    """Stack the factors, fold their exact sum into the base, start every round from new ones; any mix of ranks."""
    return Method(merge=merge.fold_all, ranks=per_device(fit="slice"), start=stock.redrawn)
