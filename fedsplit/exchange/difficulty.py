"""How difficult each row is for the model as it is: the trace of its empirical diagonal Fisher information.

    f(x) = sum over trained theta of (d log p(y | x; theta) / d theta)^2        y: the row's own label, or its tokens

One row at a time, since the square of a mean gradient is not the mean of squared ones. With B = 0 the gradient of A is
zero and only B counts. The numbers stay on the device. Source: FibecFed, Liu et al. 2024 (arXiv:2410.00131).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from fedsplit.data.batches import Batch
from fedsplit.errors import DataError
from fedsplit.exchange.part import Key, Part


def difficulties(
    part: Part,
    rows: Iterable[Batch],
    key: Key,
    between: Callable[[], None] = lambda: None,
    each: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """f of every row; ``rows`` are batches of one. Nothing is stepped. ``each`` is called while the gradients of a row
    are there, ``between`` after each row.

    Dropout's masks, where there are any, come from ``key``.
    :raises DataError: a row's gradient is not finite; says which row.
    """
    found = []
    for index, row in enumerate(rows):
        part.learn(row, 1, (*key, index, "difficulty"))  # the loss summed over its tokens: -log p(y | x)
        found.append(math.fsum(part.squares()))
        each()
        part.drop()
        if not math.isfinite(found[-1]):
            raise DataError(f"the gradient of row {index + 1} of those to train on is not finite")
        between()
    return np.array(found)
