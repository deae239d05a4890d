"""FedSA-LoRA: train A and B, share A alone; every client's B is its own.

Idea. A learns what is common, B what is a client's. Only A travels and is averaged, so half of the factors goes each
way, and no product is averaged: what a client computes with is exactly its B times the common A.

Legend: K clients that arrived, p_k their weights (sum 1), B_k of client k, zero until it has trained::

    A <- sum_k p_k A_k        client k computes with W + B_k A

alpha/r is part of B here; with ``lora.rslora = true`` this is FedSA-rsLoRA. There is no global model: the server's B
stays zero, clients measure with their own B, and the run's numbers are means over clients. The paper keeps the head on
the client as well: ``model.head = "local"``. Of layers that the server holds for a client (topologies ``u``, ``v``,
``w``), B_k lies at the server, one a client, and is never merged.

A client that takes part for the first time begins with B_k = 0. One that was away begins with the B_k it left with.

Source. Guo et al. 2024, "Selective Aggregation for Low-Rank Adaptation in Federated Learning" (arXiv:2410.01463);
code Pengxin-Guo/FedSA-LoRA at fc276b5. As read, its standalone mode lets all clients train one B in turn; here each has
its own. Left out: FedSA-VeRA.
"""

from __future__ import annotations

from typing import Literal

from fedsplit.method import stock
from fedsplit.method import weights as weight_rules
from fedsplit.method.card import method
from fedsplit.method.record import Method


@method(paper="arXiv:2410.01463", title="FedSA-LoRA")
def fedsa_lora(weights: Literal["samples", "uniform"] = "samples") -> Method:
    """Train A and B, average A alone; every client keeps its own B, which never leaves it."""
    rule = weight_rules.samples if weights == "samples" else weight_rules.uniform
    return Method(weights=rule, factors=stock.share_A, personal=stock.keep_B)
