"""Between torch and the wire. The wire's buffers are NumPy; bf16 is carried as its bits.

Nothing is copied that need not be. One copy is needed: torch's kernels give other last bits (and run slower) on memory
that is not aligned, and a frame received under encryption starts anywhere. ``from_wire`` therefore moves such a tensor
into aligned memory once, and equality of split and unsplit steps is exact.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedsplit.wire.tensors import WireTensor

ALIGNMENT = 64
"""Bytes; what torch's own CPU allocator gives and its widest vector loads want."""

_NAMES = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}


def to_wire(tensor: Tensor) -> WireTensor:
    """A tensor of any device as a wire tensor; shares memory with a contiguous CPU tensor.

    Raises TypeError for a dtype that does not travel.
    """
    if tensor.dtype not in _NAMES:
        raise TypeError(f"{tensor.dtype} does not travel; the wire carries {', '.join(map(str, _NAMES))}")
    plain = tensor.detach().cpu().contiguous()
    if plain.dtype == torch.bfloat16:
        return WireTensor("bf16", plain.view(torch.int16).numpy().view(np.uint16))
    return WireTensor(_NAMES[plain.dtype], plain.numpy())


def from_wire(wire: WireTensor, device: str | torch.device = "cpu") -> Tensor:
    """A wire tensor as a torch tensor in aligned memory; shares memory where it is writable and already aligned."""
    array = wire.data.view(np.int16) if wire.dtype == "bf16" else wire.data
    if array.flags.writeable and array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        tensor = torch.from_numpy(array)
    else:
        tensor = torch.empty(array.shape, dtype=_torch_dtype(array.dtype))
        np.copyto(tensor.numpy(), array)
    if wire.dtype == "bf16":
        tensor = tensor.view(torch.bfloat16)
    return tensor.to(device)


def _torch_dtype(dtype: np.dtype[np.generic]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
