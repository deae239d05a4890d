"""Stock parts by slot and name, as a run file asks for them: ``[method.but] server_opt = "fedadam"``.

There is no list to edit: a part is on the shelf by being defined in a module of stock parts. A function that returns a
part is one with options, ``ranks = {name = "per_device", fit = "slice"}``.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from types import ModuleType
from typing import Any, get_type_hints

from fedsplit.errors import ConfigError, Problem
from fedsplit.method import chosen, merge, ranks, rooms, server_opt, stock, weights
from fedsplit.method.options import Value, checked, made, options_of
from fedsplit.method.record import KINDS, SLOTS, Method

_MODULES: tuple[ModuleType, ...] = (stock, chosen, rooms, ranks, weights, merge, server_opt)
Asked = Mapping[str, str | Mapping[str, Value]]
"""Slot to the name of a stock part, or to a table of its ``name`` and its options."""


@cache
def shelf() -> Mapping[str, Mapping[str, Any]]:
    """``{slot: {name: part, or function that makes one}}``, the default first."""
    found: dict[str, dict[str, Any]] = {}
    defaults = Method()
    for slot, kind in KINDS.items():
        parts = {getattr(defaults, slot).name: getattr(defaults, slot)}
        for module in _MODULES:
            held: list[Any] = [part for part in vars(module).values() if isinstance(part, kind)]
            parts |= {part.name: part for part in held}
            parts |= {name: make for name, make in vars(module).items() if _makes(make, kind, module)}
        found[slot] = parts
    return found


def parts_from(asked: Asked, path: str = "method.but") -> dict[str, Any]:
    """The parts that ``asked`` names, for ``Method.but``. Raises ConfigError with everything that is wrong."""
    found: dict[str, Any] = {}
    problems: list[Problem] = []
    for slot, given in asked.items():
        try:
            found[slot] = _part(slot, given, f"{path}.{slot}")
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return found


def _part(slot: str, given: str | Mapping[str, Value], path: str) -> Any:
    if slot not in SLOTS:
        raise ConfigError([Problem(path, "no part of a method", f"one of {', '.join(SLOTS)}", _near(slot, SLOTS))])
    options = {"name": given} if isinstance(given, str) else dict(given)
    name, known = options.pop("name", None), shelf()[slot]
    if name is None:
        raise ConfigError([Problem(path, "a table without a name", f"name = one of {', '.join(known)}")])
    if name not in known:
        raise ConfigError([Problem(path, repr(name), f"one of {', '.join(known)}", _near(str(name), known))])
    part = known[str(name)]
    if inspect.isfunction(part):
        return made(part, _complete(part, checked(part, options, f"part {name}", path=path), path), path)
    if options:
        raise ConfigError(
            [Problem(path, f"options {', '.join(options)}", f"none: {name} has no options", "remove them")]
        )
    return part


def _complete(make: Callable[..., Any], arguments: dict[str, Value], path: str) -> dict[str, Value]:
    words = {option.name: option.type for option in options_of(make, skip=True)}
    needed = [one.name for one in inspect.signature(make).parameters.values() if one.default is one.empty]
    if missing := [name for name in needed if name not in arguments]:
        raise ConfigError([Problem(f"{path}.{name}", "nothing", words.get(name, "a value")) for name in missing])
    return arguments


def _makes(make: Callable[..., Any] | Any, kind: type, module: ModuleType) -> bool:
    own = inspect.isfunction(make) and make.__module__ == module.__name__ and not make.__name__.startswith("_")
    return own and get_type_hints(make).get("return") is kind


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {near[0]}?" if near else ""
