"""A client's data, ready for training: read, tokenised, and split into its own train and test part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedsplit.config.run import RunFile
from fedsplit.data import images
from fedsplit.data.batches import split
from fedsplit.data.examples import Examples, TruncationReport, summary, tokenise
from fedsplit.data.tokenizer import Encode
from fedsplit.wire.messages import DataSummary


@dataclass(frozen=True)
class Dataset:
    """``train`` and ``held_out`` are disjoint; ``report`` says what was cut to fit."""

    train: Examples
    held_out: Examples
    report: TruncationReport

    @property
    def summary(self) -> DataSummary:
        return summary(self.train, self.held_out)


def open_dataset(
    path: str | Path,
    run: RunFile,
    encode: Encode | None,
    *,
    preparation: images.Preparation | None = None,
    fraction: float | None = None,
) -> Dataset:
    """The rows of ``path`` as the run file says; ``fraction`` overrides ``data.eval_fraction`` (1.0: all held out).

    Memory: about 8 bytes a token. The split depends on the run's seed and the number of examples only.

    :raises DataError: for anything wrong with the file, named with its line.
    """
    from fedsplit.data.rows import read  # here: who gets a dataset from elsewhere reads no files

    model = run.model
    rows = read(path, run.data, model.task, model.labels)
    examples, report = tokenise(rows, encode, model.max_length, model.task, preparation=preparation, long=run.data.long)
    share = run.data.eval_fraction if fraction is None else fraction
    if share >= 1:
        return Dataset(examples[:0], examples, report)
    train, held_out = split(len(examples), share, run.run.seed)
    return Dataset(examples.subset(train), examples.subset(held_out), report)
