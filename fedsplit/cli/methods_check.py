"""``fedsplit methods check``: the laws on a method of one's own, before any device trains for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from fedsplit.cli.chosen_method import Options, options_from
from fedsplit.errors import ConfigError
from fedsplit.method.check import check as check_parts
from fedsplit.method.own_file import factories_in_file, is_file
from fedsplit.method.registry import AnyFactory, find
from fedsplit.testing.verdict import Verdict, judge


def check(
    name: Annotated[str, typer.Argument(help="./FILE.py (all its methods), ./FILE.py:NAME, or a method's name.")],
    options: Options = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON.")] = False,
) -> None:
    """Run every law on a method: small made-up rounds, no model, no device; says which law breaks and where."""
    made = [(one, one.build(options_from(options))) for one in _asked(name)]
    for _, method in made:
        check_parts(method)
    found = {one.name: judge(one.name, method, _file(one)) for one, method in made}
    if as_json:
        typer.echo(json.dumps({"methods": [_row(one, verdicts) for one, verdicts in found.items()]}, indent=2))
    else:
        for one, verdicts in found.items():
            _print(one, verdicts)
    broken = {one: sum(bool(verdict.broken) for verdict in verdicts) for one, verdicts in found.items()}
    if any(broken.values()):
        said = ", ".join(f"{one} breaks {count} of the laws" for one, count in broken.items() if count)
        raise ConfigError(f"{said}; they are explained in docs/methods.md", name)


def _asked(name: str) -> Sequence[AnyFactory]:
    """The method of that name; all methods of a file that is named without one."""
    if is_file(name) and name.endswith(".py") and (found := factories_in_file(name, Path())):
        return list(found.values())
    return [find(name, folder=Path())]


def _file(factory: AnyFactory) -> str:
    return str(getattr(sys.modules.get(factory.module), "__file__", None) or "")


def _row(name: str, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    laws = [{"law": one.law, "holds": not one.broken if one.bound else None, "broken": one.broken} for one in verdicts]
    return {"name": name, "holds": not any(one.broken for one in verdicts), "laws": laws}


def _print(name: str, verdicts: Sequence[Verdict]) -> None:
    console = Console()
    console.print(Text(name, style="bold"))
    for one in verdicts:
        mark, style = ("broken", "red") if one.broken else ("holds", "green") if one.bound else ("not asked", "dim")
        console.print(Text.assemble((f"  {mark:9} ", style), one.law), soft_wrap=True)
        if one.broken:
            console.print(Text(f"            {one.broken}"), soft_wrap=True)
    bound = [one for one in verdicts if one.bound]
    console.print(f"  {sum(not one.broken for one in bound)} of {len(bound)} laws that bind it hold")
