"""What a body keeps between a forward and its backward, within a byte budget: the oldest first attempt goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsplit.split.rows import Rows

Key = tuple[str, int, int, int, int]
"""(client, round, era, step, micro)."""


@dataclass(frozen=True)
class Kept:
    """Input (a leaf) and output of one forward with its graph; ``nbytes`` is what the graph holds on to."""

    x_BTD: Tensor
    y_BTD: Tensor
    rows: Rows
    attempt: int
    nbytes: int


class Stash:
    """Kept forwards by key. ``nbytes`` never exceeds ``budget_bytes`` unless a single entry does."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.nbytes = 0
        self.evicted = 0
        self._kept: OrderedDict[Key, Kept] = OrderedDict()

    def put(self, key: Key, kept: Kept) -> None:
        self.pop(key)
        self._kept[key] = kept
        self.nbytes += kept.nbytes
        while self.nbytes > self.budget_bytes and len(self._kept) > 1:
            self.pop(self._victim())
            self.evicted += 1

    def _victim(self) -> Key:
        """The oldest first attempt; where all are repeats, the newest: one that was evicted before now stays.

        Otherwise clients that share too little room could evict each other forever.
        """
        return next((key for key, kept in self._kept.items() if not kept.attempt), next(reversed(self._kept)))

    def pop(self, key: Key) -> Kept | None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.nbytes -= kept.nbytes
        return kept

    def drop(self, matches: Callable[[Key], bool]) -> None:
        """Forget every entry whose key matches (a client left, a step was aborted, a round restarted)."""
        for key in [key for key in self._kept if matches(key)]:
            self.pop(key)

    def __len__(self) -> int:
        return len(self._kept)


class GraphMeter:
    """Context manager that counts the bytes autograd saves inside it, without the ``frozen`` tensors it only refers to.

    Returning ``detach()`` from the pack hook keeps the storage shared but makes no reference cycle with the node that
    saved its own output.
    """

    def __init__(self, frozen: set[int]) -> None:
        self.nbytes = 0
        self._seen = set(frozen)
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved)

    def _pack(self, saved: Tensor) -> Tensor:
        address = saved.untyped_storage().data_ptr()
        if address not in self._seen:
            self._seen.add(address)
            self.nbytes += saved.untyped_storage().nbytes()
        return saved.detach()

    def __enter__(self) -> GraphMeter:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
