"""``fedsplit forget``: delete what this device keeps of a run, after showing it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsplit.cli.display import ask
from fedsplit.devices.units import size
from fedsplit.errors import ConfigError, Problem
from fedsplit.state.personal import Kept, Personal


def forget(
    run: Annotated[str, typer.Argument(help="The run's name; empty: list the runs there is something of.")] = "",
    state: Annotated[Path | None, typer.Option(help="The folder that was given to join as --state.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without being asked.")] = False,
) -> None:
    """Delete what this device keeps of a run: factors, optimiser, personal parts, its model. Keys stay."""
    personal = Personal(state)
    kept = personal.kept()
    if not run:
        _list(kept, personal.path)
        return
    chosen = [one for one in kept if one.info.run == run]
    if not chosen:
        known = ", ".join(sorted({one.info.run for one in kept})) or f"nothing is kept in {personal.path}"
        raise ConfigError([Problem("run", repr(run), "a run that this device keeps something of", known)])
    _list(chosen, personal.path)
    if not ask(f"Delete {size(sum(one.size_bytes for one in chosen))} for good?", yes=yes):
        typer.echo("nothing was deleted")
        return
    count = personal.forget(run)
    typer.echo(f"deleted {count} folder{'s' if count != 1 else ''} of {run}; what the server merged stays merged")


def _list(kept: list[Kept], folder: Path) -> None:
    if not kept:
        typer.echo(f"nothing is kept in {folder}")
    for one in kept:
        where = f" at {one.info.server[:40]}" if one.info.server else ""
        typer.echo(f"{one.info.run}  {size(one.size_bytes)}  as {one.info.client or 'client'}{where}  {one.path}")
