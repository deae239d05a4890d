"""First values of trainable tensors, keyed by name: the same on every machine and for every cut, so that they need not
travel; and tensors as what changed since then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsplit.lora.adapter import Tensor
from fedsplit.lora.sparse import Shapes
from fedsplit.seeds import generator


def draw(name: str, shape: tuple[int, ...], run_seed: int, std: float) -> NDArray[np.float32]:
    """First values of the parameter ``name``.

    LoRA A is uniform in ±1/sqrt(fan in), B zero, as in peft (Kaiming with a = sqrt 5); for an embedding peft has A zero
    and B normal. A head's weights are normal with ``std``, its biases zero.
    """
    random = generator(run_seed, "initial", name)
    if ".lora_embedding_A" in name or ".lora_B" in name or name.endswith(".bias"):
        return np.zeros(shape, np.float32)
    if ".lora_embedding_B" in name:
        return random.standard_normal(shape, np.float32)
    if ".lora_A" in name:
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        return ((2 * random.random(shape, np.float32) - 1) * bound).astype(np.float32)
    return (random.standard_normal(shape, np.float32) * std).astype(np.float32)


def fitted(first: Mapping[str, Tensor], shapes: Shapes) -> dict[str, NDArray[Any]]:
    """Of what was drawn, tensors of these shapes: at a lower rank the first components, zero beyond what was drawn."""
    found = {}
    for name, shape in shapes.items():
        part = np.asarray(first[name], np.float32)[tuple(slice(size) for size in shape)]
        found[name] = np.pad(part, [(0, size - have) for size, have in zip(shape, part.shape, strict=True)])
    return found


def since(first: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` less what they were at first, in float32; as they are where nothing is named as the first."""
    return {name: np.asarray(array, np.float32) - first[name] if first else array for name, array in tensors.items()}


def onto(first: Mapping[str, Tensor], changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``since``."""
    return {name: first[name] + array if first else array for name, array in changes.items()}
