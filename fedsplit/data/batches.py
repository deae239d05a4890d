"""Which examples a step uses, and how they lie in one array.

The order is a pure function of (seed, client, step): every epoch is a fresh permutation, batches run on across epochs
and rounds without gap or repetition, and a client that starts again in the middle sees exactly what it would have seen.
B batch, T tokens (the longest of the batch), C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsplit import seeds
from fedsplit.data.examples import IGNORED, Example
from fedsplit.data.images import Preparation
from fedsplit.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples side by side. Row b holds its tokens at ``[starts[b], starts[b] + lengths[b])`` of ``width``.

    ``ids_BT`` int64, or None for images; ``types_BT`` int64 segment ids, where the model uses them; ``labels`` int64
    (B, T) for language models with -100 where there is no loss, (B,) int64 classes or (B,) float32 numbers;
    ``label_tokens`` counts the losses; ``pixels_BCHW`` float32.
    """

    ids_BT: NDArray[np.int64] | None
    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    width: int
    labels: NDArray[Any]
    label_tokens: int
    types_BT: NDArray[np.int64] | None = None
    pixels_BCHW: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.lengths)


def order(n: int, seed: int, client: str, first_step: int, steps: int, batch: int) -> NDArray[np.int64]:
    """(steps, batch) positions of examples in [0, n) for the steps from ``first_step`` on.

    Without replacement within an epoch; ``first_step`` counts from the start of the run, so rounds continue each other:
    ``order(…, 0, 5, b)`` is ``order(…, 0, 3, b)`` followed by ``order(…, 3, 2, b)``.

    :raises DataError: if there is no example.
    """
    if n < 1:
        raise DataError(f"client {client} has no example to train on")
    positions = np.arange(first_step * batch, (first_step + steps) * batch, dtype=np.int64)
    epochs, places = positions // n, positions % n
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
        shuffled = seeds.generator(seed, client, "order", int(epoch)).permutation(n)
        here = epochs == epoch
        indices[here] = shuffled[places[here]]
    return indices.reshape(steps, batch)


def split(n: int, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of (train, eval) examples, each in the order of the file; disjoint, together all of [0, n).

    ``fraction`` of them, rounded, are held out, at least one if there are two and it is not 0, and never all.
    """
    held_out = 0 if fraction <= 0 or n < 2 else min(n - 1, max(1, round(n * fraction)))
    shuffled = seeds.generator(seed, "split").permutation(n)
    return np.sort(shuffled[held_out:]), np.sort(shuffled[:held_out])


def collate(
    examples: Sequence[Example],
    pad_id: int = 0,
    side: Literal["left", "right"] = "right",
    preparation: Preparation | None = None,
    image_tokens: int = 0,
) -> Batch:
    """Examples as one batch, filled up with ``pad_id`` at ``side`` to the longest of them.

    Image examples need the model's ``preparation``; each counts as ``image_tokens`` (patches and the class token).
    """
    assert examples, "a batch needs an example"
    if examples[0].pixels is not None:
        return _image_batch(examples, preparation, image_tokens)
    lengths = tuple(len(one.ids) for one in examples)
    width = max(lengths)
    starts = tuple(width - length if side == "left" else 0 for length in lengths)
    ids_BT = _filled([one.ids for one in examples], starts, width, pad_id)
    has_types = examples[0].types is not None
    labels, label_tokens = _labels(examples, starts, width)
    return Batch(
        ids_BT=ids_BT,
        lengths=lengths,
        starts=starts,
        width=width,
        labels=labels,
        label_tokens=label_tokens,
        types_BT=_filled([one.types or () for one in examples], starts, width, 0) if has_types else None,
    )


def _filled(rows: Sequence[Sequence[int]], starts: Sequence[int], width: int, fill: int) -> NDArray[np.int64]:
    out = np.full((len(rows), width), fill, np.int64)
    for b, (row, start) in enumerate(zip(rows, starts, strict=True)):
        out[b, start : start + len(row)] = row
    return out


def _labels(examples: Sequence[Example], starts: Sequence[int], width: int) -> tuple[NDArray[Any], int]:
    rows = [one.labels for one in examples if isinstance(one.labels, tuple)]
    if rows:
        labels_BT = _filled(rows, starts, width, IGNORED)
        return labels_BT, int((labels_BT != IGNORED).sum())
    kind = np.float32 if isinstance(examples[0].labels, float) else np.int64
    return np.array([one.labels for one in examples], kind), len(examples)


def _image_batch(examples: Sequence[Example], preparation: Preparation | None, tokens: int) -> Batch:
    assert preparation is not None, "image examples need the model's preparation"
    pixels = np.stack([one.pixels for one in examples if one.pixels is not None])
    none = (0,) * len(examples)
    labels, count = _labels(examples, none, 0)
    return Batch(
        ids_BT=None,
        lengths=(tokens,) * len(examples),
        starts=none,
        width=tokens,
        labels=labels,
        label_tokens=count,
        pixels_BCHW=preparation.normalise(pixels),
    )
