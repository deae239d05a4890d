"""What a folder of exported graphs holds: written by the server, read by devices without torch.

``manifest.json`` beside one ``.onnx`` file a kind of graph, ``weights.bin`` (frozen weights that all graphs share,
mapped into memory) and ``table.bin`` (the token embedding, a row a token, read where it lies).
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fedsplit.errors import DataError

VERSION = 2
FILE, WEIGHTS, TABLE, HEAD = "manifest.json", "weights.bin", "table.bin", "head.bin"


class Weight(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An array in a file of the folder, from byte ``offset`` on; ``dtype`` is NumPy's name for it."""

    file: str
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Graph(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One graph: its file, what it reads and gives by name, and how far its numbers were from autograd's.

    ``inputs`` come with a call, ``weights`` are the same in every call. Layers of one kind have the same file.
    ``error``: largest difference over largest value, of all outputs, at several shapes, for the weights as stored.
    """

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: dict[str, Weight]
    error: float


class Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The token embedding: ``rows`` × ``width`` of ``dtype`` (``f32``, ``bf16``, ``i8``); ``i8`` rows end in a scale.

    A row of ``i8`` is ``width`` bytes and a float32 that they are multiplied by.
    """

    rows: int
    width: int
    dtype: str

    @property
    def row_bytes(self) -> int:
        return {"f32": 4 * self.width, "bf16": 2 * self.width, "i8": self.width + 4}[self.dtype]

    def floats(self, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Rows as they are in the file, (N, row_bytes), as float32, (N, width)."""
        if self.dtype == "i8":
            scale = raw[:, self.width :].copy().view("<f4")
            scaled: NDArray[np.float32] = raw[:, : self.width].view(np.int8).astype(np.float32) * scale
            return scaled
        if self.dtype == "bf16":
            return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        return raw.view("<f4")


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the folder is of.

    ``graphs``: ``embed``, ``scores``, ``head``, and ``layer.N``, ``layer_grad.N`` for every layer N on this device.
    ``layers``: those layers, the front's first; ``front``: how many of them. ``factors``: per layer its factors' names
    within the layer → in the model. ``shapes``: of every tensor that comes with a call, by its name in the model;
    ``trained``: those of the head that train. ``opset``, ``ir_version``: what a runtime must know. ``weight_bits``: of
    the layers' matrices, the fewest; ``rounding``: what that changes in them, the largest length of a difference over
    the length of the matrix; ``table_rounding``: the same of the token embedding. ``head``: a language model's head
    that is read a few rows at a time from ``head_file``, the embedding's where they are tied; then ``finish`` and
    ``finish_grad`` (the last norm) stand for ``scores`` and ``head``.
    """

    version: int
    model: str
    task: str
    hidden: int
    layers: tuple[int, ...]
    front: int
    layers_path: str
    opset: int
    ir_version: int
    weight_bits: int
    rounding: float
    table_rounding: float
    graphs: dict[str, Graph]
    factors: dict[int, dict[str, str]]
    shapes: dict[str, tuple[int, ...]]
    trained: tuple[str, ...]
    table: Table | None = None
    head: Table | None = None
    head_file: str = TABLE


def save(manifest: Manifest, folder: Path) -> None:
    text = msgspec.json.format(msgspec.json.encode(manifest))
    (folder / FILE).write_bytes(text)


def load(folder: Path) -> Manifest:
    """Raises DataError: no manifest, one of another version, or one that does not say what it must."""
    path = folder / FILE
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise DataError(f"cannot be read: {error}", str(path)) from error
    except msgspec.MsgspecError as error:
        raise DataError(f"is not a manifest of graphs that this fedsplit knows: {error}", str(path)) from error
    if found.version != VERSION:
        raise DataError(f"found version {found.version}, expected {VERSION}: use the same fedsplit", str(path))
    return found
