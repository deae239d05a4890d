"""FedLFC: one adapter per family of languages, averaged inside the family only.

Idea. Languages of one family help each other, others get in the way. Which family a client belongs to is known from its
language, not learnt.

Legend: fam(k) family of client k, n_k its examples, the sums over arrivals of one family f::

    A_f <- sum_{k: fam(k) = f} p_k A_k        B_f likewise        p_k = n_k / sum of n over that family

A family without arrivals keeps its adapter. One family is FedAvg; a family of one client is training alone. A client
says its language when it joins (``fedsplit join --tag deu_Latn``, or ``tag`` of its section in the run file); without
one, or with an unknown one, it trains with the others of that kind. Someone new gets the family's adapter as it is, and
the first of a family starts from the first factors.

Source. Guo et al. 2024, "FedLFC: Towards Efficient Federated Multilingual Modeling with LoRA-based Language Family
Clustering" (Findings of NAACL 2024, doi:10.18653/v1/2024.findings-naacl.98). Its code was not obtainable; read in the
abstract and in a survey (arXiv:2505.13502). Unverified: the paper's table of families and its ranks.
"""

from __future__ import annotations

from typing import Literal

from fedsplit.method import stock
from fedsplit.method import weights as weight_rules
from fedsplit.method.card import method
from fedsplit.method.record import Method


@method(paper="doi:10.18653/v1/2024.findings-naacl.98", title="FedLFC")
def fedlfc(
    groups: Literal["families", "tags"] = "families", weights: Literal["samples", "uniform"] = "samples"
) -> Method:
    """One adapter per family of languages, averaged inside the family only.

    ``groups = "tags"``: one adapter for all clients with the same tag, whatever it says.
    """
    rule = weight_rules.samples if weights == "samples" else weight_rules.uniform
    return Method(weights=rule, groups=stock.by_family if groups == "families" else stock.by_tag)
