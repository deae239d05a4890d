"""A client's rows as the micro-batches of each step: a function of (seed, client, step), the same after a restart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsplit.config.run import RunFile
from fedsplit.data.batches import Batch, collate, order
from fedsplit.data.curriculum import easiest, steps_of
from fedsplit.data.dataset import Dataset, open_dataset
from fedsplit.data.examples import Example
from fedsplit.data.images import Preparation
from fedsplit.data.tokenizer import Encode, Side


@dataclass(frozen=True)
class Reading:
    """How a model wants its rows: texts as tokens, padded at ``side``, or prepared images of ``image_tokens`` each.

    ``pad``: the id to fill up with, where the rows are tokens already and nothing is here to ``encode`` them.
    """

    encode: Encode | None = None
    side: Side = "right"
    preparation: Preparation | None = None
    image_tokens: int = 0
    pad: int = 0


class Feed:
    """``train`` yields each step's micro-batches, ``test`` the held-out rows."""

    def __init__(self, dataset: Dataset, run: RunFile, reading: Reading, client: str) -> None:
        self.dataset = dataset
        self._run, self._client, self._reading = run, client, reading

    @staticmethod
    def open(path: str | Path, run: RunFile, reading: Reading, client: str, fraction: float | None = None) -> Feed:
        """Read ``path`` as the model wants it.

        :raises DataError: the file is wrong, named with its line.
        """
        dataset = open_dataset(path, run, reading.encode, preparation=reading.preparation, fraction=fraction)
        return Feed(dataset, run, reading, client)

    def train(self, first_step: int, steps: int) -> Iterator[list[Batch]]:
        """The micro-batches of the steps from ``first_step`` (counted from the start of the run) on."""
        count, run = len(self.dataset.train), self._run
        yield from map(self._micros, order(count, run.run.seed, self._client, first_step, steps, run.train.batch))

    def easiest(
        self, difficulty: NDArray[np.float64], share: float, first_step: int, steps: int
    ) -> Iterator[list[Batch]]:
        """Like ``train``, of the easiest ``share`` of the rows."""
        size, run = self._run.train.batch, self._run.run
        pool = easiest(difficulty, share, size, run.seed, self._client)
        return map(self._micros, steps_of(pool, first_step, steps, size))

    def singly(self, chosen: Iterable[int] | None = None) -> Iterator[Batch]:
        """Every row to train on, in the order of the file, by itself; or the ``chosen`` ones."""
        places = range(len(self.dataset.train)) if chosen is None else chosen
        return (self._batch([self.dataset.train[at]]) for at in places)

    def _micros(self, chosen: NDArray[np.int64]) -> list[Batch]:
        train = self._run.train
        rows, size = self.dataset.train.take(chosen), train.batch // train.micro_batches
        return [self._batch(rows[at : at + size]) for at in range(0, train.batch, size)]

    def test(self) -> Iterator[Batch]:
        """The held-out rows in order, ``evaluate.batch`` at a time."""
        held_out, size = self.dataset.held_out, self._run.evaluate.batch
        for at in range(0, len(held_out), size):
            yield self._batch(held_out.take(range(at, min(at + size, len(held_out)))))

    def _batch(self, rows: Sequence[Example]) -> Batch:
        reading = self._reading
        pad = reading.encode.pad_id if reading.encode is not None else reading.pad
        return collate(rows, pad, reading.side, reading.preparation, reading.image_tokens)
