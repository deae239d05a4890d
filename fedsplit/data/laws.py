"""How one data set becomes several unlike ones: which row goes to which client.

Every law is a pure function of its arguments and a seed; it returns one sorted array of row numbers a client, disjoint.
K clients, n rows; ``keys`` holds one word a row (its label, its language, its author).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsplit import seeds
from fedsplit.errors import DataError

Parts = list[NDArray[np.int64]]
_DRAWS = 100
"""Draws of a random law before we say that it leaves somebody without rows."""


def iid(n: int, clients: int, seed: int) -> Parts:
    """Shuffled and dealt out: every client has the same mixture and, to one row, the same number of rows."""
    _enough(n, clients)
    shuffled = seeds.generator(seed, "iid").permutation(n)
    return [np.sort(shuffled[k::clients]) for k in range(clients)]


def quantity(n: int, clients: int, alpha: float, seed: int) -> Parts:
    """The same mixture, unequal amounts: shares drawn from a symmetric Dirichlet(alpha) over the clients."""
    _enough(n, clients)
    shuffled = seeds.generator(seed, "rows").permutation(n)
    for draw in range(_DRAWS):
        shares = seeds.generator(seed, "quantity", draw).dirichlet(np.full(clients, alpha))
        parts = np.split(shuffled, _bounds(shares, n))
        if min(map(len, parts)) > 0:
            return [np.sort(part) for part in parts]
    raise _empty("quantity", alpha, clients)


def dirichlet(keys: Sequence[str], clients: int, alpha: float, seed: int) -> Parts:
    """Each label's rows are shared out by a draw from Dirichlet(alpha): small alpha, few clients a label.

    Source: Hsu, Qi, Brown, arXiv:1909.06335, in the form of Li et al., arXiv:2102.02079.
    """
    _enough(len(keys), clients)
    rows = _rows_by_key(keys)
    for draw in range(_DRAWS):
        taken: list[list[NDArray[np.int64]]] = [[] for _ in range(clients)]
        for key, its_rows in rows.items():
            chance = seeds.generator(seed, "dirichlet", draw, key)
            shares = chance.dirichlet(np.full(clients, alpha))
            pieces = np.split(chance.permutation(its_rows), _bounds(shares, len(its_rows)))
            for k, piece in enumerate(pieces):
                taken[k].append(piece)
        if all(sum(map(len, pieces)) for pieces in taken):
            return [np.sort(np.concatenate(pieces)) for pieces in taken]
    raise _empty("dirichlet", alpha, clients)


def owned(keys: Sequence[str], clients: int, per_client: int, strangers: float, seed: int) -> Parts:
    """Every client owns ``per_client`` values; a share ``strangers`` of each value's rows goes to the others.

    A value with several owners is divided evenly among them. Values that nobody owns are left out.
    Source of the law without strangers: McMahan et al., arXiv:1602.05629.
    """
    rows = _rows_by_key(keys)
    values = [str(one) for one in seeds.generator(seed, "values").permutation(sorted(rows))]
    if per_client > len(values):
        raise DataError(f"{per_client} values a client were asked for; there are only {len(values)}")
    owners: dict[str, list[int]] = {}
    for k in range(clients):
        for i in range(per_client):
            owners.setdefault(values[(k * per_client + i) % len(values)], []).append(k)
    taken: list[list[NDArray[np.int64]]] = [[] for _ in range(clients)]
    for value, its_owners in owners.items():
        shuffled = seeds.generator(seed, "owned", value).permutation(rows[value])
        others = [k for k in range(clients) if k not in its_owners]
        away = round(len(shuffled) * strangers) if others else 0
        for group, part in ((others, shuffled[:away]), (its_owners, shuffled[away:])):
            for i, k in enumerate(group):
                taken[k].append(part[i :: len(group)])
    return [np.sort(np.concatenate(pieces)) for pieces in taken]


def grouped(keys: Sequence[str], clients: int) -> Parts:
    """Values are never divided: the largest goes to the client with the fewest rows, and so on."""
    rows = _rows_by_key(keys)
    if len(rows) < clients:
        raise DataError(f"{clients} clients were asked for; there are only {len(rows)} values to share out")
    taken: list[list[NDArray[np.int64]]] = [[] for _ in range(clients)]
    for _, its_rows in sorted(rows.items(), key=lambda item: (-len(item[1]), item[0])):
        poorest = min(range(clients), key=lambda k: (sum(map(len, taken[k])), k))
        taken[poorest].append(its_rows)
    return [np.sort(np.concatenate(pieces)) for pieces in taken]


def natural(keys: Sequence[str], clients: int) -> dict[str, NDArray[np.int64]]:
    """Every owner is a client; of more than ``clients`` owners the largest are kept (0: all)."""
    rows = _rows_by_key(keys)
    if clients > len(rows):
        raise DataError(f"{clients} clients were asked for; the rows have only {len(rows)} owners")
    largest = sorted(rows, key=lambda key: (-len(rows[key]), key))
    return {key: rows[key] for key in sorted(largest[: clients or len(rows)])}


def _rows_by_key(keys: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    found: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        found.setdefault(key, []).append(i)
    return {key: np.array(found[key], np.int64) for key in sorted(found)}


def _bounds(shares: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Where to cut n rows so that the pieces have these shares."""
    return np.round(np.cumsum(shares)[:-1] * n).astype(np.int64)


def _enough(n: int, clients: int) -> None:
    if n < clients:
        raise DataError(f"{n} rows are not enough for {clients} clients")


def _empty(law: str, alpha: float, clients: int) -> DataError:
    fix = "raise alpha, or ask for fewer clients"
    return DataError(f"{law} with alpha {alpha:g} leaves one of {clients} clients without rows; {fix}")
