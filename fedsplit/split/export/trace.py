"""A plain function over tensors becomes an ONNX graph, its frozen weights attached by name.

The recipe: trace the function, ``torch.autograd.grad`` and all, with symbolic sizes and frozen weights as inputs; give
the weights back as parameters of the traced module; export that with free batch and length. ``torch.func.vjp`` would
keep stray shape constants (BERT), and without the decompositions a gradient was once exported wrong without complaint:
``graphs`` therefore checks every graph against autograd before it is used.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from fedsplit.errors import MissingExtra

OPSET = 20

Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Traced:
    """A function, how to call it, and which of its inputs vary: ``sizes`` per input are {axis: name of the size}."""

    function: Function
    inputs: Mapping[str, Tensor]
    sizes: Mapping[str, Mapping[int, str]]
    outputs: Sequence[str]


def to_onnx(traced: Traced, model: nn.Module, frozen: Mapping[str, Tensor]) -> Any:
    """The ``onnx_ir`` model of ``traced.function(*inputs)``, unoptimised: onnxruntime does that, faster.

    ``frozen``: tensors of ``model`` by name that the function reads; they become initialisers of these names. Example
    inputs must have pairwise different sizes: equal ones would be taken for one symbol. Raises MissingExtra without
    onnxscript.
    """
    names, weights = list(frozen), list(frozen.values())

    def bound(weights: list[Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        with nn.utils.stateless._reparametrize_module(model, dict(zip(names, weights, strict=True))):
            return traced.function(*inputs)

    examples = tuple(traced.inputs.values())
    graph = make_fx(bound, tracing_mode="symbolic", decomposition_table=_decompositions())(weights, *examples)
    module = _Attached(graph, weights)
    dims = {size: torch.export.Dim(size, min=1) for sizes in traced.sizes.values() for size in sizes.values()}
    shapes = tuple({axis: dims[size] for axis, size in traced.sizes.get(name, {}).items()} for name in traced.inputs)
    program = torch.export.export(module, examples, dynamic_shapes=(shapes,))
    try:
        import onnxscript  # noqa: F401  # only whether it is there
    except ImportError:
        raise MissingExtra("onnxscript, which exporting graphs for devices without torch needs,", "server") from None
    with _quiet():
        made = torch.onnx.export(
            program, input_names=list(traced.inputs), output_names=list(traced.outputs), dynamo=True,
            opset_version=OPSET, optimize=False, verbose=False,
        )  # fmt: skip
    assert made is not None
    for number, name in enumerate(names):
        if (value := made.model.graph.initializers.get(f"weights.{number}")) is not None:
            value.name = name
    return made.model


class _Attached(nn.Module):
    """A traced graph with its frozen weights as parameters."""

    def __init__(self, graph: nn.Module, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.graph = graph
        self.weights = nn.ParameterList([nn.Parameter(weight, requires_grad=False) for weight in weights])

    def forward(self, *inputs: Tensor) -> Any:
        return self.graph(list(self.weights), *inputs)


def _decompositions() -> dict[Any, Any]:
    """Core operators only. ``silu_backward`` of torch's table leaves an ``empty_permuted`` that ONNX does not know."""
    from torch._decomp import core_aten_decompositions

    table: dict[Any, Any] = dict(core_aten_decompositions())
    table[torch.ops.aten.silu_backward.default] = _silu_backward
    return table


def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    return grad * gate * (1 + x * (1 - gate))


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs and warns of its own internals, which tell a reader of ours nothing."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
