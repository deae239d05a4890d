"""RoLoRA: train B in one round, A in the next; every round is exact and both factors learn.

Idea. As in FFA-LoRA one factor rests, so that averaging the other is a sum of products; but they take turns.

Legend: K clients that arrived, p_k their weights (sum 1); rounds t count from 0::

    even t: A rests, common to all    B <- sum_k p_k B_k
    odd t:  B rests, common to all    A <- sum_k p_k A_k

B goes first: with B = 0 there is no gradient for A, and a round would be lost (ports that count rounds from 0 and train
A at t = 0 lose it). alpha/r is part of B here. Both factors come down with every round: a client that was absent in the
last one would train beside a stale factor. Optimisers forget a factor's moments when it rests.

Source. Chen et al. 2024, "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA" (arXiv:2502.01755;
earlier arXiv:2409.02346). No official code was found. Unverified: whether both factors have one learning rate; the
paper averages uniformly (``weights = "uniform"``).
"""

from __future__ import annotations

from typing import Literal

from fedsplit.method import stock
from fedsplit.method import weights as weight_rules
from fedsplit.method.card import method
from fedsplit.method.record import Method


@method(paper="arXiv:2502.01755", title="RoLoRA")
def rolora(weights: Literal["samples", "uniform"] = "samples") -> Method:
    """Train and average B in one round and A in the next: exact in every round, and both factors learn."""
    rule = weight_rules.samples if weights == "samples" else weight_rules.uniform
    return Method(weights=rule, factors=stock.alternate)
