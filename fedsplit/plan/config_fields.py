"""What a ``config.json`` must say to become a card, and what it may say: every field that is wrong, at once."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from fedsplit.errors import Problem
from fedsplit.plan.families import FAMILIES, KV_HEADS, Config

TASKS = ("causal-lm", "classification", "regression", "image-classification")
SIZES = {
    "gpt2": ("n_embd", "n_layer", "n_head", "vocab_size"),
    "vit": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
}
TEXT_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
COUNTS = ("head_dim", "num_key_value_heads", "max_position_embeddings", "n_inner", "n_positions", "num_channels")
ALL_HEADS = ("gpt2", "bert", "roberta", "vit")
"""Families in which every head has its own key and value."""
SHARES = ("attention_dropout", "attn_pdrop", "resid_pdrop", "attention_probs_dropout_prob", "hidden_dropout_prob")
"""Fields that a config may leave out, or set to null: COUNTS are whole numbers above 0, SHARES of what is dropped."""

FIX = "take the config.json of the model itself"


def config_problems(config: Config, task: str, num_labels: int) -> list[Problem]:
    """Everything that keeps ``config`` from becoming a card."""
    family = str(config.get("model_type", ""))
    if family not in FAMILIES:
        near = difflib.get_close_matches(family, FAMILIES, 1)
        fix = f"the nearest supported family is {near[0]}" if near else "use a model of a supported family"
        return [Problem("model_type", repr(family), f"one of {', '.join(FAMILIES)}", fix)]
    found = [*_asked(family, task, num_labels)]
    sizes = [*_sizes(config, SIZES.get(family, TEXT_SIZES))]
    found += [*sizes, *_optional(config)]
    return found if sizes else [*found, *_heads(config, family), *_patches(config, family)]


def _asked(family: str, task: str, num_labels: int) -> Iterator[Problem]:
    if task not in TASKS:
        yield Problem("model.task", repr(task), f"one of {', '.join(TASKS)}")
    elif task not in _tasks(family):
        yield Problem("model.task", f"{task!r} with a {family} model", f"one of {', '.join(_tasks(family))}")
    if num_labels < 0:
        yield Problem("model.labels", str(num_labels), "a number of classes")


def _tasks(family: str) -> tuple[str, ...]:
    if family == "vit":
        return ("image-classification",)
    classify = ("classification", "regression")
    return classify if family in ("bert", "roberta") else ("causal-lm", *classify)


def _sizes(config: Config, keys: tuple[str, ...]) -> Iterator[Problem]:
    for key in keys:
        value = config.get(key)
        if not _counts(value):
            what = "nothing" if value is None else repr(value)
            yield Problem(key, what, "a whole number above 0", FIX)


def _optional(config: Config) -> Iterator[Problem]:
    for key in COUNTS:
        value = config.get(key)
        if value is not None and not _counts(value):
            yield Problem(key, repr(value), "a whole number above 0, or nothing", FIX)
    types = config.get("type_vocab_size")
    if types is not None and types != 0 and not _counts(types):
        yield Problem("type_vocab_size", repr(types), "a whole number, or nothing", FIX)
    for key in SHARES:
        value = config.get(key)
        if value is not None and not _share(value):
            yield Problem(key, repr(value), "a number from 0 to 1, or nothing", FIX)
    names = config.get("id2label")
    if names is not None and not isinstance(names, Mapping):
        yield Problem("id2label", repr(names), "a table of class names, or nothing", FIX)


def _heads(config: Config, family: str) -> Iterator[Problem]:
    hidden, heads = _either(config, "hidden_size", "n_embd"), _either(config, "num_attention_heads", "n_head")
    if hidden % heads and not config.get("head_dim"):
        yield Problem("num_attention_heads", str(heads), f"a divisor of the hidden size {hidden}")
    given = config.get("num_key_value_heads")
    kv = given or KV_HEADS.get(family, heads)
    if family not in ALL_HEADS and _counts(kv) and heads % kv:
        what = str(kv) if given else f"nothing, which means {kv}"
        yield Problem("num_key_value_heads", what, f"a divisor of the {heads} attention heads", FIX)


def _patches(config: Config, family: str) -> Iterator[Problem]:
    if family != "vit":
        return
    pairs = {key: config.get(key, usual) for key, usual in (("image_size", 224), ("patch_size", 16))}
    wrong = [key for key, value in pairs.items() if not _pair(value)]
    for key in wrong:
        yield Problem(key, repr(pairs[key]), "a whole number above 0, or two of them", FIX)
    image, patch = (() if wrong else _both(value) for value in pairs.values())
    if any(side < piece for side, piece in zip(image, patch, strict=True)):
        yield Problem("patch_size", repr(pairs["patch_size"]), f"at most image_size, {pairs['image_size']}", FIX)


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= 1


def _pair(value: Any) -> bool:
    return _counts(value) or (isinstance(value, list | tuple) and len(value) == 2 and all(map(_counts, value)))


def _both(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _either(config: Config, *names: str) -> int:
    return next(int(config[name]) for name in names if config.get(name) is not None)
