"""LoRA by peft, on the whole (empty) model: what is adapted does not depend on where the model is cut."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

from peft import LoraConfig, TaskType, inject_adapter_in_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedsplit.config.run import LoraSection, Task
from fedsplit.errors import ConfigError
from fedsplit.split.base import Base
from fedsplit.split.families import Family
from fedsplit.split.loader import trains

ADAPTER = "default"
TASK_TYPES: dict[Task, TaskType | None] = {
    "causal-lm": TaskType.CAUSAL_LM,
    "classification": TaskType.SEQ_CLS,
    "regression": TaskType.SEQ_CLS,
    "image-classification": None,
}


def inject(model: nn.Module, base: Base, task: Task, lora: LoraSection, ranks: Mapping[int, int] | None) -> None:
    """Put LoRA beside every targeted module of a meta model, in place.

    ``ranks``: another rank for some layers; 0 leaves a layer without LoRA. Raises ConfigError where a target matches
    nothing.
    """
    with warnings.catch_warnings():
        # peft warns about adapters that stay on meta and about Conv1D's orientation: both are as wanted.
        warnings.simplefilter("ignore")
        try:
            inject_adapter_in_model(peft_config(model, base, task, lora, ranks), model, low_cpu_mem_usage=True)
        except ValueError as error:
            linear = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
            found, known = ", ".join(targets(base.family, lora)), ", ".join(sorted(linear))
            raise ConfigError(
                f"lora.targets: found {found}, expected names of this model's modules ({known}), or all-linear; "
                f"peft says: {str(error).splitlines()[0]}"
            ) from None


def targets(family: Family, lora: LoraSection) -> tuple[str, ...]:
    return tuple(lora.targets) or family.targets


def peft_config(
    model: Any, base: Base, task: Task, lora: LoraSection, ranks: Mapping[int, int] | None = None
) -> LoraConfig:
    """What a user of plain peft would write. What trains in full (a classification head) gets no LoRA."""
    chosen = targets(base.family, lora)
    layer = rf"{model.base_model_prefix}\.{re.escape(base.family.layers)}\.{{}}\..*"
    skipped = [layer.format(index) for index, rank in (ranks or {}).items() if rank == 0]
    skipped += [rf"{re.escape(m)}(\..*)?" for m in sorted(full(base, task, getattr(model.config, "num_labels", None)))]
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # declared int, works with any number
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules="all-linear" if chosen == ("all-linear",) else list(chosen),
        exclude_modules="|".join(skipped) or None,
        rank_pattern={layer.format(index): rank for index, rank in (ranks or {}).items() if rank > 0},
        task_type=TASK_TYPES[task],
        bias="none",
    )


def full(base: Base, task: Task, num_labels: int | None) -> set[str]:
    """Modules that train themselves: a classification head as a whole, BERT's pooler where the checkpoint has none."""
    if task == "causal-lm":
        return set()
    names = base.names(task, num_labels)
    return {saved(name, names.prefix) for name in names.shapes if trains(base.family, names, name)}


def saved(name: str, prefix: str) -> str:
    """The module that peft trains and saves in full (``modules_to_save``) for a parameter of a head."""
    return name.rpartition(".")[0] if name.startswith(f"{prefix}.") else name.partition(".")[0]


def scaling(module: Any) -> float:
    """alpha/r (or alpha/sqrt r) of an adapted module."""
    return float(module.scaling[ADAPTER])
