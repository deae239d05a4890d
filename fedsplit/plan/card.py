"""From a parsed ``config.json`` to a ``ModelCard``, before any weight is downloaded."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from fedsplit.errors import ConfigError, Problem
from fedsplit.plan.config_fields import config_problems
from fedsplit.plan.families import FAMILIES
from fedsplit.plan.model import ModelCard, lora_params

__all__ = ["ModelCard", "card", "check_rank", "check_targets", "lora_params"]


def card(
    config: Mapping[str, Any], task: str = "causal-lm", num_labels: int = 0, source: str = "config.json"
) -> ModelCard:
    """The card of the model that ``config`` describes; ``source`` names it in errors.

    ``num_labels``: classes; 0 takes 1 for regression, else the number of names in the config's ``id2label``, else 2.
    Raises ConfigError: unsupported family or task, missing or impossible fields, all at once.
    """
    problems = config_problems(config, task, num_labels)
    if problems:
        raise ConfigError(problems, source)
    labels = num_labels or (1 if task == "regression" else len(config.get("id2label") or ()) or 2)
    return FAMILIES[str(config["model_type"])](config, task, 0 if task == "causal-lm" else labels)


def check_targets(card: ModelCard, targets: Sequence[str]) -> None:
    """Refuse targets that select nothing in any layer.

    Raises ConfigError: every unknown target with the nearest module of the model.
    """
    if tuple(targets) in ((), ("all-linear",)):
        return
    names = [linear.path for linear in card.linears]
    short = [name.rsplit(".", 1)[-1] for name in names]
    problems = []
    for index, target in enumerate(targets):
        if any(card.adapted((target,), layer) for layer in range(card.num_layers)):
            continue
        near = difflib.get_close_matches(target, short, 1)
        fix = f"did you mean {near[0]!r}?" if near else "leave the list empty for query and value"
        problems.append(Problem(f"lora.targets[{index}]", repr(target), f"one of {', '.join(names)}", fix))
    if problems:
        raise ConfigError(problems, f"{card.family} model")


def check_rank(card: ModelCard, targets: Sequence[str], rank: int, ranks: Sequence[int] = ()) -> None:
    """Refuse ranks that a module cannot have: B A has at most min(M, N), more components cost and add nothing.

    ``rank``: ``lora.rank``; ``ranks``: ``plan.ranks``. Raises ConfigError with the smallest module.
    """
    chosen = [linear for layer in range(card.num_layers) for linear in card.adapted(targets, layer)]
    if not chosen:
        return
    least = min(chosen, key=lambda linear: min(linear.out, linear.inp))
    largest = min(least.out, least.inp)
    fix = f"{least.path} is {least.out} x {least.inp}; lower it, or choose other lora.targets"
    asked = {"lora.rank": rank, **{f"plan.ranks[{index}]": one for index, one in enumerate(ranks)}}
    wrong = [(path, one) for path, one in asked.items() if one > largest]
    if wrong:
        raise ConfigError([Problem(path, str(one), f"at most {largest}", fix) for path, one in wrong])
