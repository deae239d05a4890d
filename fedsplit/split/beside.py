"""What rounds have folded into a base weight, kept beside it: ``W x + L (R x)``.

The base stays as it is in its file, shared by all and perhaps in 16 or fewer bits, where a small patch would be rounded
away. A patch comes with every call, as the factors do, so that one segment can serve two versions of the base in turns.
Factors that are thin no more are one dense matrix. Dropout of the adapter does not touch a patch: it is part of the
base.

Legend: M out, N in, P rank of the patch, B samples, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LEFT, RIGHT = ".patch_left", ".patch_right"
"""Endings of the two tensors' names, after the module's: (M, P) and (P, N); without RIGHT the left one is (M, N)."""


class Beside:
    """The patch of one adapted module. The hook is there from the first patch on: others pay nothing."""

    def __init__(self, module: str, layer: nn.Module) -> None:
        self._names, self._layer = (module + LEFT, module + RIGHT), layer
        self._left: Tensor | None = None
        self._right: Tensor | None = None
        self._hooked = False

    def bind(self, params: Any) -> None:
        """Take this module's patch out of the tensors of a call; none: the plain base."""
        self._left, self._right = (params.get(name) for name in self._names)
        if self._left is not None and not self._hooked:
            self._layer.register_forward_hook(self._add)
            self._hooked = True

    def _add(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self._left is None:
            return None
        return output + _product(layer, inputs[0], self._left, self._right).to(output.dtype)


def _product(layer: Any, x: Tensor, left: Tensor, right: Tensor | None) -> Tensor:
    """What the patch gives for a layer's input, in float32."""
    if hasattr(layer, "num_embeddings"):
        rows = left.T[x] if right is None else functional.linear(right.T[x], left)
        scale = getattr(layer, "scalar_embed_scale", None)
        return rows if scale is None else rows * scale
    x = x.to(left.dtype)
    if isinstance(layer, nn.Conv2d):
        return _convolved(layer, x, left, right)
    return functional.linear(x, left) if right is None else functional.linear(functional.linear(x, right), left)


def _convolved(layer: nn.Conv2d, x: Tensor, left: Tensor, right: Tensor | None) -> Tensor:
    first = left if right is None else right
    kernel = first.reshape(first.shape[0], *layer.weight.shape[1:])
    found = functional.conv2d(x, kernel, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return found if right is None else torch.einsum("bphw,mp->bmhw", found, left)
