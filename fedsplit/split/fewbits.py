"""Frozen matrices of layers in 16, 8 or 4 bits, turned back into the run's numbers each time they multiply.

4 bits are NF4 (Dettmers et al., QLoRA, arXiv 2305.14314): blocks of 64 weights, each with a float32 scale, 4.5 bits a
weight in all. 8 bits are whole numbers with a float32 scale a row (Dettmers et al., LLM.int8(), arXiv 2208.07339); the
activations stay as they are, so that neither the rows of a micro-batch nor the cut change a number. 16 bits are
float16, or bfloat16 where the checkpoint has that. Codes come from bitsandbytes on the CPU, from the checkpoint's own
numbers and a few rows at a time: they are the same on every device, whatever it computes with, and a matrix is never
there as a whole in float32.

Legend: M out, N in, K numbers of a matrix.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from fedsplit.errors import ConfigError, MissingExtra, OutOfMemory
from fedsplit.split.base import Base
from fedsplit.split.checkpoint import Stored
from fedsplit.split.placement import free_bytes

BLOCK = 64
"""Weights that share a scale at 4 bits."""
SLAB = 1 << 20
"""Weights that are read and packed at a time."""
WIDTHS = (32, 16, 8, 4)


@dataclass(frozen=True, eq=False)
class Packed:
    """A matrix (M, N). ``codes``: uint8 (K/2,) at 4 bits, int8 (K,) at 8, else float16 or bfloat16 (K,); ``scales``:
    of each block or row, float32."""

    bits: int
    shape: tuple[int, ...]
    codes: nn.Parameter
    scales: nn.Parameter | None = None

    def values(self, dtype: torch.dtype) -> Tensor:
        """(M, N) in fresh memory."""
        if self.scales is None:
            return self.codes.to(dtype).view(self.shape)
        if self.bits == 8:
            found = self.codes.view(self.shape).to(torch.float32)
            return found.mul_(self.scales[:, None]).to(dtype)
        # As one row of even length. bitsandbytes 0.50 takes wrong scales on some CPUs where several rows of, say, 96
        # weights end within a block (tests/split/test_fewbits.py), and runs a compiler where rows have odd lengths.
        count = math.prod(self.shape)
        even = (count + count % 2,)
        whole: Tensor = torch.ops.bitsandbytes.dequantize_4bit(self.codes, self.scales, BLOCK, "nf4", even, dtype)
        return whole.view(-1)[:count].view(self.shape)


class FewBits(nn.Module):
    """In place of ``nn.Linear`` (or GPT-2's ``Conv1D``, whose matrix stands on its side)."""

    def __init__(self, packed: Packed, bias: nn.Parameter | None, *, sideways: bool) -> None:
        super().__init__()
        self.packed, self.sideways = packed, sideways
        self.codes, self.bias = packed.codes, bias
        self.scales = packed.scales

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = _Product.apply(x, self.packed, self.bias, self.sideways)  # type: ignore[no-untyped-call]
        return found


class _Product(torch.autograd.Function):
    """x Wᵀ + b; W is made again for the way back instead of being kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Packed, bias: Tensor | None, sideways: bool) -> Tensor:
        ctx.packed, ctx.sideways = packed, sideways
        weight = packed.values(x.dtype)
        return functional.linear(x, weight.T if sideways else weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        weight = ctx.packed.values(grads[0].dtype)
        return functional.linear(grads[0], weight if ctx.sideways else weight.T), None, None, None


def fewer(bits: Mapping[int, int] | None, dtype: torch.dtype) -> dict[int, int]:
    """The layers whose matrices have fewer bits than the run's numbers. Raises ConfigError for widths unknown here."""
    found = bits or {}
    for layer, width in found.items():
        if width not in WIDTHS:
            raise ConfigError(f"layer {layer}: found weights of {width} bits, expected one of {WIDTHS}")
    return {layer: width for layer, width in found.items() if width < 8 * dtype.itemsize}


def replace(base: Base, model: Any, stored: Mapping[str, str], bits: Mapping[int, int], device: torch.device) -> None:
    """Put packed matrices in place of those of the named layers of a (partial) meta model; biases stay to be loaded.

    ``stored``: the checkpoint's name of every parameter of the plain model. Raises MissingExtra without bitsandbytes
    (8 and 4 bits), OutOfMemory.
    """
    if any(width < 16 for width in bits.values()):
        _prepare()
    layer = re.compile(rf"{model.base_model_prefix}\.{re.escape(base.family.layers)}\.(\d+)\.")
    for path, module in list(model.named_modules()):
        found = layer.match(path)
        if found is None or int(found[1]) not in bits or not isinstance(module, nn.Linear | Conv1D):
            continue
        name = stored.get(f"{path}.weight".replace(".base_layer.", "."))
        if name is not None:  # not a factor of LoRA
            packed = load(base, base.checkpoint.tensors[name], bits[int(found[1])], device)
            model.set_submodule(path, FewBits(packed, module.bias, sideways=isinstance(module, Conv1D)))


def load(base: Base, stored: Stored, bits: int, device: torch.device) -> Packed:
    """One matrix; the same object for every segment that uses it while any of them lives."""
    key = (stored.file, stored.offset, bits, device)
    packed: Packed | None = base.packed.get(key)
    if packed is None:
        try:
            packed = base.packed[key] = pack(stored, bits, device)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            what, need = f"a tensor of {stored.file.name} on {device}", math.prod(stored.shape) * bits // 8
            raise OutOfMemory(what, need, free_bytes(device), "hold fewer layers") from None
    return packed


def pack(stored: Stored, bits: int, device: torch.device) -> Packed:
    """Read a matrix of the checkpoint and pack it, some rows at a time."""
    count = math.prod(stored.shape)
    if bits == 16:
        kind = torch.bfloat16 if stored.dtype == "BF16" else torch.float16
        return Packed(bits, stored.shape, _frozen(stored.read(kind, device).view(-1)))
    codes = torch.empty(count if bits == 8 else (count + 1) // 2, dtype=torch.int8 if bits == 8 else torch.uint8)
    scales = torch.empty(stored.shape[0] if bits == 8 else math.ceil(count / BLOCK))
    rows, width = stored.shape[0], math.prod(stored.shape[1:])
    # A multiple of the block: a slab's blocks and bytes are whole.
    step = BLOCK * max(1, SLAB // (BLOCK * width))
    for first in range(0, rows, step):
        slab = stored.slab(first, min(step, rows - first), torch.float32)
        some, their = _rows(slab) if bits == 8 else _blocks(slab)
        start, of = (first * width, first) if bits == 8 else (first * width // 2, first * width // BLOCK)
        codes[start : start + some.numel()], scales[of : of + their.numel()] = some, their
    return Packed(bits, stored.shape, _frozen(codes.to(device)), _frozen(scales.to(device)))


def _rows(slab_MN: Tensor) -> tuple[Tensor, Tensor]:
    codes_MN, most_M, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(slab_MN, 0.0)
    return codes_MN.view(-1), most_M / 127


def _blocks(slab_MN: Tensor) -> tuple[Tensor, Tensor]:
    codes, scales = torch.ops.bitsandbytes.quantize_4bit(slab_MN, BLOCK, "nf4", torch.uint8)
    return codes.view(-1), scales


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


def _prepare() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise MissingExtra("bitsandbytes (weights of 8 and 4 bits)", "bits") from None


def packed_bytes(shape: tuple[int, ...], bits: int) -> int:
    """Bytes of a matrix in 16, 8 or 4 bits, its scales included."""
    count = math.prod(shape)
    scales = 4 * shape[0] if bits == 8 else 4 * math.ceil(count / BLOCK) if bits == 4 else 0
    return math.ceil(count * bits / 8) + scales
