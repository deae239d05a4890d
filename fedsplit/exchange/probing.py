"""What is measured of layers and neurons over a ``Part`` that can look inside: sensitivity and Fisher information.

    s_l  = mean over rows of || h_l(e + d) - h_l(e) || / || h_l(e) ||    d: a random direction, || d || = radius || e ||
    F_mu = mean over rows of sum over theta in row mu of B of (d log p(y | x; theta) / d theta)^2     (empirical Fisher)

Legend: l layer, e embeddings of one row and h_l the output of a layer for it, mu neuron, M the rows of B. One row at a
time: the square of a mean gradient is not the mean of squared ones, and there is no padding. Source: FibecFed, Liu et
al. 2024 (arXiv:2410.00131); unverified: there d is the worst direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedsplit.data.batches import Batch
from fedsplit.errors import DataError, RemoteProtocolError
from fedsplit.exchange.part import Key, Part
from fedsplit.lora.adapter import Adapter, ModuleKey

Neurons = Mapping[ModuleKey, NDArray[np.float64]]
Resting = Mapping[ModuleKey, NDArray[np.bool_]]
"""Of each module the rows of B that do not learn, (M,)."""


@runtime_checkable
class Drawing(Protocol):
    """A part that knows what its factors were before training."""

    def drawn(self) -> Adapter:
        """The first factors of what is here, as everybody draws them from the run's seed."""
        ...


@runtime_checkable
class Probed(Drawing, Protocol):
    """A part that holds the whole model and can be looked into."""

    def neurons(self) -> Neurons:
        """Squared gradient of every row of B, (M,), as ``learn`` left it, alpha/r absorbed."""
        ...

    def rest(self, rows: Resting) -> None:
        """Until the next ``load`` these rows of B get no gradient and keep their bits."""
        ...

    def sensitivity(self, batch: Batch, radius: float, key: Key) -> dict[int, float]:
        """The relative move of every layer's output, for a batch of one row."""
        ...


def first_factors(part: Part) -> Adapter:
    """``drawn`` of any part that can. Raises RemoteProtocolError where it cannot: the server should not have asked."""
    if not isinstance(part, Drawing):
        raise RemoteProtocolError("the server counts on the first factors, which this device does not draw")
    return part.drawn()


def probed(part: Part) -> Probed:
    """:raises RemoteProtocolError: this part cannot be looked into; the server should not have asked."""
    if not isinstance(part, Probed) or part.split:
        raise RemoteProtocolError("the server asks for what only a device with torch and the whole model can measure")
    return part


def sensitivities(
    part: Probed, rows: Iterable[Batch], radius: float, key: Key, between: Callable[[], None] = lambda: None
) -> dict[int, float]:
    """s of every layer; ``rows`` are batches of one.

    :raises DataError: a number is not finite; says which row's.
    """
    total: dict[int, list[float]] = {}
    for index, row in enumerate(rows):
        for layer, value in part.sensitivity(row, radius, (*key, index, "sensitivity")).items():
            total.setdefault(layer, []).append(value)
            if not np.isfinite(value):
                raise DataError(f"the output of layer {layer} for row {index + 1} of those measured is not finite")
        between()
    return {layer: float(np.mean(values)) for layer, values in total.items()}


class NeuronFisher:
    """Adds up over rows; ``add`` is called while the gradients of one are there."""

    def __init__(self, part: Probed) -> None:
        self._part, self._sums, self._count = part, dict[ModuleKey, NDArray[np.float64]](), 0

    def add(self) -> None:
        """One more row."""
        for key, squares_M in self._part.neurons().items():
            self._sums[key] = self._sums[key] + squares_M if key in self._sums else squares_M
        self._count += 1

    def mean(self) -> dict[ModuleKey, NDArray[np.float64]]:
        """F of every neuron."""
        return {key: sum_M / max(1, self._count) for key, sum_M in self._sums.items()}


def resting(fisher: Neurons, share: float) -> dict[ModuleKey, NDArray[np.bool_]]:
    """All neurons of each layer but the ``share`` with the most information, rounded up; equal ones by their place, the
    modules of a layer in the order of their names."""
    found: dict[ModuleKey, NDArray[np.bool_]] = {}
    for layer in sorted({key.layer for key in fisher}):
        keys = sorted(key for key in fisher if key.layer == layer)
        all_S = np.concatenate([fisher[key] for key in keys])
        learns_S = np.zeros(len(all_S), np.bool_)
        learns_S[np.argsort(-all_S, kind="stable")[: int(np.ceil(share * len(all_S)))]] = True
        ends = np.cumsum([len(fisher[key]) for key in keys])[:-1]
        found |= {key: ~mine for key, mine in zip(keys, np.split(learns_S, ends), strict=True)}
    return found
