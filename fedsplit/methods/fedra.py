"""FedRA: every round each device gets a shallower model, made of as many randomly drawn layers as it can hold.

Idea. A device that cannot hold the model holds some of its layers. Which ones is drawn anew every round, so that over
the rounds every layer meets everybody's data; layers that it does not hold are left out of its forward pass.

Legend: L layers, l_k layers that fit on client k (its plan's memory), S_k the layers of client k in this round,
h hidden states, K_l the clients that hold layer l, p_k weights (1 / K with ``uniform``)::

    S_k = l_k of the L layers at random; a layer that nobody drew replaces one that several have
    client k:   h <- layer_l(h) for l in S_k, in order; for all others h <- h   (the residual stream alone)
                trains the factors of S_k, and the head
    server:     A_l <- sum_{k in K_l} p_k A_lk / sum_{k in K_l} p_k,  the same for B;  K_l empty: as it was

With l_k = L for all clients this is FedAvg. Memory, time, downloads and factors on the way fall with l_k / L, those of
activations too, which freezing layers alone would not do. Layers keep their numbers. What a device has fetched once it
keeps, and fetches what is missing only. All layers must be of one kind (a model whose layers attend in different ways
is refused), devices hold no part of a server's model (topology ``local``), and where all rooms together are fewer than
L, the layers left out keep their factors for that round.

A device measures the model that it holds; the whole model is measured where the server has data (``server_data``).
A head that is trained on shallow models and on deep ones is averaged over both: expect a bias.

Source. Su et al. 2024, "FedRA: A Random Allocation Strategy for Federated Tuning to Unleash the Power of Heterogeneous
Clients" (ECCV 2024, arXiv:2311.11227), code leondada/FedRA: weights are uniform there. Not taken from the code: its
repair of layers that nobody drew is commented out; its fallback forgets a factor B. Unverified: the paper's numbers.
"""

from __future__ import annotations

from typing import Literal

from fedsplit.method import stock
from fedsplit.method import weights as weight_rules
from fedsplit.method.card import method
from fedsplit.method.record import Method
from fedsplit.method.rooms import random_rooms


@method(paper="arXiv:2311.11227", title="FedRA")
def fedra(weights: Literal["uniform", "samples"] = "uniform") -> Method:
    """Devices hold and train randomly drawn layers, as many as fit, others every round; averaged layer by layer."""
    return Method(
        topology=stock.local,
        layers=random_rooms,
        weights=weight_rules.samples if weights == "samples" else weight_rules.uniform,
    )
