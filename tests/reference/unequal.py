"""Rounds in which clients train other layers, or other ranks: whole peft models, plain SGD, dense products in float64.

An oracle, no product code. Freezing is ``requires_grad = False`` on the layers that rest; ranks are peft's own
``rank_pattern``; a client of rank R starts from the best approximation of rank R (dense SVD) of the global product.

Legend: M out, N in, R rank. Modules are named (layer, path).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

Pairs = dict[Any, tuple[np.ndarray, np.ndarray]]
"""``{(layer, path): (B, A)}``, alpha / R inside B."""
Batch = tuple[Tensor, Tensor, Tensor]
"""Ids, attention mask and labels (-100: none), each (rows, tokens)."""


def trained(
    folder: Path,
    lora: Mapping[str, Any],
    ranks: Mapping[int, int],
    resting: set[int],
    start: Pairs,
    steps: Sequence[Sequence[Batch]],
    rate: float,
) -> Pairs:
    """The factors of the layers that do not rest, after these SGD steps. ``lora``: peft's r, lora_alpha, targets."""
    pattern = {rf".*\.layers\.{layer}\..*": rank for layer, rank in ranks.items()}
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model = get_peft_model(model, LoraConfig(**lora, rank_pattern=pattern, task_type="CAUSAL_LM"))
    modules = {_named(name): module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    for key, module in modules.items():
        b, a, scale = _factors(module)
        b.data, a.data = torch.tensor(start[key][0] / scale).float(), torch.tensor(start[key][1]).float()
        for leaf in (a, b):
            leaf.requires_grad_(key[0] not in resting)
    leaves = [leaf for leaf in model.parameters() if leaf.requires_grad]
    for step in steps:
        _loss(model, step).backward()
        for leaf in leaves:
            leaf.data -= rate * leaf.grad
            leaf.grad = None
    after = {}
    for key, module in modules.items():
        if key[0] not in resting:
            b, a, scale = _factors(module)
            after[key] = (b.detach().double().numpy() * scale, a.detach().double().numpy())
    return after


def cut(pairs: Pairs, dense: Mapping[Any, np.ndarray], ranks: Mapping[int, int]) -> Pairs:
    """What a client of these ranks starts from; a product of zero keeps the first rows of A, which can go on."""
    given = {}
    for key, (_, old_A) in pairs.items():
        rank = ranks[key[0]]
        if np.any(dense[key]):
            u, s, vt = np.linalg.svd(dense[key], full_matrices=False)
            given[key] = (u[:, :rank] * s[:rank], vt[:rank])
        else:
            given[key] = (np.zeros((dense[key].shape[0], rank)), old_A[:rank].astype(np.float64))
    return given


def _loss(model: Any, step: Sequence[Batch]) -> Tensor:
    """The mean over all label tokens of the step, all micro-batches together."""
    total, tokens = torch.zeros(()), 0
    for ids, mask, labels in step:
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        wanted = labels[:, 1:]
        tokens += int((wanted != -100).sum())
        total = total + cross_entropy(logits.reshape(-1, logits.shape[-1]), wanted.reshape(-1), reduction="sum")
    return total / tokens


def _named(name: str) -> tuple[int, str]:
    found = re.search(r"\.layers\.(\d+)\.(.*)$", name)
    assert found
    return int(found[1]), found[2]


def _factors(module: Any) -> tuple[Any, Any, float]:
    return module.lora_B["default"].weight, module.lora_A["default"].weight, module.scaling["default"]
