"""The token embedding as devices without torch look rows up: a file of rows at 32, 16 or 8 bits.

At 8 bits every row has a float32 scale behind it, so that a row is read in one piece. Memory holds a few at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from fedsplit.config.run import RunFile, Task
from fedsplit.edge.manifest import HEAD, TABLE, Table
from fedsplit.plan.edge import HEAD_BYTES as HEAD_BYTES
from fedsplit.split.base import Base
from fedsplit.split.checkpoint import Stored
from fedsplit.split.export.weights import content

ROWS = 1024
"""Held at a time."""
DTYPES = {32: "f32", 16: "bf16", 8: "i8"}


def write_table(base: Base, folder: Path, bits: int = 32) -> tuple[Table | None, float, dict[bytes, str]]:
    """(the table, what rounding changed in it, what its file is known by); nothing for images.

    What rounding changed: length of the difference over length of the table.
    """
    if not base.family.vocabulary:
        return None, 0.0, {}
    table = _Rows(folder / TABLE, _stored(base), bits)
    return table.table, table.rounding, {table.key: TABLE} if bits == 32 else {}


def streams_head(base: Base, run: RunFile) -> bool:
    """Whether devices read the head of this language model from its file in every step, a slab of rows at a time."""
    config, trained = base.config, any("lm_head" in target for target in run.lora.targets)
    capped = getattr(config, "final_logit_softcapping", None) is not None
    large = 4 * base.hidden_size * int(getattr(config, "vocab_size", 0)) > HEAD_BYTES
    return run.model.task == "causal-lm" and large and not capped and not trained


def write_head(base: Base, folder: Path, table: Table | None) -> tuple[Table, str]:
    """(a language model's head, its file): that of ``table`` where they are tied, else a file as precise."""
    stored = base.checkpoint.tensors[base.names("causal-lm").stored["lm_head.weight"]]
    assert table is not None
    if stored == _stored(base):
        return table, TABLE
    bits = next(count for count, dtype in DTYPES.items() if dtype == table.dtype)
    return _Rows(folder / HEAD, stored, bits).table, HEAD


def _stored(base: Base) -> Stored:
    task: Task = "causal-lm" if "causal-lm" in base.family.heads else "classification"
    names = base.names(task, 2)
    return base.checkpoint.tensors[names.stored[f"{names.prefix}.{base.family.vocabulary}"]]


class _Rows:
    """Writes ``stored`` into ``path``; ``key``: what it holds, ``rounding``: what the bits changed."""

    def __init__(self, path: Path, stored: Stored, bits: int) -> None:
        rows, width = stored.shape
        self.table = Table(rows=rows, width=width, dtype=DTYPES[bits])
        self._lost, self._length = 0.0, 0.0
        with path.open("wb") as file:
            self.key = content(self._written(file, stored))
        self.rounding = (self._lost / self._length) ** 0.5 if self._length else 0.0

    def _written(self, file: BinaryIO, stored: Stored) -> Iterator[bytes]:
        for first in range(0, self.table.rows, ROWS):
            slab = stored.slab(first, min(ROWS, self.table.rows - first), torch.float32).numpy()
            raw = encoded(slab, self.table)
            self._lost += float(np.square(self.table.floats(raw) - slab, dtype=np.float64).sum())
            self._length += float(np.square(slab, dtype=np.float64).sum())
            file.write(raw.data)
            yield raw.tobytes()


def encoded(rows_VD: NDArray[np.float32], table: Table) -> NDArray[np.uint8]:
    """Rows as the file has them, (V, row_bytes): ``table.floats`` reads them."""
    if table.dtype == "f32":
        return rows_VD.astype("<f4").view(np.uint8)
    if table.dtype == "bf16":
        word = np.ascontiguousarray(rows_VD, "<f4").view("<u4")
        even = word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))  # to nearest, halves to even
        return (even >> np.uint32(16)).astype("<u2").view(np.uint8)
    scale_V1 = (np.abs(rows_VD).max(1, keepdims=True) / 127).astype("<f4")
    scale_V1[scale_V1 == 0] = 1
    whole_VD = np.rint(rows_VD / scale_V1).astype(np.int8)
    return np.concatenate([whole_VD.view(np.uint8), scale_V1.view(np.uint8)], axis=1)
