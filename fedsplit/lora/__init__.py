"""LoRA factors as values: low-rank algebra and adapters. Array-API code, no torch."""

from fedsplit.lora.adapter import Adapter, Head, ModuleKey, digest, flatten, select, unflatten
from fedsplit.lora.lowrank import LowRank, stack
from fedsplit.lora.streaming import RunningSum

__all__ = [
    "Adapter",
    "Head",
    "LowRank",
    "ModuleKey",
    "RunningSum",
    "digest",
    "flatten",
    "select",
    "stack",
    "unflatten",
]
