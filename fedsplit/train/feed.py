"""A client's rows as the micro-batches of each step: a function of (seed, client, step), the same after a restart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from fedsplit.config.run import RunFile
from fedsplit.data.batches import Batch as Arrays
from fedsplit.data.batches import collate, order
from fedsplit.data.dataset import Dataset, open_dataset
from fedsplit.data.examples import Example
from fedsplit.data.images import preparation
from fedsplit.data.tokenizer import Encode
from fedsplit.split.base import Base
from fedsplit.split.rows import Rows
from fedsplit.train.batch import Batch
from fedsplit.train.tokenizer import load_tokenizer


class Feed:
    """``train`` yields each step's micro-batches, ``test`` the held-out rows. Labels live on ``device``."""

    def __init__(self, dataset: Dataset, run: RunFile, base: Base, encode: Encode | None, client: str) -> None:
        self.dataset = dataset
        self._run, self._client, self._encode = run, client, encode
        self._image_tokens = _image_tokens(base) if encode is None else 0
        self._preparation = preparation(base.folder) if encode is None else None

    @staticmethod
    def open(path: str | Path, run: RunFile, base: Base, client: str, fraction: float | None = None) -> Feed:
        """Read and tokenise ``path`` with the base model's tokenizer (or its image settings).

        :raises DataError: the file is wrong, named with its line.
        """
        images = run.model.task == "image-classification"
        encode = None if images else load_tokenizer(base.folder)
        settings = preparation(base.folder) if images else None
        dataset = open_dataset(path, run, encode, preparation=settings, fraction=fraction)
        return Feed(dataset, run, base, encode, client)

    def train(self, first_step: int, steps: int) -> Iterator[list[Batch]]:
        """The micro-batches of the steps from ``first_step`` (counted from the start of the run) on."""
        train, examples = self._run.train, self.dataset.train
        for chosen in order(len(examples), self._run.run.seed, self._client, first_step, steps, train.batch):
            rows = examples.take(chosen)
            size = train.batch // train.micro_batches
            yield [self._batch(rows[at : at + size]) for at in range(0, train.batch, size)]

    def test(self) -> Iterator[Batch]:
        """The held-out rows in order, ``evaluate.batch`` at a time."""
        held_out, size = self.dataset.held_out, self._run.evaluate.batch
        for at in range(0, len(held_out), size):
            yield self._batch(held_out.take(range(at, min(at + size, len(held_out)))))

    def _batch(self, rows: Sequence[Example]) -> Batch:
        pad, side = (self._encode.pad_id, self._encode.side) if self._encode else (0, "right")
        return as_torch(collate(rows, pad, side, self._preparation), self._image_tokens)


def as_torch(arrays: Arrays, image_tokens: int = 0) -> Batch:
    """NumPy arrays of a batch as tensors; an image counts as ``image_tokens`` tokens (patches and the class token)."""
    labels = torch.from_numpy(arrays.labels)
    if arrays.pixels_BCHW is not None:
        return Batch(Rows.images(torch.from_numpy(arrays.pixels_BCHW), image_tokens), labels, arrays.label_tokens)
    assert arrays.ids_BT is not None
    types = None if arrays.types_BT is None else torch.from_numpy(arrays.types_BT)
    rows = Rows(torch.from_numpy(arrays.ids_BT), arrays.lengths, arrays.starts, arrays.width, types_BT=types)
    return Batch(rows, labels, arrays.label_tokens)


def _image_tokens(base: Base) -> int:
    side = int(base.config.image_size) // int(base.config.patch_size)
    return side * side + 1
