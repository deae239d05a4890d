"""One real decoder layer to measure a device with: forward, and the gradient of its input, in torch or in NumPy.

Frozen weights with LoRA of rank 8 on query and value, as in training: RMSNorm, causal attention, gated feed-forward.
Operations are counted by the formulas of ``fedsplit.plan.timing``, so that speed times that count gives the time back.
Legend: B rows, T tokens, D model, F feed-forward, H heads, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RANK = 8
Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Shape:
    """Sizes of the layer and of what goes through it."""

    hidden: int = 512
    ffn: int = 1536
    heads: int = 8
    rows: int = 2
    tokens: int = 64

    @property
    def operations(self) -> float:
        """Floating-point operations of one forward and backward pass."""
        macs = 4 * self.hidden**2 + 3 * self.hidden * self.ffn
        lora = 4 * RANK * self.hidden
        attention = 4 * self.tokens * self.hidden
        return self.rows * self.tokens * (4 * macs + 3 * attention + 6 * lora)


Pass = Callable[[], object]
"""Runs the layer forward and backward once, and waits until it is done."""


def torch_pass(shape: Shape, dtype: str, device: str) -> Pass:
    """The layer in torch. Imports torch; raises what torch raises where the dtype is not supported."""
    import torch
    from torch.nn import functional as F

    kind, place = getattr(torch, dtype), torch.device(device)
    source = torch.Generator().manual_seed(0)

    def make(*size: int) -> Any:
        return (torch.randn(*size, generator=source) * size[-1] ** -0.5).to(place, kind)

    D, width = shape.hidden, shape.ffn
    wq, wk, wv, wo = (make(D, D) for _ in range(4))
    gate, up, down = make(width, D), make(width, D), make(D, width)
    factors = [make(*size).requires_grad_() for size in ((RANK, D), (D, RANK)) * 2]
    x_BTD = make(shape.rows, shape.tokens, D).requires_grad_()

    def heads(y: Any) -> Any:
        return y.view(shape.rows, shape.tokens, shape.heads, -1).transpose(1, 2)

    def once() -> None:
        h = F.rms_norm(x_BTD, (D,))
        q = F.linear(h, wq) + F.linear(F.linear(h, factors[0]), factors[1])
        v = F.linear(h, wv) + F.linear(F.linear(h, factors[2]), factors[3])
        a = F.scaled_dot_product_attention(heads(q), heads(F.linear(h, wk)), heads(v), is_causal=True)
        y = x_BTD + F.linear(a.transpose(1, 2).reshape(shape.rows, shape.tokens, D), wo)
        h = F.rms_norm(y, (D,))
        y = y + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)
        torch.autograd.grad(y.float().square().mean(), [x_BTD, *factors])
        if place.type == "cuda":
            torch.cuda.synchronize(place)

    return once


def numpy_pass(shape: Shape) -> Pass:
    """The layer in NumPy, float32: projections, attention and feed-forward, and the gradients that come back.

    A call gives the gradient of the layer's input, (rows x tokens, hidden).
    """
    D, width = shape.hidden, shape.ffn
    source = np.random.Generator(np.random.Philox(0))

    def make(*size: int) -> Array:
        return np.asarray(source.standard_normal(size) * size[-1] ** -0.5, np.float32)

    attention, (gate, up, down) = [make(D, D) for _ in range(4)], (make(width, D), make(width, D), make(D, width))
    x_ND = make(shape.rows * shape.tokens, D)

    def heads(y: Array) -> Array:
        return y.reshape(shape.rows, shape.tokens, shape.heads, -1).transpose(0, 2, 1, 3)

    def flat(y: Array) -> Array:
        return y.transpose(0, 2, 1, 3).reshape(shape.rows * shape.tokens, D)

    def once() -> Array:
        q, k, v = (heads(x_ND @ weight.T) for weight in attention[:3])
        scores = q @ k.swapaxes(-1, -2) * (D // shape.heads) ** -0.5
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        y = x_ND + flat(p @ v) @ attention[3].T
        g, u = y @ gate.T, y @ up.T
        s = 1 / (1 + np.exp(-g))
        y = y + (g * s * u) @ down.T
        inner = y @ down
        dy = y + (inner * u * s) @ gate + (inner * g * s) @ up
        da = heads(dy @ attention[3])
        dp = p * (da @ v.swapaxes(-1, -2))
        for part, weight in zip((dp @ k, dp.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ da), attention, strict=False):
            dy = dy + flat(part) @ weight
        return np.asarray(dy, np.float32)

    return once
