"""Rows to token ids with labels, kept compactly; every token that is cut off is counted and reported.

A language model's labels stand at the position of the token they name (the shift happens in the loss) and are -100
where no loss is taken: on prompts, and on the first token, which nothing can predict.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from fedsplit.config.run import Task
from fedsplit.data import chat, images
from fedsplit.data.tokenizer import Encode
from fedsplit.errors import DataError
from fedsplit.wire.messages import DataSummary

if TYPE_CHECKING:
    from fedsplit.data.rows import Row

IGNORED = -100
"""The label of a position without loss, as transformers has it."""


@dataclass(frozen=True, slots=True)
class Example:
    """One training example. ``labels``: a tuple as long as ``ids`` (language models), a class id, or a number.

    ``types``: segment ids of a pair, where the model uses them. ``pixels``: uint8 (H, W, C), already resized.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...] | int | float
    types: tuple[int, ...] | None = None
    pixels: NDArray[np.uint8] | None = None


@dataclass(frozen=True, kw_only=True)
class TruncationReport:
    """What did not fit. ``cut`` examples lost ``tokens_cut`` tokens; ``dropped`` rows had no loss position left."""

    rows: int = 0
    examples: int = 0
    tokens: int = 0
    cut: int = 0
    tokens_cut: int = 0
    dropped: int = 0
    longest: int = 0
    max_length: int = 0
    plain_chat: bool = False

    @property
    def clean(self) -> bool:
        """Nothing was lost."""
        return not (self.cut or self.dropped)

    def __str__(self) -> str:
        """One line for the reader."""
        parts = []
        if self.cut:
            share = 100 * self.cut / max(1, self.rows)
            parts.append(
                f"{self.cut:,} of {self.rows:,} rows ({share:.1f} %) are longer than {self.max_length} tokens: "
                f"{self.tokens_cut:,} tokens cut off, the longest row has {self.longest:,}"
            )
        if self.dropped:
            parts.append(f"{self.dropped:,} rows dropped: their prompt alone fills {self.max_length} tokens")
        if parts:
            parts.append("raise model.max_length to keep them")
        else:
            parts.append(f"nothing cut: the longest of {self.rows:,} rows has {self.longest:,} tokens")
        if self.plain_chat:
            parts.append("the tokenizer has no chat template, so a plain one was used")
        return "; ".join(parts)


class Examples(Sequence[Example]):
    """Examples in flat arrays: 4 bytes a token and as much a label, instead of Python objects.

    ``ids`` (n,) int32 of all examples one after the other, ``bounds`` (N + 1,) where each starts; ``labels`` (n,) int32
    for language models, else (N,) int64 or float32; ``types`` (n,) uint8; ``pixels`` (N, H, W, C) uint8.
    """

    def __init__(
        self,
        ids: NDArray[np.int32],
        bounds: NDArray[np.int64],
        labels: NDArray[Any],
        types: NDArray[np.uint8] | None = None,
        pixels: NDArray[np.uint8] | None = None,
        *,
        per_token: bool,
    ) -> None:
        self.ids, self.bounds, self.labels, self.types, self.pixels = ids, bounds, labels, types, pixels
        self.per_token = per_token

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return self.subset(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        i = index % len(self)
        span = slice(int(self.bounds[i]), int(self.bounds[i + 1]))
        return Example(
            tuple(self.ids[span].tolist()),
            tuple(self.labels[span].tolist()) if self.per_token else self.labels[i].item(),
            None if self.types is None else tuple(self.types[span].tolist()),
            None if self.pixels is None else self.pixels[i],
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) tokens of each example."""
        return np.diff(self.bounds)

    def take(self, indices: Iterable[int]) -> list[Example]:
        """The examples at these positions, in this order."""
        return [self[int(i)] for i in indices]

    def subset(self, indices: NDArray[np.integer[Any]]) -> Examples:
        """The same examples at these positions, copied into arrays of their own."""
        lengths = self.lengths[indices]
        bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        starts = np.repeat(self.bounds[:-1][indices] - bounds[:-1], lengths)
        flat = starts + np.arange(bounds[-1])
        return Examples(
            self.ids[flat],
            bounds,
            self.labels[flat if self.per_token else indices],
            None if self.types is None else self.types[flat],
            None if self.pixels is None else self.pixels[indices],
            per_token=self.per_token,
        )


def summary(train: Examples, held_out: Examples | None = None) -> DataSummary:
    """The counts a server may learn before training."""
    lengths = train.lengths
    return DataSummary(
        train_examples=len(train),
        eval_examples=0 if held_out is None else len(held_out),
        tokens_mean=float(lengths.mean()) if len(lengths) else 0.0,
        tokens_max=int(lengths.max()) if len(lengths) else 0,
    )


class _Piece(NamedTuple):
    """An example before it is packed; ``full`` tokens before a cut."""

    ids: Sequence[int]
    labels: Sequence[int]
    types: Sequence[int]
    full: int


def tokenise(
    rows: Iterable[Row],
    encode: Encode | None,
    max_length: int,
    task: Task,
    *,
    preparation: images.Preparation | None = None,
    long: Literal["cut", "split"] = "cut",
) -> tuple[Examples, TruncationReport]:
    """All rows as examples of at most ``max_length`` tokens, and what had to be cut for it.

    ``encode`` is not needed for images, ``preparation`` only for them. ``long="split"`` makes several examples of a
    plain text that is too long.

    :raises DataError: for rows that cannot be read, or if no row is left to learn from.
    """
    if task == "image-classification":
        assert preparation is not None, "image rows need the model's preparation"
        return _images(rows, preparation)
    assert encode is not None, "text rows need a tokenizer"
    packer = _Packer(encode, max_length, task, long)
    file = ""
    for row in rows:
        file = row.file
        packer.add(row)
    examples, report = packer.packed()
    if not len(examples):
        raise DataError(f"no row is left to learn from: {report}", file)
    return examples, report


class _Packer:
    """Collects examples into growing flat arrays."""

    def __init__(self, encode: Encode, max_length: int, task: Task, long: str) -> None:
        self.encode, self.max_length, self.task, self.long = encode, max_length, task, long
        self.ids, self.labels, self.types, self.bounds = array("i"), array("i"), bytearray(), array("q", [0])
        self.targets: list[float] = []
        self.rows = self.cut = self.tokens_cut = self.dropped = self.longest = 0
        self.plain_chat = False

    def add(self, row: Row) -> None:
        self.rows += 1
        if self.task != "causal-lm":
            self._add_labelled(row)
            return
        split = self.long == "split" and row.completion is None and not row.messages
        pieces = list(self._language(row, split))
        self.longest = max(self.longest, pieces[0].full)
        kept = [piece for piece in pieces if any(label != IGNORED for label in piece.labels)]
        self.dropped += not kept
        lost = pieces[0].full - sum(len(piece.ids) for piece in pieces)
        if kept and lost > 0 and not split:
            self.cut += 1
            self.tokens_cut += lost
        for piece in kept:
            self._append(piece)

    def _append(self, piece: _Piece) -> None:
        self.ids.extend(piece.ids)
        self.labels.extend(piece.labels)
        self.types.extend(piece.types)
        self.bounds.append(len(self.ids))

    def _add_labelled(self, row: Row) -> None:
        found = self.encode.encode(row.text, pair=row.pair, max_length=self.max_length)
        self.longest = max(self.longest, found.full)
        if found.full > len(found.ids):
            self.cut += 1
            self.tokens_cut += found.full - len(found.ids)
        assert row.label is not None
        self.targets.append(row.label)
        self._append(_Piece(found.ids, [], found.types, found.full))

    def _language(self, row: Row, split: bool) -> Iterator[_Piece]:
        ids, labels = self._ids_and_labels(row)
        full, limit = len(ids), self.max_length
        pieces = range(0, full, limit) if split else [0]
        for start in pieces:
            part, its_labels = ids[start : start + limit], labels[start : start + limit]
            # Nothing in the piece stands before its first token, so nothing can predict it.
            yield _Piece(part, [IGNORED, *its_labels[1:]], bytes(len(part)), full)

    def _ids_and_labels(self, row: Row) -> tuple[list[int], list[int]]:
        if row.messages:
            self.plain_chat = self.plain_chat or not self.encode.has_chat
            return conversation(row, self.encode)
        if row.completion is None:
            ids = _ended(self.encode.encode(row.text).ids, self.encode)
            return ids, list(ids)
        prompt = prompt_ids(row.text, row.completion, self.encode)
        answer = _ended(self.encode.encode(row.completion, special=False).ids, self.encode)
        return prompt + answer, [IGNORED] * len(prompt) + answer

    def packed(self) -> tuple[Examples, TruncationReport]:
        bounds = np.array(self.bounds, np.int64)
        per_token = self.task == "causal-lm"
        labels: NDArray[Any]
        if per_token:
            labels = np.array(self.labels, np.int32)
        else:
            labels = np.array(self.targets, np.float32 if self.task == "regression" else np.int64)
        types = np.frombuffer(bytes(self.types), np.uint8) if self.encode.uses_types else None
        report = TruncationReport(
            rows=self.rows,
            examples=len(bounds) - 1,
            tokens=len(self.ids),
            cut=self.cut,
            tokens_cut=self.tokens_cut,
            dropped=self.dropped,
            longest=self.longest,
            max_length=self.max_length,
            plain_chat=self.plain_chat,
        )
        return Examples(np.array(self.ids, np.int32), bounds, labels, types, per_token=per_token), report


def _ended(ids: list[int], encode: Encode) -> list[int]:
    """With the end token, where the tokenizer has one and did not set it itself."""
    return ids if encode.eos_id is None or (ids and ids[-1] == encode.eos_id) else [*ids, encode.eos_id]


def prompt_ids(prompt: str, completion: str, encode: Encode) -> list[int]:
    """The prompt as the model gets it when it shall answer: a line break is added unless there is white space already.

    It is tokenised by itself, so training sees the very ids that prediction will see.
    """
    joined = prompt[-1:].isspace() or completion[:1].isspace()
    ids = encode.encode(prompt if joined else prompt + "\n").ids
    return ids[:-1] if ids and ids[-1] == encode.eos_id else ids


def conversation(row: Row, encode: Encode) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation; a token has a label if it ends inside an answer."""

    def render(messages: Sequence[chat.Message], answer_next: bool) -> str:
        return encode.render(messages, answer_next)

    text, spans = chat.answers(row.messages, render)
    if not spans:
        raise DataError("the chat template leaves the answers out", row.file, row.line)
    # A template writes its own special tokens; without one the tokenizer adds them.
    found = encode.encode(text, special=not encode.has_chat)
    labels, at = [], 0
    for token, (start, end) in zip(found.ids, found.offsets, strict=True):
        while at < len(spans) and start >= spans[at][1]:
            at += 1
        inside = at < len(spans) and end > start and end > spans[at][0]
        labels.append(token if inside else IGNORED)
    return found.ids, labels


def _images(rows: Iterable[Row], preparation: images.Preparation) -> tuple[Examples, TruncationReport]:
    pixels, labels = [], []
    for row in rows:
        pixels.append(preparation.resize(images.decode(row.image, row.file, row.line)))
        labels.append(row.label)
    count = len(labels)
    shape = (0, *preparation.size, len(preparation.mean))
    stacked = np.stack(pixels) if pixels else np.zeros(shape, np.uint8)
    none = np.zeros(0, np.int32), np.zeros(count + 1, np.int64)
    examples = Examples(*none, np.array(labels, np.int64), None, stacked, per_token=False)
    return examples, TruncationReport(rows=count, examples=count)
