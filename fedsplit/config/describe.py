"""What every key of a Struct means, read from the text under the field, so that it is written down once.

The run file that ``fedsplit new`` writes, the JSON schemas and ``docs/run-file.md`` all take their words from here.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from typing import Any, NamedTuple

import msgspec
from msgspec import NODEFAULT, Struct

from fedsplit.config.run import RunFile
from fedsplit.config.shape import expected


class Key(NamedTuple):
    """One field: its values in words, its default (``NODEFAULT`` if it must be given), and what it means."""

    name: str
    values: str
    default: Any
    text: str


def meaning(struct: type[Struct]) -> str:
    """The first paragraph of a Struct's docstring on one line."""
    return " ".join((inspect.getdoc(struct) or "").split("\n\n")[0].split())


@cache
def keys(struct: type[Struct]) -> tuple[Key, ...]:
    """The fields of a Struct in their order; texts are empty where Python's sources are not installed."""
    texts = _texts(struct)
    found = []
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    for one in info.fields:
        made = one.default_factory is not NODEFAULT
        default = one.default_factory() if made else one.default
        found.append(Key(one.encode_name, expected(one.type), default, texts.get(one.name, "")))
    return tuple(found)


def _texts(struct: type[Struct]) -> dict[str, str]:
    """Field name to the string that stands under it."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(struct))).body[0]
    except (OSError, SyntaxError, TypeError):
        return {}
    texts: dict[str, str] = {}
    assert isinstance(body, ast.ClassDef)
    for field, under in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(under, ast.Expr)
            and isinstance(under.value, ast.Constant)
            and isinstance(under.value.value, str)
        ):
            texts[field.target.id] = " ".join(under.value.value.replace("``", "").split())
    return texts


def markdown() -> str:
    """The reference of the run file: a table a section."""
    parts = []
    info = msgspec.inspect.type_info(RunFile)
    assert isinstance(info, msgspec.inspect.StructType)
    for section in info.fields:
        kind = section.type
        many = isinstance(kind, msgspec.inspect.VarTupleType)
        if isinstance(kind, msgspec.inspect.VarTupleType):
            kind = kind.item_type
        assert isinstance(kind, msgspec.inspect.StructType)
        name = f"[[{section.encode_name}]]" if many else f"[{section.encode_name}]"
        lines = [
            f"### `{name}`",
            "",
            meaning(kind.cls),
            "",
            "| key | values | default | meaning |",
            "|---|---|---|---|",
        ]
        lines += [_line(key) for key in keys(kind.cls)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _line(key: Key) -> str:
    default = "**required**" if key.default is NODEFAULT else f"`{shown(key.default)}`"
    return f"| `{key.name}` | {key.values.replace('|', '/')} | {default} | {key.text} |"


def shown(value: Any) -> str:
    """A value as TOML writes it; what has no default there is left empty."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(shown(one) for one in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {shown(one)}" for key, one in value.items()) + "}"
    return f"{value:_}" if isinstance(value, int) and abs(value) >= 100_000 else str(value)
