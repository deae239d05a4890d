"""LoRA factors as values: low-rank algebra and adapters. Array-API code, no torch."""

from fedsplit.lora.adapter import Adapter, Head, ModuleKey, digest, flatten, select, unflatten
from fedsplit.lora.lowrank import LowRank, stack

__all__ = ["Adapter", "Head", "LowRank", "ModuleKey", "digest", "flatten", "select", "stack", "unflatten"]
