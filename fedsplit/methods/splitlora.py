"""SplitLoRA: devices run the first blocks, the server the rest; one server copy learns from everybody.

Idea. SplitFed for language models with LoRA: the base is frozen on both sides, so a device holds, trains and sends the
factors of its few blocks only, and the server's factors never travel.

Legend: K clients, theta_k the factors of client k's blocks, theta_S the server's, h_k hidden states at the cut, l_k the
loss of client k's batch, I steps between two averages (``train.steps``), p_k by rows since the last one::

    together:  one step of theta_S on all K batches, loss = sum over label tokens / all label tokens
    in turn:   one step of theta_S after each client's batch, client after client
    both:      theta_k <- step on d l_k / d theta_k (its own mean), gradient of h_k comes back
    every I:   theta_k <- sum_k p_k theta_k; theta_S is one already

``server`` chooses: the paper concatenates all activations (``together``), its code visits the clients one after the
other (``in-turn``, the same as SplitFed v2). The optimiser of theta_S lives for the whole run; the clients' begins anew
every round. One client, any cut: the numbers of the unsplit model.

The paper sends labels to the server (topology ``v``, which ``policy.shares_labels`` permits); without that the tail
with the head stays on the device (``u``), which is this method with one more cut.

Source. Lin et al. 2024, "SplitLoRA: A Split Parameter-Efficient Fine-Tuning Framework for LLMs" (arXiv:2407.00952),
code FDU-INC/Split_LoRA. Not taken from the code: its counter averages four snapshots of three clients, taken before the
last update; weights there are uniform. Unverified: whether the paper rescales a client's slice of the gradient by K;
here each client steps on its own mean loss.
"""

from __future__ import annotations

from typing import Literal

from fedsplit.method import stock
from fedsplit.method import weights as weight_rules
from fedsplit.method.card import method
from fedsplit.method.record import Method


@method(paper="arXiv:2407.00952", title="SplitLoRA")
def splitlora(
    server: Literal["together", "in-turn"] = "together", weights: Literal["samples", "uniform"] = "samples"
) -> Method:
    """Devices train the first blocks and average them every round; one server copy trains the rest for all."""
    return Method(
        topology=stock.split("shared-concat" if server == "together" else "shared-sequential"),
        weights=weight_rules.samples if weights == "samples" else weight_rules.uniform,
    )
