"""The order of rows that begins with the easiest: whole batches by their difficulty, a growing share of them.

Rows are put into batches once, by the run's seed. A batch is as difficult as its rows on average; the last one may have
fewer rows and stays where its difficulty puts it. A round takes the easiest batches one after another, over and over,
and goes on where the round before left off. All of it is a function of its arguments: a client that starts again sees
what it would have seen. J batches, n rows.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedsplit import seeds
from fedsplit.errors import DataError


def easiest(difficulty_n: NDArray[np.float64], share: float, batch: int, seed: int, client: str) -> NDArray[np.int64]:
    """Positions of the rows in the first ``ceil(share * J)`` batches, easiest batch first. Equally difficult ones keep
    the order in which they were put together.

    :raises DataError: there is no row.
    """
    if not len(difficulty_n):
        raise DataError(f"client {client} has no example to train on")
    drawn_n = seeds.generator(seed, client, "curriculum").permutation(len(difficulty_n))
    batches = [drawn_n[at : at + batch] for at in range(0, len(drawn_n), batch)]
    means_J = np.array([difficulty_n[rows].mean() for rows in batches])
    chosen = np.argsort(means_J, kind="stable")[: math.ceil(share * len(batches))]
    return np.concatenate([batches[one] for one in chosen]).astype(np.int64)


def steps_of(pool: NDArray[np.int64], first_step: int, steps: int, batch: int) -> NDArray[np.int64]:
    """(steps, batch) of ``pool``, which is gone through again and again; steps count from the start of the run."""
    places = np.arange(first_step * batch, (first_step + steps) * batch, dtype=np.int64) % len(pool)
    found: NDArray[np.int64] = pool[places].reshape(steps, batch)
    return found
