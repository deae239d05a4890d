"""FibecFed: easy rows first; share the layers that noise moves most, keep the others, and train their best neurons.

Idea. Three uses of what the initial model shows on a client's own rows. Rows are taken in the order of their Fisher
information, easiest first. Layers whose output moves most when the embeddings are disturbed are averaged over all
clients; the other layers are each client's own. Of those only neurons with much Fisher information learn.

Legend: k client, x row, j batch, l layer, mu row of a factor B, e embeddings, d disturbance, p_k by rows, t round::

    F(theta; x) = (d log p(y | x; theta) / d theta)^2                  empirical: y is the row's label, or its tokens
    f_j    = mean over x in j of sum_theta F(theta; x)                 batches in ascending order, at the first model
    s_kl   = mean_x || h_l(e + d) - h_l(e) || / || h_l(e) ||           reported once, before the first round
    GAL    = the N of the L layers with the largest sum_k p_k s_kl     N = ceil(L ``layers``)
    F_k    <- momentum F_k + (1 - momentum) F'_k                       per row of B, on ``rows`` rows a round
    client k: GAL comes down; the first g(t) J_k batches; of other layers all of A, the top ``neurons`` rows of B
    server:   theta_l <- sum_k p_k theta_kl for l in GAL               nothing else comes up

alpha/r is part of B here. With B = 0 only B's gradient counts at first. Layers that stay begin as everybody draws them
from the run's seed, so they never travel at all; there is no global model, and clients measure with their own layers.
GAL all, ``neurons`` 1, ``first`` 1: FedAvg with batches in a fixed order. Devices hold the whole model (``local``).

Source. Liu et al. 2024, "Fisher Information-based Efficient Curriculum Federated Learning with Large Language Models"
(EMNLP 2024, arXiv:2410.00131); no code was found. Unverified: all constants; there d is the worst direction, and N and
the share of neurons follow from a spectrum, here both are options.
"""

from __future__ import annotations

from typing import Literal

from fedsplit.method import stock
from fedsplit.method import weights as weight_rules
from fedsplit.method.card import method
from fedsplit.method.chosen import top_scores
from fedsplit.method.record import Method


@method(paper="arXiv:2410.00131", title="FibecFed")
def fibecfed(
    layers: float = 0.5,
    neurons: float = 0.5,
    momentum: float = 0.9,
    radius: float = 0.05,
    rows: int = 32,
    first: float = 0.3,
    full: float = 0.5,
    pace: Literal["linear", "sqrt", "square"] = "linear",
    weights: Literal["samples", "uniform"] = "samples",
) -> Method:
    """Easiest rows first; the layers most sensitive to noise are averaged, the others are each client's own.

    ``layers``, ``neurons``: the share that is averaged, that learns in the others. ``first``, ``full``, ``pace``: of
    the curriculum. ``rows``, ``radius``, ``momentum``: of what is measured.
    """
    return Method(
        topology=stock.local,
        layers=top_scores(share=layers),
        probe=stock.fisher_and_sensitivity(radius, rows),
        local=stock.curriculum(first, full, pace),
        mask=stock.neurons(neurons, momentum, rows),
        personal=stock.keep_layers,
        weights=weight_rules.samples if weights == "samples" else weight_rules.uniform,
    )
