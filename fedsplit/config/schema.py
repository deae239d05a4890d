"""JSON schemas of the files people write, with the meaning of every key: editors complete and check with them."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import msgspec
from msgspec import Struct

from fedsplit.config.describe import keys

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def schema(struct: type[Struct]) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a Struct and all it refers to."""
    made = {"$schema": _DRAFT, "title": struct.__name__, **msgspec.json.schema(struct)}
    for name, definition in made.get("$defs", {}).items():
        kind = _named(name, struct)
        for key in keys(kind) if kind else ():
            if key.text and key.name in definition.get("properties", {}):
                definition["properties"][key.name]["description"] = key.text
    return made


def _named(name: str, root: type[Struct]) -> type[Struct] | None:
    """The Struct of a definition: it lives in the root's module, or that module imports it."""
    found = getattr(importlib.import_module(root.__module__), name, None)
    return found if inspect.isclass(found) and issubclass(found, Struct) else None
