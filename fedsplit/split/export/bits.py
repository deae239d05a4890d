"""Frozen weights in fewer bits, and the operators by which a graph reads them.

A matrix is cut into blocks of 32 numbers with one float32 scale each: at 8 bits numbers from -127 to 127, at 4 bits
from -8 to 7, two in a byte: the first half of the blocks in the low halves of the bytes. 16 bits are float16. The graph
turns a matrix into float32 right where it multiplies by it, forwards and backwards alike, so one stored copy serves
both (docs/decisions/004-weight-bits.md). Vectors, and what is no matrix, stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 32
"""Numbers with one scale."""
SCALE, ZERO = ":scale", ":zero"
"""What the names of a stored matrix's other inputs end in."""
HALF_MAX = float(np.finfo(np.float16).max)

Floats = NDArray[np.float32]
Stored = dict[str, NDArray[Any]]


def bits_of(value: Tensor, bits: int) -> int:
    """Bits that ``value`` gets where ``bits`` are wanted: 32 but for matrices, 16 where blocks do not come out even."""
    if value.dim() != 2 or not value.is_floating_point():
        return 32
    return 16 if bits < 16 and value.numel() % (2 * BLOCK) else bits


def packed(value: Floats, bits: int) -> tuple[Stored, Floats]:
    """(arrays to store by the ends of their names, the numbers that are read from them)."""
    if bits == 32:
        return {"": value}, value
    if bits == 16:
        half = np.clip(value, -HALF_MAX, HALF_MAX).astype(np.float16)
        return {"": half}, half.astype(np.float32)
    whole_NK, scale_N = _rounded(value.reshape(-1, BLOCK), bits)
    read = (whole_NK.astype(np.float32) * scale_N[:, None]).reshape(value.shape)
    if bits == 8:
        return {"": whole_NK, SCALE: scale_N}, read
    raw_NK = (whole_NK + 8).astype(np.uint8)
    low, high = np.split(raw_NK, 2)
    return {"": low | (high << 4), SCALE: scale_N, ZERO: np.full(len(scale_N), 8, np.uint8)}, read


def _rounded(blocks_NK: Floats, bits: int) -> tuple[NDArray[np.int8], Floats]:
    widest_N = np.take_along_axis(blocks_NK, np.abs(blocks_NK).argmax(1)[:, None], 1)[:, 0]
    # At 4 bits the number farthest from zero becomes -8, the one that has no opposite.
    scale_N = (np.abs(widest_N) / 127 if bits == 8 else widest_N / -8).astype(np.float32)
    scale_N[scale_N == 0] = 1
    least, most = (-127, 127) if bits == 8 else (-8, 7)
    return np.clip(np.rint(blocks_NK / scale_N[:, None]), least, most).astype(np.int8), scale_N


def error_of(value: Floats, read: Floats) -> float:
    """Length of the difference over length of the matrix."""
    length = float(np.linalg.norm(value))
    return float(np.linalg.norm(value - read)) / length if length else 0.0


def as_inputs(model: Any, weights: Mapping[str, Tensor], bits: int) -> None:
    """Make the initialisers of the ``onnx_ir`` model that ``weights`` names inputs, in the bits they are stored in.

    As inputs they come from wherever the device has them: layers of one kind share one graph and one session, and all
    graphs one mapping of the file.
    """
    for name in [name for name in model.graph.initializers if name in weights]:
        value, tensor = model.graph.initializers.pop(name), weights[name]
        chosen = bits_of(tensor, bits)
        value.const_value = None
        if chosen == 32:
            model.graph.inputs.append(value)
        else:
            _read(model.graph, value, tuple(tensor.shape), chosen)


def _read(graph: Any, value: Any, shape: tuple[int, ...], bits: int) -> None:
    """Put operators at the front of ``graph`` that give ``value`` from its stored form, which becomes its inputs."""
    import onnx_ir
    from onnx_ir import DataType

    name, value.name = value.name, f"{value.name}:read"
    count = shape[0] * shape[1] // BLOCK
    nodes = []

    def given(end: str, kind: Any, *sizes: int) -> Any:
        found = onnx_ir.Value(name=name + end, shape=onnx_ir.Shape(sizes), type=onnx_ir.TensorType(kind))
        graph.inputs.append(found)
        return found

    def fixed(end: str, array: NDArray[Any]) -> Any:
        found = onnx_ir.Value(name=name + end, const_value=onnx_ir.tensor(array, name=name + end))
        graph.initializers[name + end] = found
        return found

    def node(kind: str, *inputs: Any, output: Any = None, **attributes: Any) -> Any:
        made = onnx_ir.node(kind, inputs, attributes, outputs=[output] if output is not None else None)
        nodes.append(made)
        return made.outputs[0]

    if bits == 16:
        node("Cast", given("", DataType.FLOAT16, *shape), output=value, to=int(DataType.FLOAT))
    else:
        if bits == 8:
            blocks = [given("", DataType.INT8, count, BLOCK), given(SCALE, DataType.FLOAT, count)]
        else:
            both = given("", DataType.UINT8, count // 2, BLOCK)
            low = node("BitwiseAnd", both, fixed(":low", np.array(15, np.uint8)))
            high = node("BitShift", both, fixed(":shift", np.array(4, np.uint8)), direction="RIGHT")
            whole = node("Concat", low, high, axis=0)
            blocks = [whole, given(SCALE, DataType.FLOAT, count), given(ZERO, DataType.UINT8, count)]
        read = node("DequantizeLinear", *blocks, axis=0)
        node("Reshape", read, fixed(":shape", np.array(shape)), output=value)
    first = graph[0]
    for made in nodes:
        graph.insert_before(first, made)
