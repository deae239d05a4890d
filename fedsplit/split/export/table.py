"""The token embedding as devices without torch look rows up: a file of rows at 32, 16 or 8 bits.

At 8 bits every row has a float32 scale behind it, so that a row is read in one piece. Memory holds a few at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedsplit.config.run import Task
from fedsplit.edge.manifest import TABLE, Table
from fedsplit.split.base import Base
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
    task: Task = "causal-lm" if "causal-lm" in base.family.heads else "classification"
    names = base.names(task, 2)
    stored = base.checkpoint.tensors[names.stored[f"{names.prefix}.{base.family.vocabulary}"]]
    rows, width = stored.shape
    table = Table(rows=rows, width=width, dtype=DTYPES[bits])
    lost, length = 0.0, 0.0
    with (folder / TABLE).open("wb") as file:

        def written() -> Iterator[bytes]:
            nonlocal lost, length
            for first in range(0, rows, ROWS):
                slab = stored.slab(first, min(ROWS, rows - first), torch.float32).numpy()
                raw = encoded(slab, table)
                lost += float(np.square(table.floats(raw) - slab, dtype=np.float64).sum())
                length += float(np.square(slab, dtype=np.float64).sum())
                file.write(raw.data)
                yield raw.tobytes()

        key = content(written())
    return table, (lost / length) ** 0.5 if length else 0.0, {key: TABLE} if bits == 32 else {}


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
