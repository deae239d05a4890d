"""Frozen weights of several graphs in one file, each content once, where a runtime can map them into memory.

A weight is stored as the model stores it, and graphs are rewritten to multiply by it as it is: ``Transpose`` and
``MatMul`` become a ``Gemm`` that transposes while it reads. A runtime would otherwise fold every transposed weight into
a second copy, in memory of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fedsplit.edge.manifest import Weight

ALIGNMENT = 64
"""What a tensor starts at: the widest load of a processor."""


class WeightFile:
    """Context manager: writes ``path``; ``place`` gives a graph its weights.

    ``others``: what whole files beside ``path`` hold, by their ``content``; a tied head is in the embedding's table.
    """

    def __init__(self, path: Path, others: Mapping[bytes, str] | None = None) -> None:
        self.path = path
        self._places = {key: (name, 0) for key, name in (others or {}).items()}

    def __enter__(self) -> WeightFile:
        self._file: BinaryIO = self.path.open("wb")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def place(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Weight]:
        """Where these are, after writing those that the file does not hold yet."""
        return {name: self._placed(array) for name, array in arrays.items()}

    def _placed(self, array: NDArray[Any]) -> Weight:
        file, offset = self._put(np.ascontiguousarray(array))
        return Weight(file=file, offset=offset, shape=array.shape, dtype=array.dtype.name)

    def _put(self, array: NDArray[Any]) -> tuple[str, int]:
        raw = array.data.cast("B")  # no copy: a head of a large vocabulary is a gigabyte
        key = content([raw])
        if key not in self._places:
            self._file.write(bytes(-self._file.tell() % ALIGNMENT))
            self._places[key] = self.path.name, self._file.tell()
            self._file.write(raw)
        return self._places[key]


def content(pieces: Iterable[Any]) -> bytes:
    """What bytes are known by, given piece after piece."""
    digest = hashlib.blake2b(digest_size=20)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def stripped(model: Any) -> None:
    """Forget where in Python each operator came from: most of a graph's bytes."""
    for node in model.graph:
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.doc_string = None
            value.metadata_props.clear()
    model.metadata_props.clear()


def untransposed(model: Any) -> None:
    """Rewrite products with a transposed initialiser, ``MatMul(x, W.T)`` and ``Gemm(x, W.T, b)``, to read W itself."""
    import onnx_ir

    for node in list(model.graph):
        if node.op_type != "Transpose" or node.inputs[0].name not in model.graph.initializers:
            continue
        weight, turned = node.inputs[0], node.outputs[0]
        for user, place in list(turned.uses()):
            if place != 1 or user.op_type not in ("MatMul", "Gemm"):
                continue
            if user.op_type == "MatMul":
                user.op_type = "Gemm"
            user.replace_input_with(1, weight)
            before = user.attributes["transB"].as_int() if "transB" in user.attributes else 0
            user.attributes["transB"] = onnx_ir.AttrInt64("transB", 1 - before)
        if not turned.uses():
            model.graph.remove(node, safe=True)
