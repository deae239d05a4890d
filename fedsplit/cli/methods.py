"""``fedsplit methods``: what can aggregate a run, printed from the registry; the tables in the docs come from here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsplit.cli.methods_check import check
from fedsplit.method.card import Card
from fedsplit.method.registry import cards, discover, find

app = typer.Typer(help="The federated methods, with their papers.")
app.command()(check)

CAPABILITIES = {
    "exact": "after a round, base + adapter equal the weighted sum of the clients' updates",
    "unequal_ranks": "clients of different ranks take part",
    "edge": "devices without torch take part",
    "secure_sum": "the server needs sums only, never one client's factors",
    "mutates_base": "rounds fold updates into the base weights",
}
"""The columns of yes and no, and what each of them means."""

_HEADERS = ("method", "paper", "exact", "unequal ranks", "edge", "secure sum", "mutates base", "up", "down")


@app.callback(invoke_without_command=True)
def methods(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: {'methods': [...]}.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as in docs/methods.md.")] = False,
) -> None:
    """List every installed method: paper, capabilities, scalars that travel for an M x N module at rank R."""
    if ctx.invoked_subcommand is not None:
        return
    found = cards()
    if as_json:
        typer.echo(json.dumps({"methods": [as_row(card) for card in found]}, indent=2))
    elif markdown:
        typer.echo(markdown_table(found), nl=False)
    else:
        _print_list(found)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A method's name, or ./FILE.py:NAME.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Show one method: its idea, its parts, its options and what it can do."""
    factory = find(name, folder=Path())
    card = factory.card
    if as_json:
        typer.echo(json.dumps(as_row(card), indent=2))
        return
    console = Console()
    console.print(Text(f"{card.title}", style="bold"), Text(f"{card.name}, {card.paper}", style="dim"))
    console.print(Text("\n" + factory.doc.replace("``", "") + "\n"))
    console.print(_pairs("part", "stock part", list(card.parts.items())))
    if card.options:
        rows = [(option.name, f"{option.type}; default {_value(option.default)}") for option in card.options]
        console.print(_pairs("option", "in [method.options] of the run file", rows))
    console.print(_pairs("property", "", [(meaning, _yes(card, name)) for name, meaning in CAPABILITIES.items()]))
    console.print(f"numbers that travel for one M x N module at rank R: {card.up} up, {card.down} down")


def as_row(card: Card) -> dict[str, Any]:
    """A card as JSON values."""
    row: dict[str, Any] = msgspec.to_builtins(card)
    return row


def markdown_table(found: Sequence[Card]) -> str:
    """The table of README and docs."""
    lines = ["| " + " | ".join(_HEADERS) + " |", "|" + " --- |" * len(_HEADERS)]
    for card in found:
        cells = [f"`{card.name}` {card.title}", _paper_link(card.paper), *_capabilities(card), card.up, card.down]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _print_list(found: Sequence[Card]) -> None:
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("method", "title", "paper", "properties", "up", "down"):
        table.add_column(header, no_wrap=header in ("method", "paper"))
    for card in found:
        held = [name.replace("_", " ") for name in CAPABILITIES if getattr(card, name)]
        table.add_row(card.name, card.title, card.paper, ", ".join(held), card.up, card.down)
    console.print(table)
    for name, reason in sorted(discover().broken.items()):
        console.print(Text(f"plug-in {name} is left out: {reason}", style="yellow"))
    console.print(
        Text("up, down: numbers that travel for one M x N module at rank R, per client and round", style="dim")
    )
    console.print(Text("fedsplit methods show NAME explains one; ./FILE.py:NAME is a method of your own", style="dim"))


def _pairs(left: str, right: str, rows: Sequence[tuple[str, str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(left, no_wrap=left != "property")
    table.add_column(Text(right))
    for one, other in rows:
        table.add_row(Text(one), Text(other))
    return table


def _capabilities(card: Card) -> list[str]:
    return [_yes(card, name) for name in CAPABILITIES]


def _yes(card: Card, name: str) -> str:
    return "yes" if getattr(card, name) else "no"


def _value(default: object) -> str:
    return "none" if default is None else repr(default)


def _paper_link(paper: str) -> str:
    kind, _, number = paper.partition(":")
    links = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}
    return f"[{paper}]({links[kind]}{number})" if kind in links else paper
