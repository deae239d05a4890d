"""LoRA by peft, on a model whose weights are not loaded yet: what is adapted does not depend on where it is cut."""

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
from fedsplit.lora.peft_folder import trained_module
from fedsplit.split.base import Base
from fedsplit.split.families import Family
from fedsplit.split.loader import trains
from fedsplit.split.span import Absent

ADAPTER = "default"
ALL_LINEAR = "all-linear"
TASK_TYPES: dict[Task, TaskType | None] = {
    "causal-lm": TaskType.CAUSAL_LM,
    "classification": TaskType.SEQ_CLS,
    "regression": TaskType.SEQ_CLS,
    "image-classification": None,
}


def inject(model: nn.Module, base: Base, task: Task, lora: LoraSection, ranks: Mapping[int, int] | None) -> None:
    """Put LoRA beside every targeted module that is present in a (partial) meta model, in place.

    ``ranks``: another rank for some layers; 0 leaves a layer without LoRA. Raises ConfigError where a target matches
    nothing in the whole model, or a module that LoRA cannot adapt.
    """
    config = peft_config(model, base, task, lora, ranks)
    config.init_lora_weights = False  # values come with each call
    if not _present(model, config):
        _check_targets(base, task, lora)
        return
    with warnings.catch_warnings():
        # peft warns about adapters that stay on meta and about Conv1D's orientation: both are as wanted.
        warnings.simplefilter("ignore")
        try:
            inject_adapter_in_model(config, model, low_cpu_mem_usage=True)
        except ValueError as error:
            raise _refused(base, task, lora, str(error).splitlines()[0]) from None


def _present(model: nn.Module, config: LoraConfig) -> bool:
    """Whether peft would find anything to adapt: it takes nothing for a mistake, a segment may hold nothing."""
    chosen, skipped = config.target_modules, config.exclude_modules
    for name, module in model.named_modules():
        if isinstance(skipped, str) and re.fullmatch(skipped, name):
            continue
        if chosen == ALL_LINEAR:
            if isinstance(module, nn.Linear | Conv1D) and name != "lm_head":
                return True
        elif any(name == target or name.endswith(f".{target}") for target in chosen or ()):
            return True
    return False


def _check_targets(base: Base, task: Task, lora: LoraSection) -> None:
    modules = {name.rpartition(".")[0] for name in base.names(task).shapes}
    chosen = targets(base.family, lora)
    if chosen != (ALL_LINEAR,) and not any(m == t or m.endswith(f".{t}") for m in modules for t in chosen):
        raise _refused(base, task, lora, "no module of that name")


def _refused(base: Base, task: Task, lora: LoraSection, reason: str) -> ConfigError:
    shapes = base.names(task).shapes
    linear = {name.split(".")[-2] for name, shape in shapes.items() if len(shape) == 2 and name.endswith(".weight")}
    found, known = ", ".join(targets(base.family, lora)), ", ".join(sorted(linear))
    return ConfigError(f"lora.targets: found {found} ({reason}), expected {ALL_LINEAR} or some of {known}")


def targets(family: Family, lora: LoraSection) -> tuple[str, ...]:
    return tuple(lora.targets) or family.targets


def peft_config(
    model: Any, base: Base, task: Task, lora: LoraSection, ranks: Mapping[int, int] | None = None
) -> LoraConfig:
    """What a user of plain peft would write. What trains in full (a classification head) gets no LoRA."""
    chosen = targets(base.family, lora)
    layer = rf"{model.base_model_prefix}\.{re.escape(base.family.layers)}\.{{}}\..*"
    skipped = [layer.format(index) for index, rank in (ranks or {}).items() if rank == 0]
    skipped += [re.escape(name) for name, module in model.named_modules() if isinstance(module, Absent)]
    skipped += [rf"{re.escape(m)}(\..*)?" for m in sorted(full(base, task, getattr(model.config, "num_labels", None)))]
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # declared int, works with any number
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=ALL_LINEAR if chosen == (ALL_LINEAR,) else list(chosen),
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
    return {trained_module(name, names.prefix) for name in names.shapes if trains(base.family, names, name)}
