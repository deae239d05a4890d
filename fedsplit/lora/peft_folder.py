"""A peft adapter folder written without peft or torch: factors as safetensors, and the adapter_config.json beside it.

What a device exports of its own. Linear layers and embeddings; ``split.lora.save_peft`` writes every kind.

Legend: M out, N in, R rank.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from safetensors.numpy import save

from fedsplit.config.run import LoraSection, RunFile, Task
from fedsplit.errors import ConfigError, Problem
from fedsplit.lora.adapter import Adapter, Head, ModuleKey
from fedsplit.lora.lowrank import LowRank
from fedsplit.plan.model import ModelCard
from fedsplit.plan.types import ClientPlan

CARD = "fedsplit.json"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_FILES = frozenset({CARD, "README.md", CONFIG, WEIGHTS})
"""Names that an exported adapter's folder may have."""
_TASK_TYPES: dict[Task, str | None] = {
    "causal-lm": "CAUSAL_LM",
    "classification": "SEQ_CLS",
    "regression": "SEQ_CLS",
    "image-classification": None,
}
_EMBEDDINGS = {"embed_tokens", "wte", "wpe", "word_embeddings", "position_embeddings", "token_type_embeddings"}
_LINEAR = {"lm_head", "dense"}
"""Of modules outside the layers, by the last word of their names."""


class Card(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What peft does not keep. ``model``: what the run file called the base; ``base``: the identity of its weights.
    ``lost``: what a lower rank or rounded sums left out of what was learnt, as a share of its length (Frobenius).
    ``client``: whose own it is."""

    task: Task
    model: str
    base: str
    labels: tuple[str, ...] = ()
    max_length: int = 128
    run: str = ""
    round: int = 0
    metrics: dict[str, float | None] = {}
    lost: float = 0.0
    client: str = ""


class Facts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of a run and its base a folder needs to know beside the factors.

    ``layers``: where the list of layers is (``model.layers``). ``elsewhere``: layers that the server has, or another
    device; in topology ``v`` the head is there, too. ``transposed``: the base stores its weights in x out (GPT-2).
    """

    task: Task
    model: str
    base: str
    labels: tuple[str, ...]
    max_length: int
    lora: LoraSection
    layers: str
    elsewhere: tuple[int, ...]
    transposed: bool

    @staticmethod
    def of(run: RunFile, plan: ClientPlan, card: ModelCard, base: str) -> Facts:
        """``base``: the identity of its weights."""
        model, here = run.model, {one.layer for one in plan.layers if one.place == "client"}
        return Facts(
            task=model.task,
            model=model.path,
            base=base,
            labels=model.labels,
            max_length=model.max_length,
            lora=run.lora,
            layers=card.layer_prefix,
            elsewhere=tuple(layer for layer in range(card.num_layers) if layer not in here),
            transposed=card.family == "gpt2",
        )


def scale_of(lora: LoraSection, rank: int) -> float:
    """alpha/r (alpha/sqrt r with rsLoRA) of factors of this rank; 1 for empty ones, which add nothing."""
    return lora.alpha / (math.sqrt(rank) if lora.rslora else rank) if rank else 1.0


def write_adapter(adapter: Adapter, head: Head, facts: Facts, folder: Path) -> None:
    """Write the two files into the existing ``folder``; ``PeftModel.from_pretrained`` on the untouched base loads them.

    Raises ConfigError for a module that only ``save_peft`` can write.
    """
    tensors: dict[str, NDArray[Any]] = {}
    ranks: dict[str, int] = {}
    for key, part in sorted(adapter.items()):
        module = key.path if key.layer < 0 else f"{facts.layers}.{key.layer}.{key.path}"
        ranks[module] = part.rank
        tensors |= {f"base_model.model.{name}": array for name, array in _named(module, key, part, facts).items()}
    tensors |= {f"base_model.model.{name}": _plain(array) for name, array in head.items()}
    (folder / CONFIG).write_text(json.dumps(_config(ranks, head, facts), indent=2), "utf-8")
    # Not save_file: what it writes nobody but its owner may read.
    (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))


def _named(module: str, key: ModuleKey, part: LowRank, facts: Facts) -> dict[str, NDArray[Any]]:
    last = module.rpartition(".")[2]
    if key.layer < 0 and last not in _EMBEDDINGS | _LINEAR:
        fix = "export the run directory on the server, or ask through fedsplit predict"
        raise ConfigError([Problem("lora.targets", module, "linear layers and embeddings", fix)])
    a_RN, b_MR = _plain(part.A_RN), _plain(part.B_MR) / np.float32(scale_of(facts.lora, part.rank))
    if key.layer < 0 and last in _EMBEDDINGS:
        return {f"{module}.lora_embedding_A": a_RN, f"{module}.lora_embedding_B": b_MR}
    return {f"{module}.lora_A.weight": a_RN, f"{module}.lora_B.weight": b_MR}


def _config(ranks: dict[str, int], head: Head, facts: Facts) -> dict[str, Any]:
    backbone, every = facts.layers.partition(".")[0], list(ranks.values())
    common = max(set(every), key=every.count, default=facts.lora.rank)
    return {
        "peft_type": "LORA",
        "task_type": _TASK_TYPES[facts.task],
        "base_model_name_or_path": facts.model,
        "r": common,
        "lora_alpha": facts.lora.alpha,
        "lora_dropout": facts.lora.dropout,
        "use_rslora": facts.lora.rslora,
        "target_modules": sorted(ranks),
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != common},
        "modules_to_save": sorted({trained_module(name, backbone) for name in head}) or None,
        "fan_in_fan_out": facts.transposed,
        "inference_mode": True,
        "bias": "none",
    }


def trained_module(name: str, backbone: str) -> str:
    """The module that peft trains and saves in full (``modules_to_save``) for a parameter of a head."""
    return name.rpartition(".")[0] if name.startswith(f"{backbone}.") else name.partition(".")[0]


def _plain(array: Any) -> NDArray[np.float32]:
    return np.ascontiguousarray(array, np.float32)


def refuse_other_files(out: Path, ours: frozenset[str] = ADAPTER_FILES) -> None:
    """An export's folder is replaced as a whole: nothing that somebody else put there may go with it. Raises
    ConfigError, naming a file that is not among ``ours``."""
    if out.exists() and not out.is_dir():
        raise ConfigError([Problem(str(out), "a file", "a new folder")])
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    shards = {name for name in names if name.startswith("model-") or name == "model.safetensors"}
    others = sorted(names - ours - (shards if "config.json" in ours else set()))
    if others or (names and CARD not in names):
        found = f"a folder with other files ({(others or sorted(names))[0]})"
        raise ConfigError([Problem(str(out), found, "a new folder, or one that fedsplit export wrote the same way")])
