"""``fedsplit methods``: what can aggregate a run, printed from the registry; the tables in the docs come from here."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsplit.cli.chosen_method import Options, options_from
from fedsplit.cli.methods_check import check
from fedsplit.cli.methods_cost import Cost, costs
from fedsplit.cli.words import size
from fedsplit.errors import ConfigError, Problem
from fedsplit.method.card import Card, factories_of
from fedsplit.method.options import Value
from fedsplit.method.registry import AnyFactory, cards, discover, find

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
    model: Annotated[str, typer.Option(help="Count what travels with this model: minilm, a folder, a hub id.")] = "",
    rank: Annotated[int | None, typer.Option(help="Rank of the factors, with --model; 8 unless given.")] = None,
    targets: Annotated[str, typer.Option(help="Modules as peft knows them, e.g. query,value; with --model.")] = "",
    options: Options = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Show one method, with options if given: idea and equations, parts, what it can do, and what it costs."""
    if not model:
        _refuse_without_model(rank, targets)
    rank = 8 if rank is None else rank
    factory, given = find(name, folder=Path()), options_from(options)
    made = factory.build(given)
    card = factory.card_of(made)
    chosen = tuple(one.strip() for one in targets.split(",") if one.strip())
    counted = costs(made, model, rank, chosen) if model else ()
    if as_json:
        typer.echo(json.dumps(as_row(card) | {"cost": [row._asdict() for row in counted]}, indent=2))
        return
    console = Console()
    console.print(Text(f"{card.title}", style="bold"), Text(f"{card.name}, {card.paper}", style="dim"))
    console.print(Text("\n" + _explanation(factory) + "\n"), soft_wrap=True)
    console.print(_pairs("part", "stock part", list(card.parts.items())))
    if card.options:
        console.print(_pairs("option", "in [method.options] of the run file", _option_rows(card, given)))
    console.print(_pairs("property", "", [(meaning, _yes(card, name)) for name, meaning in CAPABILITIES.items()]))
    console.print(f"numbers that travel for one M x N module at rank R: {card.up} up, {card.down} down")
    if counted:
        console.print(_pairs(f"{model}, rank {rank}", "numbers of one client in one round", _cost_rows(counted)))


def _refuse_without_model(rank: int | None, targets: str) -> None:
    given = {"--rank": rank, "--targets": targets or None}
    fix = "add --model, e.g. --model minilm: they say what is counted with it"
    if problems := [Problem(flag, str(value), "none", fix) for flag, value in given.items() if value is not None]:
        raise ConfigError(problems)


def _option_rows(card: Card, given: Mapping[str, Value]) -> list[tuple[str, str]]:
    here = {name: f"; here {_value(value)}" for name, value in given.items()}
    return [(one.name, f"{one.type}; default {_value(one.default)}{here.get(one.name, '')}") for one in card.options]


def _explanation(factory: AnyFactory) -> str:
    """The docstring of a module that holds one method, with its equations and sources; else the function's own."""
    module = sys.modules.get(factory.module)
    alone = module is not None and len(factories_of(module)) == 1
    text = inspect.getdoc(module) if alone else ""
    own = [] if text and factory.doc.count("\n\n") == 0 else [factory.doc]
    return "\n\n".join([*([text] if text else []), *own]).replace("``", "")


def _cost_rows(found: Sequence[Cost]) -> list[tuple[str, str]]:
    ways = {"up": "up", "down": "down", "fold": "folds down, for each client", "head": "head, either way"}
    rows = [(f"{cost.rounds}: {words}", int(getattr(cost, way))) for cost in found for way, words in ways.items()]
    return [(words, f"{count:,} ({size(4 * count)} in float32)") for words, count in rows if count]


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
    table.add_column("method", no_wrap=True)
    table.add_column("what it is", ratio=1)
    for header in ("up", "down"):
        table.add_column(header)
    for card in found:
        held = [name.replace("_", " ") for name in CAPABILITIES if getattr(card, name)]
        about = Text(f"{card.title}\n").append(" · ".join([card.paper, *held]), style="dim")
        table.add_row(card.name, about, card.up, card.down)
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
