"""SplitFed: split learning in which the clients' parts are averaged as in federated learning.

Idea. The devices train in parallel against a server that holds the rest of the model. Versions differ in whose parts
are averaged.

Legend: K clients, theta_k factors of client k's part, theta_Sk those of the server's copy for client k, p_k weights by
examples, both stepped with the client's batches for one round::

    v1:  theta <- sum_k p_k theta_k      theta_S <- sum_k p_k theta_Sk      (K copies, begun equal every round)
    v2:  theta <- sum_k p_k theta_k      theta_S: one copy, a step after each client's step, in turn
    v3:  theta_k stays with client k     theta_S <- sum_k p_k theta_Sk

v1 is FedAvg on the unsplit model: the same gradients, the same averages, whatever the cuts and the optimiser. v2 needs
one copy of the server's state instead of K and depends on the order of the clients; with one client it equals v1 where
the optimiser has no memory (v2's lives for the whole run, v1's begins anew every round). Here clients take turns batch
by batch, in the order of their names (the "alternate mini-batch" of Gawali et al. 2020), and not epoch by epoch in a
random order: the last client of a round is not remembered best.

v3: factors of the layers on a device never travel, in either direction; hidden states and gradients do. A client that
comes late, or was away, begins with the first factors, or those that it left with. A layer that one client holds itself
and the server holds for another is averaged over the latter alone. A head on the device is averaged unless
``model.head = "local"``. There is no global model: clients measure, with their own. One copy at the server instead of K
is ``topology = { name = "split", server = "shared-sequential" }`` in ``[method.but]``.

Source. Thapa et al. 2022, "SplitFed: When Federated Learning Meets Split Learning" (arXiv:2004.12088; v1 SFLV1, v2
SFLV2); Gawali et al. 2020 (arXiv:2012.12591) for v3 and for turns by batch. The authors' code makes the server's
optimiser anew for every batch and averages uniformly (``weights = "uniform"``); neither is taken over. Unverified: v3
is taken from a digest of the paper, which leaves open whether the server averages K copies or has one.
"""

from __future__ import annotations

from typing import Literal

from fedsplit.method import stock
from fedsplit.method import weights as weight_rules
from fedsplit.method.card import method
from fedsplit.method.record import Method


@method(paper="arXiv:2004.12088", title="SplitFed")
def splitfed(version: Literal["v1", "v2", "v3"] = "v1", weights: Literal["samples", "uniform"] = "samples") -> Method:
    """Average the clients' parts every round; the server averages copies (v1) or trains one in turn (v2).

    v3: the server averages copies, the clients' parts are each one's own.
    """
    own = version == "v3"
    return Method(
        topology=stock.split("shared-sequential" if version == "v2" else "per-client"),
        layers=stock.at_server if own else stock.every,
        personal=stock.keep_layers if own else stock.nothing_personal,
        weights=weight_rules.samples if weights == "samples" else weight_rules.uniform,
    )
