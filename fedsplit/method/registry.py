"""Finding methods by name: the files of ``fedsplit.methods``, installed plug-ins, and a file of one's own.

There is no list to edit. A factory carries its card; looking for methods means looking into modules for factories.

* ``fedavg``: a module of ``fedsplit.methods``.
* a plug-in: an entry point of the group ``fedsplit.methods`` that names a factory.
* ``./mine.py:name``: a file beside the run file (``own_file.py``).
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from fedsplit.errors import ConfigError, Problem
from fedsplit.method.card import Card, Factory, factories_of
from fedsplit.method.check import check
from fedsplit.method.options import Value
from fedsplit.method.own_code import FAILURES
from fedsplit.method.own_file import factory_in_file, is_file
from fedsplit.method.record import Method, Phases

GROUP = "fedsplit.methods"
AnyFactory: TypeAlias = Factory[Any, Any]


class Found(NamedTuple):
    """Methods by name, and the plug-ins that could not be used, with the reason."""

    factories: Mapping[str, AnyFactory]
    broken: Mapping[str, str]


@cache
def discover() -> Found:
    """All methods that are installed: the shipped ones, then plug-ins in the order of their names."""
    factories = {factory.name: factory for factory in _shipped()}
    broken: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        try:
            factory = point.load()
        except FAILURES as error:  # it must not take the others down
            broken[point.name] = f"{type(error).__name__}: {error}"
            continue
        if not isinstance(factory, Factory):
            broken[point.name] = f"{point.value} is a {type(factory).__name__}, expected a function under @method"
        elif factory.name in factories:
            broken[point.name] = f"{point.value} calls itself {factory.name}, which is taken"
        else:
            factories[factory.name] = factory
    return Found(MappingProxyType(factories), MappingProxyType(broken))


def names() -> tuple[str, ...]:
    """Names of all installed methods, sorted."""
    return tuple(sorted(discover().factories))


def cards() -> tuple[Card, ...]:
    """Cards of all installed methods, by name."""
    return tuple(discover().factories[name].card for name in names())


def find(name: str, folder: Path | None = None) -> AnyFactory:
    """The factory of ``name``. ``folder``: where ``./mine.py:name`` is looked up; None refuses files.

    Raises ConfigError on an unknown name (with the nearest ones), a file that is refused, missing or wrong.
    """
    if is_file(name):
        return factory_in_file(name, folder)
    wanted, found = name.strip().lower().replace("_", "-"), discover()
    if wanted in found.factories:
        return found.factories[wanted]
    if wanted in found.broken:
        why = found.broken[wanted]
        raise ConfigError([Problem("method.name", f"{name!r}, whose plug-in does not load", "one that does", why)])
    near = difflib.get_close_matches(wanted, names(), n=3, cutoff=0.5)
    fix = f"did you mean {' or '.join(near)}?" if near else "list them with: fedsplit methods"
    raise ConfigError([Problem("method.name", repr(name), "a method that is installed", fix)])


def build(name: str, options: Mapping[str, Value] | None = None, folder: Path | None = None) -> Method | Phases:
    """The method ``name`` with ``options`` (the run file's ``[method]``), checked.

    Raises ConfigError on an unknown name or option and on a wrong type, IncompatibleParts on contradictions.
    """
    made: Method | Phases = find(name, folder).build(options or {})
    check(made)
    return made


def _shipped() -> list[AnyFactory]:
    package = importlib.import_module(GROUP)
    modules = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    return [factory for name in modules for factory in factories_of(importlib.import_module(f"{GROUP}.{name}"))]
