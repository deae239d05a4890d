"""FedAvg on the LoRA factors, also called FedIT: the baseline of all others.

Idea. Every client starts from the same factors, trains both for some steps, and the server averages A and B apart,
weighted by the examples each client trained on.

Legend: K clients that arrived, n_k examples of client k, p_k = n_k / sum over arrivals (1 / K with ``uniform``)::

    A <- sum_k p_k A_k        B <- sum_k p_k B_k        effective weight = W + B A

alpha/r is part of B here. The mean of products is not the product of means: the result is off the ideal
``W + sum p_k B_k A_k`` by ``-sum p_k (B_k - B)(A_k - A)``, which is zero for one client or where a factor is common,
and second order in how far clients drift apart in one round. All clients need the same rank.

``server_opt`` treats (average - previous) as a gradient: ``momentum`` is FedAvgM, ``fedadam`` is FedAdam.

Source. McMahan et al. 2017 (arXiv:1602.05629); on LoRA factors Zhang et al. 2024, "Towards Building the Federated GPT"
(arXiv:2305.05644, FedIT); Hsu et al. 2019 (arXiv:1909.06335); Reddi et al. 2021 (arXiv:2003.00295). FLoRA's repository
has a branch called FedAvg that keeps the first client only; it is no reference.
"""

from __future__ import annotations

from typing import Literal

from fedsplit.method import merge
from fedsplit.method import weights as weight_rules
from fedsplit.method.card import method
from fedsplit.method.record import Method
from fedsplit.method.server_option import named


@method(paper="arXiv:1602.05629", title="FedAvg (FedIT)")
def fedavg(
    weights: Literal["samples", "uniform"] = "samples",
    server_opt: Literal["replace", "momentum", "fedadam"] = "replace",
    server_learning_rate: float | None = None,
) -> Method:
    """Average the factors A and B apart, weighted by the examples each client trained on.

    ``server_learning_rate`` belongs to ``momentum`` (default 1.0) and ``fedadam`` (default 0.01).
    """
    return Method(
        weights=weight_rules.samples if weights == "samples" else weight_rules.uniform,
        merge=merge.fedavg,
        server_opt=named(server_opt, server_learning_rate),
    )
