"""Memory of a step on a device without torch, term by term: what ``fedsplit.edge`` holds, derived from its code.

    weights   = layers held · (matrices · bits + scales, vectors in float32)     mapped, and all touched in a step
    embedding = what is no row: positions, kinds, patches; rows are read from their file (``runner.Lookup``); and the
                tokenizer, 300 bytes a token
    head      = mapped like the layers at 8 bits or more; nothing where it is streamed (``part._streamed``)
    acts      = N · D · 4 a layer: inputs only (``part._through``); the front's times the micro-batches in flight
    recompute = N · 4 · (2.4 · kept + 2 · H · T) + a layer's matrices in float32 where they have fewer bits
    logits    = 4 · n · V · 4 + the head's matrix in float32 likewise; n: positions of one slice (``part._causal``)
    wire      = (crossings + 6) · N · D · 4: what travels, packed and unpacked, and gradients on their way

``recompute`` is the inside of the one graph that goes back through a layer: what the layer keeps (``ModelCard``,
without dropout), as much again of gradients, and the explicit attention's scores. It and ``logits`` are never needed
at once, and all sessions share one pool: the smaller one counts with ``LEFT``, the holes it leaves. 2.4, 6, 4 copies
of the logits and ``LEFT`` were measured on x86-64 Linux with onnxruntime 1.27 (``fedsplit bench edge`` measures again
and says what this predicts). Everything computes in float32, whatever travels. Arithmetic that takes numbers of layers
as integers or as arrays over cuts, so that the planner's two forms are one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsplit.plan.model import ModelCard
from fedsplit.plan.work import Work

FLOAT = 4
LOGITS_BYTES = 1 << 25
"""Of the logits of a language model that are held at once, several copies of them."""
HEAD_BYTES = 1 << 26
"""Of a language model's head in float32; a larger one stays in its file."""
SLAB_BYTES = 1 << 23
"""Of rows of such a head in float32, and of their logits, that are held at once."""
MATRIX_BYTES = {32: 4.0, 16: 2.0, 8: 1.125, 4: 0.65625}
"""Of one number of a matrix by its bits, with its block's scale (``split/export/bits.py``)."""
TOKEN_BYTES = 300
"""Of a loaded tokenizer, for each token (MiniLM's: 30,522 tokens, 9.1 MB)."""
KEPT, SCORES, COPIES, ENDS = 2.4, 2, 4, 6
LEFT = 0.3

Count = int | NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Held:
    """Layers of a cut, or of many: in front and behind, of these walked back; 1 where there is a head, crossings of the
    wire, micro-batches in flight, scalars that train."""

    front: Count
    tail: Count
    front_back: Count
    tail_back: Count
    head: Count
    crossings: Count
    waiting: Count
    trained: Count


def terms(work: Work, held: Held) -> dict[str, Any]:
    """Bytes by the names of ``Memory``'s fields."""
    card, hidden = work.card, FLOAT * work.peak_tokens * work.card.hidden
    inside, logits = layer_working(work), held.head * head_working(work)
    # Where no layer trains all are walked forward only.
    forward = np.where(held.front + held.tail > 0, inside // 4, 0)
    layer = np.where(held.front_back + held.tail_back > 0, inside, forward)
    larger = layer >= logits
    return {
        "weights": (held.front + held.tail) * layer_bytes(work),
        "embedding": tokenizer_bytes(card)
        + FLOAT * (card.embedding_params - (card.vocab * card.hidden if card.reads_tokens else 0)),
        "head": held.head * head_bytes(work),
        "adapters": work.state_bytes * held.trained,
        "acts_front": held.waiting * np.where(held.front_back > 0, held.front, 0) * hidden,
        "acts_tail": held.tail * hidden,
        "recompute": np.where(larger, layer, _left(layer)),
        "logits": np.where(larger, _left(logits), logits),
        "wire": (held.crossings + ENDS) * hidden,
        "twice": held.front_back + held.tail_back,
    }


def tokenizer_bytes(card: ModelCard) -> int:
    return TOKEN_BYTES * card.vocab if card.reads_tokens else 0


def layer_bytes(work: Work, bits: int = 0) -> int:
    """Frozen weights of one layer as the device maps them. ``bits``: fewer than the run's ``edge_bits``."""
    rest = work.card.layer_params - work.card.macs
    return round(work.card.macs * MATRIX_BYTES[bits or work.edge_bits] + rest * FLOAT)


def streams_head(work: Work) -> bool:
    """Whether a language model's head stays in its file."""
    return work.card.task == "causal-lm" and FLOAT * work.card.vocab * work.card.hidden > HEAD_BYTES


def head_bytes(work: Work) -> int:
    """The task head and the last norm as the device maps them; tied to the embedding it is mapped once more."""
    card = work.card
    if streams_head(work):
        return FLOAT * card.norm_params
    matrix = card.vocab * card.hidden if card.task == "causal-lm" else card.head_frozen
    rest = 0 if card.task == "causal-lm" else card.head_trained
    return round(matrix * MATRIX_BYTES[max(8, work.edge_bits)] + (rest + card.norm_params) * FLOAT)


def layer_working(work: Work) -> int:
    """Inside of the graph that goes back through a layer."""
    card = work.card
    unpacks = work.edge_bits < 32 or any(work.layer_bits)
    inside = KEPT * card.kept_elements(work.tokens, padded=work.padded, training=False)
    inside += SCORES * card.heads * work.tokens
    return round(FLOAT * (work.peak_tokens * inside + (card.macs if unpacks else 0)))


def head_working(work: Work) -> int:
    """Inside of the graph of the task head, forwards and back."""
    card = work.card
    if card.task != "causal-lm":
        return COPIES * FLOAT * work.rows * card.num_labels
    if streams_head(work):
        return 3 * SLAB_BYTES
    positions = min(work.peak_tokens, max(1, LOGITS_BYTES // (FLOAT * card.vocab)))
    matrix = card.vocab * card.hidden if work.edge_bits < 32 else 0
    return FLOAT * (COPIES * positions * card.vocab + matrix)


def _left(taken: Any) -> Any:
    return np.floor(LEFT * taken).astype(np.int64)
