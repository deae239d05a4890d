"""``fedsplit partition``: cut one data set into unlike files for several clients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, get_args

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsplit.data.partition import Law, Manifest, Request
from fedsplit.data.partition import partition as cut
from fedsplit.errors import ConfigError, Problem

_LAWS: tuple[str, ...] = get_args(Law)
_SHOWN = 12


def partition(
    file: Annotated[Path, typer.Argument(help="The data set: a file, or a folder of images or of datasets files.")],
    by: Annotated[str, typer.Option(help=f"The law: {', '.join(_LAWS)}.")] = "dirichlet",
    clients: Annotated[int, typer.Option(help="How many clients; 0 with natural: all owners.")] = 4,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write, new or empty.")] = Path("clients"),
    field: Annotated[str, typer.Option(help="The column the law looks at; else found by its usual names.")] = "",
    alpha: Annotated[float, typer.Option(help="dirichlet, quantity: the smaller, the more unlike.")] = 0.5,
    per_client: Annotated[int, typer.Option(help="label, domain: values that a client owns.")] = 2,
    strangers: Annotated[float, typer.Option(help="label, domain: share of rows that go to other clients.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifests as JSON.")] = False,
) -> None:
    """Cut one data set into client files, each with a manifest.

    iid: shuffled. quantity: unequal amounts. dirichlet: unequal mixtures of labels. label, domain: a client owns a few
    labels or domains. field: values of a column are never divided. natural: every owner (user, speaker) is a client.
    """
    if by not in _LAWS:
        raise ConfigError([Problem("--by", by, f"one of {', '.join(_LAWS)}")])
    request = Request(
        law=by,  # type: ignore[arg-type]  # one of the laws, checked above
        clients=clients,
        field=field,
        alpha=alpha,
        per_client=per_client,
        strangers=strangers,
        seed=seed,
    )
    manifests = cut(file, out, request)
    if as_json:
        typer.echo(json.dumps({"clients": msgspec.to_builtins(manifests)}, indent=2))
    else:
        _print(manifests, out)


def _print(manifests: list[Manifest], out: Path) -> None:
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("client", "rows", f"{manifests[0].field or 'mixture'} (rows)"):
        table.add_column(header, justify="right" if header == "rows" else "left", no_wrap=header == "rows")
    for one in manifests[:_SHOWN]:
        table.add_row(Text(one.client), f"{one.rows:,}", Text(_values(one)))
    console.print(table)
    if len(manifests) > _SHOWN:
        console.print(Text(f"… and {len(manifests) - _SHOWN} more", style="dim"))
    if manifests[0].left_out:
        console.print(Text(f"{manifests[0].left_out:,} rows belong to no client and were left out", style="yellow"))
    total = sum(one.rows for one in manifests)
    console.print(Text(f"{total:,} rows in {len(manifests)} files in {out}, each with a manifest"))


def _values(one: Manifest) -> str:
    largest = sorted(one.values.items(), key=lambda item: (-item[1], item[0]))
    words = ", ".join(f"{value} {count:,}" for value, count in largest[:6])
    return words + (f", … {len(largest)} in all" if len(largest) > 6 else "") or "as the whole"
