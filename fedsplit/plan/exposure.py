"""What the operator of the server can learn from what a plan sends, in plain words.

Sources: token read-back from embeddings by nearest neighbour follows from the shape of the look-up; inversion of
split activations: Pasquini et al. 2021 (arXiv 2012.02670), for language models Chen et al. 2024 (BiSR, arXiv
2409.00960); labels from the last layer's gradients: Zhao et al. 2020 (iDLG, arXiv 2001.02610); inputs from updates:
Zhu et al. 2019 (arXiv 1906.08935).
"""

from __future__ import annotations

from fedsplit.plan.model import ModelCard
from fedsplit.plan.types import Cut, Topology

SHALLOW = 0.25
"""Share of the layers below which a front counts as shallow."""
FEW_CLASSES = 100


def exposure(card: ModelCard, topology: Topology, cut: Cut, *, trains_head: bool = True) -> str:
    """Two or three sentences for the device's owner."""
    if topology is Topology.LOCAL:
        return (
            "Once a round the operator gets this device's adapter, nothing per example. "
            "An adapter can give away fragments of a small data set."
        )
    sees = "pixels" if not card.reads_tokens else "tokens"
    sentences = [_input(cut, card.num_layers, sees), _labels(card, topology, trains_head)]
    return " ".join([*sentences, "It also gets this device's adapter once a round."])


def _input(cut: Cut, num_layers: int, sees: str) -> str:
    if cut.c1 == 0 and sees == "tokens":
        return (
            "The operator can read the text: each vector it gets is an embedding, and the nearest one names the token."
        )
    if cut.c1 == 0:
        return "The operator can see the images: each vector it gets is a linear map of a patch."
    layers = f"{cut.c1} of {num_layers} layers" if cut.c1 > 1 else f"1 of {num_layers} layers"
    if cut.c1 <= SHALLOW * num_layers:
        return f"The operator sees activations after {layers}: a determined one can reconstruct most {sees} from them."
    return (
        f"The operator sees activations after {layers}: most {sees} can still be read back from them with some effort."
    )


def _labels(card: ModelCard, topology: Topology, trains_head: bool) -> str:
    if topology is Topology.V:
        return "It sees the labels."
    if card.task == "causal-lm":
        return "The next tokens stay here, but they follow from the text wherever that can be reconstructed."
    if card.task == "regression" or card.num_labels > FEW_CLASSES:
        return "Labels stay here; the gradients it gets depend on them."
    head = " and the updates of the shared head" if trains_head else ""
    return f"Labels stay here, but with {card.num_labels} classes the gradients{head} can give them away."
