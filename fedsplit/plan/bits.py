"""Bytes of frozen weights in fewer bits than the run's numbers have, and what those bits cost in quality.

Matrices of layers alone are packed; vectors, embedding and head stay. On a device with torch, and on the server
(``split/fewbits.py``), of a matrix (M, N):

    16 bits: 2 M N        8 bits: M N + 4 M        4 bits: ⌈M N / 2⌉ + 4 ⌈M N / 64⌉

One matrix at a time is there again in the compute dtype, forwards and on the way back. Devices without torch have
blocks of 32 numbers (``plan.edge``). ``ERROR`` is the length of what rounding changes over that of the matrix, measured
with normally distributed weights (``fedsplit bench bits`` measures it in a model).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from fedsplit.config.run import RunFile
from fedsplit.plan import edge
from fedsplit.plan.model import Linear, ModelCard
from fedsplit.plan.work import DTYPE_BYTES, Work

BLOCK = 64
"""Weights that share a scale at 4 bits."""
ERROR = {0: 0.0, 16: 0.0002, 8: 0.008, 4: 0.092}
"""By bits; 0: those of the run."""


def widths(run: RunFile) -> tuple[int, ...]:
    """The bits that a plan may give the matrices of a client's layer, downwards: the run's, and ``plan.bits``."""
    own = 8 * DTYPE_BYTES[run.model.dtype]
    return (own, *sorted((width for width in run.plan.bits if width < own), reverse=True))


def server_bits(run: RunFile) -> int:
    """Of the matrices in the body."""
    return min(run.server.bits, 8 * DTYPE_BYTES[run.model.dtype])


def torch_bytes(card: ModelCard, width_bytes: int, bits: int) -> int:
    """Frozen weights of one layer in torch; ``width_bytes``: of a number of the compute dtype."""
    if not 0 < bits < 8 * width_bytes:
        return card.layer_params * width_bytes
    rest = card.layer_params - card.macs
    # GPT-2 stores its matrices on their side.
    sideways = card.family == "gpt2"
    return sum(_matrix_bytes(linear, bits, sideways=sideways) for linear in card.linears) + rest * width_bytes


def layer_bytes(work: Work, bits: int) -> int:
    """Frozen weights of one layer on the client, 0: in the run's bits."""
    if work.edge:
        return edge.layer_bytes(work, min(bits or work.edge_bits, work.edge_bits))
    return torch_bytes(work.card, work.width_bytes, bits) if bits else work.layer_bytes


def server_layer_bytes(work: Work) -> int:
    """Frozen weights of one layer on the server."""
    return torch_bytes(work.card, work.width_bytes, work.server_bits) if work.server_bits else work.layer_bytes


def weight_bytes(work: Work, layers: Iterable[int]) -> int:
    """Frozen weights of these layers on the client, and the one matrix that is unpacked at a time."""
    widths = [work.bits_of(layer) for layer in layers]
    total = sum(layer_bytes(work, bits) for bits in widths)
    return total + (unpacked_bytes(work) if any(widths) and not work.edge else 0)


def unpacked_bytes(work: Work) -> int:
    """The largest matrix of a layer in the compute dtype."""
    return max(linear.out * linear.inp for linear in work.card.linears) * work.width_bytes


def _matrix_bytes(linear: Linear, bits: int, *, sideways: bool) -> int:
    count = linear.out * linear.inp
    if bits == 4:
        return math.ceil(count / 2) + 4 * math.ceil(count / BLOCK)
    return count + 4 * (linear.inp if sideways else linear.out) if bits == 8 else 2 * count
