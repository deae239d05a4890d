"""What a checkpoint of the server holds: the global state, and the optimiser of a shared body where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from fedsplit.method import stored
from fedsplit.method.record import GlobalState
from fedsplit.state.checkpoints import Checkpoint

OPTIMIZER = "optimizer/"
"""Prefix of the optimiser's arrays."""

Arrays = dict[str, NDArray[Any]]


def pack(state: GlobalState, optimizer: Mapping[str, NDArray[Any]]) -> tuple[Arrays, dict[str, int]]:
    """Arrays and counters; the inverse are ``state_of`` and ``optimizer_of``."""
    arrays, counters = stored.pack(state)
    return arrays | {f"{OPTIMIZER}{name}": array for name, array in optimizer.items()}, counters


def state_of(kept: Checkpoint) -> GlobalState:
    arrays = {name: array for name, array in kept.arrays.items() if not name.startswith(OPTIMIZER)}
    return stored.unpack(arrays, kept.meta["state"])


def optimizer_of(kept: Checkpoint) -> Arrays:
    """Its state by ``tensor name/slot``; empty where every client has a copy of its own."""
    return {name.removeprefix(OPTIMIZER): array for name, array in kept.arrays.items() if name.startswith(OPTIMIZER)}
