"""The model families that can be split, one file a skeleton."""

from __future__ import annotations

from fedsplit.config.run import Task
from fedsplit.errors import ConfigError
from fedsplit.split.families.decoder import DECODER
from fedsplit.split.families.encoder import BERT, ROBERTA
from fedsplit.split.families.gpt2 import GPT2
from fedsplit.split.families.record import Context, Family
from fedsplit.split.families.vit import VIT

FAMILIES: tuple[Family, ...] = (DECODER, GPT2, BERT, ROBERTA, VIT)
MODEL_TYPES: tuple[str, ...] = tuple(kind for family in FAMILIES for kind in family.model_types)
"""Every supported ``model_type`` of a config.json."""


def family_of(model_type: str, source: str = "") -> Family:
    """The family of a config's ``model_type``. Raises ConfigError that names the supported ones."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    raise ConfigError(
        f"model_type: found {model_type!r}, expected one of {', '.join(MODEL_TYPES)}; choose a model of these families",
        source,
    )


def check_task(family: Family, task: Task, source: str = "") -> None:
    """Raises ConfigError when the family has no head for the task."""
    if task not in family.heads:
        raise ConfigError(
            f"model.task: found {task!r}, a {family.name} model does {' or '.join(map(repr, family.heads))}; "
            "change the task or the model",
            source,
        )


__all__ = ["FAMILIES", "MODEL_TYPES", "Context", "Family", "check_task", "family_of"]
