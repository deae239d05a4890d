"""Rows as a base model wants them, with what transformers knows of its tokenizer."""

from __future__ import annotations

from pathlib import Path

from fedsplit.config.run import RunFile
from fedsplit.data.images import preparation
from fedsplit.exchange.feed import Feed, Reading
from fedsplit.split.base import Base
from fedsplit.train.tokenizer import load_tokenizer


def reading_of(base: Base, run: RunFile) -> Reading:
    """The base model's tokenizer, or its image settings. Raises ConfigError and DataError where it has none."""
    if run.model.task != "image-classification":
        encode = load_tokenizer(base.folder)
        return Reading(encode, encode.side)
    side = int(base.config.image_size) // int(base.config.patch_size)
    return Reading(preparation=preparation(base.folder), image_tokens=side * side + 1)


def open_feed(path: str | Path, run: RunFile, base: Base, client: str, fraction: float | None = None) -> Feed:
    """Read and tokenise ``path`` for the base model. Raises as ``Feed.open`` and ``reading_of``."""
    return Feed.open(path, run, reading_of(base, run), client, fraction)
