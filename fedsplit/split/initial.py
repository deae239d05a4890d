"""First values of trainable tensors, keyed by name: the same on every machine and for every cut."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fedsplit.seeds import generator


def draw(name: str, shape: tuple[int, ...], run_seed: int, std: float) -> Tensor:
    """A float32 tensor for the parameter ``name``.

    LoRA A is uniform in ±1/sqrt(fan in), B zero, as in peft (Kaiming with a = sqrt 5); for an embedding peft has A zero
    and B normal. A head's weights are normal with ``std``, its biases zero.
    """
    random = generator(run_seed, "initial", name)
    if ".lora_embedding_A" in name or ".lora_B" in name or name.endswith(".bias"):
        values = np.zeros(shape, np.float32)
    elif ".lora_embedding_B" in name:
        values = random.standard_normal(shape, np.float32)
    elif ".lora_A" in name:
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        values = ((2 * random.random(shape, np.float32) - 1) * bound).astype(np.float32)
    else:
        values = (random.standard_normal(shape, np.float32) * std).astype(np.float32)
    return torch.from_numpy(values)
