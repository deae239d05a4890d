"""Command groups that list their verbs without importing them: ``fedsplit --help`` must not wait for torch.

A group is built from a table of ``Verb``. Help, suggestions and completion of names come from the table; only the verb
that is called (or whose ``--help`` is asked for) is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class Verb(NamedTuple):
    """One entry: ``target`` is ``module:attribute`` of a function or of a ``typer.Typer``."""

    name: str
    target: str
    help: str
    panel: str = "Commands"


def load(verb: Verb) -> Any:
    """Import the verb's function or app.

    Raises:
        ImportError: an optional dependency is absent, or this version does not have the verb.
    """
    module, attribute = verb.target.split(":")
    return getattr(import_module(module), attribute)


def _itself(verb: Verb, target: Any) -> Any:
    return target


def lazy_group(verbs: Sequence[Verb], wrap: Callable[[Verb, Any], Any] = _itself) -> type[TyperGroup]:
    """A ``cls`` for ``typer.Typer`` that holds ``verbs``; ``wrap`` makes a command of what a target names."""
    table = {verb.name: verb for verb in verbs}

    class LazyGroup(TyperGroup):
        """Stubs for the listing, the real command once one is chosen."""

        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            self.commands.update({verb.name: _stub(verb) for verb in verbs})

        def list_commands(self, ctx: Any) -> list[str]:
            return list(table)

        def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
            name, command, rest = super().resolve_command(ctx, args)
            if name is None or name not in table:
                return name, command, rest
            try:
                return name, _command(table[name], wrap), rest
            except ImportError:
                # Completion asks in passing and must stay quiet; a call must say what is missing.
                if ctx.resilient_parsing:
                    return name, command, rest
                raise

    return LazyGroup


def _stub(verb: Verb) -> TyperCommand:
    return TyperCommand(name=verb.name, help=verb.help, rich_help_panel=verb.panel)


def _command(verb: Verb, wrap: Callable[[Verb, Any], Any]) -> Any:
    target = wrap(verb, load(verb))
    if isinstance(target, typer.Typer):
        app = target
    else:
        app = typer.Typer()
        app.command(verb.name)(target)
    # Installing completion is the business of the outermost command alone.
    app._add_completion = False
    command = typer.main.get_command(app)
    command.name = verb.name
    return command
