"""FFA-LoRA: freeze A at its first draw, train and average B alone.

Idea. One random A, the same for all clients, rests for the whole run. Averaging is then a sum of products, hence exact,
and only half of the factors comes up.

Legend: K clients that arrived, p_k their weights (sum 1), A_0 the first draw (not zero), B = 0 at first::

    A_k = A_0 for all k        B <- sum_k p_k B_k        W + B A_0 = W + sum_k p_k B_k A_0

alpha/r is part of B here. The row space of all that is ever learnt is that of A_0. Learning rates that suit it are
about ten times those of plain LoRA. An embedding's A is zero at first (peft): such a target is refused.

Source. Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning" (arXiv:2403.12313). No official code
was found. Unverified: the paper's numbers; independent runs disagree on whether it beats FedIT without noise. A comes
down with every round, since any device may be new; the paper sends it once.
"""

from __future__ import annotations

from typing import Literal

from fedsplit.method import stock
from fedsplit.method import weights as weight_rules
from fedsplit.method.card import method
from fedsplit.method.record import Method


@method(paper="arXiv:2403.12313", title="FFA-LoRA")
def ffa_lora(weights: Literal["samples", "uniform"] = "samples") -> Method:
    """Freeze A at its first draw, train and average B alone: exact, and half of the factors comes up."""
    rule = weight_rules.samples if weights == "samples" else weight_rules.uniform
    return Method(weights=rule, factors=stock.only_B)
