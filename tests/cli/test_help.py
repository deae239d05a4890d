"""Every command's help is written for a terminal: no markup of docstrings in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from fedsplit.cli.main import make_app
from fedsplit.cli.verbs import VERBS


def texts(command: Any, path: str) -> Iterator[tuple[str, str]]:
    """(command, text) of a command, its options and arguments, and of all below it."""
    context = command.make_context(path, [], resilient_parsing=True)
    yield path, command.help or ""
    yield from ((path, getattr(option, "help", "") or "") for option in command.params)
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        _, below, _ = command.resolve_command(context, [name])
        yield from texts(below, f"{path} {name}")


def test_no_help_shows_markup() -> None:
    command = typer.main.get_command(make_app(VERBS))
    found = list(texts(command, "fedsplit"))
    assert {"fedsplit bench step", "fedsplit join", "fedsplit profile show"} <= {path for path, _ in found}
    marks = ("``", ":raises", "Raises:", ":param")
    assert [(path, text) for path, text in found if any(mark in text for mark in marks)] == []
