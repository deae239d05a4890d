"""``fedsplit doctor``: is this machine fit to take part, and can it reach the server? Nothing here can kill it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from fedsplit_client.doctor.finding import Finding, problems
from fedsplit_client.doctor.survey import survey

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red", "skipped": "dim"}


def doctor(
    link: Annotated[str, typer.Argument(help="A server's join line: look at the way to it, too.")] = "",
    state: Annotated[Path | None, typer.Option(help="The folder that join would be given as --state.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check CPU, packages, memory, disk, clock and the way to a server. Ends with 1 where something will not work."""
    found = _shown(survey(link, state)) if not as_json else list(survey(link, state))
    wrong = problems(found)
    if as_json:
        typer.echo(json.dumps({"problems": wrong, "findings": [asdict(one) for one in found]}, indent=2))
    else:
        typer.echo(f"{wrong} problem{'s' if wrong != 1 else ''}" if wrong else "nothing stands in the way")
    if wrong:
        raise typer.Exit(1)


def _shown(findings: Iterable[Finding]) -> list[Finding]:
    """Each as it is found: a package may take a minute to try."""
    console, found = Console(highlight=False, soft_wrap=True), []
    for one in findings:
        found.append(one)
        console.print(Text.assemble((f"{one.level:8}", STYLES[one.level]), f" {one.check:12} {one.found}"))
        if one.fix and one.level != "ok":
            console.print(Text(f"{'':22}→ {one.fix}"))
    return found
