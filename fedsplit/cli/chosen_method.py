"""``--method NAME --set KEY=VALUE`` of the verbs that run or plan: another method than the run file's, for one try."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from msgspec.structs import replace

from fedsplit.config.load import anchor
from fedsplit.config.run import MethodSection, RunFile
from fedsplit.errors import ConfigError, Problem
from fedsplit.method.options import Value

MethodName: TypeAlias = Annotated[
    str, typer.Option("--method", metavar="NAME", help="Another method than the run file's, or ./FILE.py:NAME.")
]
Options: TypeAlias = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the method; may be repeated.")
]


def with_method(run: RunFile, name: str, options: Sequence[str] | None) -> RunFile:
    """The run with another method, where flags say so.

    A name replaces the whole section, since options and phases belong to the method that they were written for; without
    one ``options`` are laid over those of the run file. A file is looked up from the folder where the verb was typed.
    Raises ConfigError on an option that is not KEY=VALUE.
    """
    given = options_from(options)
    if name:
        section = anchor(replace(run, method=MethodSection(name=name, options=given)), Path().resolve()).method
    else:
        section = replace(run.method, options={**run.method.options, **given})
    return replace(run, method=section)


def flags_of(name: str, options: Sequence[str] | None) -> list[str]:
    """The same flags for a process that is started with them."""
    return (["--method", name] if name else []) + [word for one in options or () for word in ("--set", one)]


def options_from(options: Sequence[str] | None) -> dict[str, Value]:
    """``KEY=VALUE`` texts as values: what TOML reads as a number or a truth value is one, anything else is a text."""
    found: dict[str, Value] = {}
    problems = []
    for text in options or ():
        key, equals, value = (part.strip() for part in text.partition("="))
        if not (key and equals and value):
            problems.append(Problem("--set", repr(text), "KEY=VALUE", "e.g. --set weights=uniform"))
        elif key in found:
            problems.append(Problem("--set", f"{key} twice", "every option once"))
        else:
            found[key] = _value(value)
    if problems:
        raise ConfigError(problems)
    return found


def _value(text: str) -> Value:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, int | float | str) else text
