"""Walk a decoded TOML document against the Struct types and report everything that does not fit.

msgspec stops at the first error; a person who writes a run file wants all of them. The walk also returns what is left
when the wrong values are taken out, so that the rules over several fields can still be checked.
"""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from msgspec import NODEFAULT, Struct, inspect

from fedsplit.errors import Problem

_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a table",
    type(None): "nothing",
}


class Walked(NamedTuple):
    """``value`` holds only what fits; ``problems`` say what did not."""

    value: Any
    problems: list[Problem]


_OTHER_NAMES = {
    "lr": "learning_rate",
    "batch_size": "batch",
    "epochs": "rounds",
    "num_rounds": "rounds",
    "local_steps": "steps",
    "accumulation": "micro_batches",
    "gradient_accumulation_steps": "micro_batches",
    "max_grad_norm": "clip",
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "use_rslora": "rslora",
    "num_clients": "clients",
    "max_seq_length": "max_length",
    "num_labels": "labels",
}
"""What other tools call our keys."""

_WRONG = object()
"""Stands for a value that does not fit; its key is left out of the result."""


def walk(document: Mapping[str, Any], struct: type[Struct]) -> Walked:
    """All problems of ``document`` against ``struct``: unknown keys, missing keys, wrong types, unknown words.

    A missing or wrong required value is replaced by an empty one of its type in ``value``.
    """
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    problems: list[Problem] = []
    value = _struct(document, info, "", problems, homes(info))
    return Walked(value, problems)


def homes(info: inspect.StructType) -> dict[str, list[str]]:
    """Which sections know a key: ``{"rank": ["lora"], …}``, to tell somebody who put it in the wrong one."""
    found: dict[str, list[str]] = {}
    for section in info.fields:
        if isinstance(section.type, inspect.StructType):
            for one in section.type.fields:
                found.setdefault(one.encode_name, []).append(section.encode_name)
    return found


def _struct(
    value: Any, info: inspect.StructType, path: str, problems: list[Problem], known: dict[str, list[str]]
) -> dict[str, Any]:
    fields = {one.encode_name: one for one in info.fields}
    kept: dict[str, Any] = {}
    for key, given in value.items():
        here = f"{path}.{key}" if path else key
        if key not in fields:
            problems.append(Problem(here, "an unknown key", _keys(list(fields)), _suggest(key, list(fields), known)))
            continue
        fitted = _value(given, fields[key].type, here, problems, known)
        if fitted is not _WRONG:
            kept[key] = fitted
    for key, one in fields.items():
        if one.default is NODEFAULT and one.default_factory is NODEFAULT and key not in kept:
            here = f"{path}.{key}" if path else key
            if key not in value:
                problems.append(Problem(here, "nothing", expected(one.type), f"add {_example(key, one.type, path)}"))
            kept[key] = _empty(one.type)
    return kept


def _value(given: Any, info: inspect.Type, path: str, problems: list[Problem], known: dict[str, list[str]]) -> Any:
    """``given`` as the type wants it, or ``_WRONG`` after a problem was noted."""
    if isinstance(info, inspect.UnionType):
        for option in info.types:
            attempt: list[Problem] = []
            fitted = _value(given, option, path, attempt, known)
            if fitted is not _WRONG and not attempt:
                return fitted
        solid = [option for option in info.types if not isinstance(option, inspect.NoneType)]
        if len(solid) == 1:
            return _value(given, solid[0], path, problems, known)
    elif isinstance(info, inspect.StructType) and isinstance(given, dict):
        return _struct(given, info, path, problems, known)
    elif isinstance(info, inspect.VarTupleType | inspect.ListType) and isinstance(given, list):
        return _items([(one, info.item_type) for one in given], path, problems, known)
    elif isinstance(info, inspect.TupleType) and isinstance(given, list) and len(given) == len(info.item_types):
        before = len(problems)
        items = _items(list(zip(given, info.item_types, strict=True)), path, problems, known)
        return items if len(problems) == before else _WRONG
    elif isinstance(info, inspect.DictType) and isinstance(given, dict):
        fitted_by_key = {
            key: _value(one, info.value_type, f"{path}.{key}", problems, known) for key, one in given.items()
        }
        return {key: one for key, one in fitted_by_key.items() if one is not _WRONG}
    elif _scalar_fits(given, info):
        return float(given) if isinstance(info, inspect.FloatType) else given
    problems.append(Problem(path, found(given), expected(info), _word(given, info)))
    return _WRONG


def _items(
    pairs: list[tuple[Any, inspect.Type]], path: str, problems: list[Problem], known: dict[str, list[str]]
) -> list[Any]:
    items = [_value(one, info, f"{path}[{i}]", problems, known) for i, (one, info) in enumerate(pairs)]
    return [one for one in items if one is not _WRONG]


def _scalar_fits(given: Any, info: inspect.Type) -> bool:
    match info:
        case inspect.LiteralType(values=values):
            return any(type(given) is type(value) and given == value for value in values)
        case inspect.BoolType():
            return isinstance(given, bool)
        case inspect.IntType():
            return isinstance(given, int) and not isinstance(given, bool)
        case inspect.FloatType():
            return isinstance(given, int | float) and not isinstance(given, bool)
        case inspect.StrType():
            return isinstance(given, str)
        case inspect.NoneType():
            return given is None
    return False


def found(given: Any) -> str:
    """A value in words, short enough for one line."""
    if isinstance(given, bool):
        return "true" if given else "false"
    if isinstance(given, str):
        return f'"{given}"' if len(given) <= 60 else f'"{given[:57]}…"'
    if isinstance(given, datetime.date | datetime.time):
        return f"the date or time {given}"
    if isinstance(given, dict | list):
        return f"{_KINDS[type(given)]} of {len(given)}"
    return str(given)


def expected(info: inspect.Type) -> str:
    """What a type takes, in words."""
    match info:
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(map(found, values))
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
            return f"a list, each item {expected(item)}"
        case inspect.TupleType(item_types=items):
            kinds = [expected(item) for item in items]
            return f"a list of {len(kinds)}, " + (f"each {kinds[0]}" if len(set(kinds)) == 1 else ", ".join(kinds))
        case inspect.UnionType(types=types):
            return " or ".join(expected(one) for one in types if not isinstance(one, inspect.NoneType))
        case inspect.StructType() | inspect.DictType():
            return "a table"
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "a whole number"
        case inspect.FloatType():
            return "a number"
    return "a text"


def _empty(info: inspect.Type) -> Any:
    if isinstance(info, inspect.StructType):
        return _struct({}, info, "", [], {})
    return "" if isinstance(info, inspect.StrType) else 0


def _example(key: str, info: inspect.Type, path: str) -> str:
    if isinstance(info, inspect.StructType):
        return f"a section [{key}]"
    value = "…" if isinstance(info, inspect.IntType | inspect.FloatType | inspect.BoolType) else '"…"'
    return f"{key} = {value}" + (f" to [{path}]" if path else "")


def _word(given: Any, info: inspect.Type) -> str:
    """The nearest of the words that are allowed, or how the value is written in TOML."""
    numbers = isinstance(info, inspect.LiteralType) and all(isinstance(value, int) for value in info.values)
    if isinstance(given, str) and (numbers or isinstance(info, inspect.IntType | inspect.FloatType | inspect.BoolType)):
        return "write it without quotes"
    if isinstance(info, inspect.LiteralType) and isinstance(given, str):
        near = difflib.get_close_matches(given, [str(value) for value in info.values], 1)
        return f'did you mean "{near[0]}"?' if near else ""
    if isinstance(info, inspect.StrType) and isinstance(given, int | float):
        return "write it in quotes"
    return ""


def _keys(keys: list[str]) -> str:
    return "one of " + ", ".join(keys)


def _suggest(key: str, keys: list[str], known: dict[str, list[str]]) -> str:
    key = _OTHER_NAMES.get(key, key)
    near = difflib.get_close_matches(key, keys, 1, 0.6)
    if near:
        return f'did you mean "{near[0]}"?'
    if key in known:
        return "it belongs in " + " or ".join(f"[{section}]" for section in known[key])
    far = difflib.get_close_matches(key, list(known), 1, 0.75)
    return f'did you mean "{far[0]}" in [{known[far[0]][0]}]?' if far else "remove it"
