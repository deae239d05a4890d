"""``fedsplit verify``: proof on this machine that the split model is the unsplit model, as a table and an exit status.

On a CPU nothing less than equal bits passes. On a GPU the attention's backward pass adds in no fixed order, so that
even the unsplit step differs from itself; there the largest difference of any gradient has to stay below a tolerance.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsplit.errors import ConfigError, Problem

if TYPE_CHECKING:
    from fedsplit.split.base import Base
    from fedsplit.split.verify import VerifyRow

Cuts = Literal["all"] | Sequence[tuple[int, int]]

DTYPES = ("float32", "bfloat16")
ON_GPU = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest difference of a gradient's entry that passes on a GPU, unless ``--tolerance`` says another one."""
NOT_EQUAL = 1
_MOST_CUTS = 8


def verify(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, minilm or pydoc-llama (the default).")] = "",
    cuts: Annotated[str, typer.Option(help="all, or pairs c1:c2 such as 1:4,2:3.")] = "all",
    family: Annotated[str, typer.Option(help="Tiny random models instead: llama, gpt2, bert, …, or all.")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    tolerance: Annotated[
        float | None,
        typer.Option(help="Largest difference that passes; left out, 0, on a GPU 1e-4 (bfloat16: 5e-2)."),
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="One line a cut, instead of one for all that are alike.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help='Print {"rows": [...]} and nothing else.')] = False,
) -> None:
    """Prove that the split model equals the unsplit one here: loss and every LoRA gradient, at every cut.

    Leaves with 1 when it does not. The unsplit step is that of transformers and peft themselves.
    """
    chosen = parse_cuts(cuts)
    _check_flags(model, family, dtype, tolerance)
    from fedsplit.split.placement import device_of

    place = device_of(device)
    if tolerance is None:
        tolerance = 0.0 if place.type == "cpu" else ON_GPU[dtype]
    parts = _compared(model, family, chosen, device, dtype)
    rows = [row for part in (parts if as_json else _shown(parts, tolerance, each)) for row in part]
    if as_json:
        shown = [{**asdict(row), "passes": passes(row, tolerance)} for row in rows]
        typer.echo(json.dumps({"rows": shown, "tolerance": tolerance}, indent=2))
    else:
        typer.echo(conclusion(rows, tolerance, f"{place}, {dtype}"))
    if not all(passes(row, tolerance) for row in rows):
        raise typer.Exit(NOT_EQUAL)


def parse_cuts(text: str) -> Cuts:
    """``all`` or ``1:4,2:3``. Raises ConfigError that names every pair that is none."""
    if text.strip() == "all":
        return "all"
    pairs = [pair.strip() for pair in text.split(",")]
    wrong = [pair for pair in pairs if not re.fullmatch(r"\d+:\d+", pair)]
    if wrong:
        found = ", ".join(repr(pair) for pair in wrong)
        raise ConfigError([Problem("--cuts", found, "all, or pairs c1:c2 with commas, such as 1:4,2:3")])
    return [(int(c1), int(c2)) for c1, c2 in (pair.split(":") for pair in pairs)]


def passes(row: VerifyRow, tolerance: float) -> bool:
    """Equal bits, or with a tolerance a difference that stays within it (a NaN never does)."""
    return row.exact or (tolerance > 0 and row.max_difference <= tolerance)


def _check_flags(model: str, family: str, dtype: str, tolerance: float | None) -> None:
    problems = []
    if dtype not in DTYPES:
        problems.append(Problem("--dtype", repr(dtype), " or ".join(DTYPES)))
    if tolerance is not None and not tolerance >= 0:
        problems.append(Problem("--tolerance", str(tolerance), "0 or more"))
    if model and family:
        fix = "leave one of them out"
        problems.append(Problem("--family", f"{family!r} beside the model {model!r}", "a model or a family", fix))
    if problems:
        raise ConfigError(problems)


def _compared(model: str, family: str, cuts: Cuts, device: str, dtype: str) -> Iterator[list[VerifyRow]]:
    """The rows, a model at a time: each is shown as soon as it is there."""
    from transformers.utils import logging

    from fedsplit.split.base import open_base
    from fedsplit.split.verify import verify as compare
    from fedsplit.testing.models import FAMILIES

    logging.set_verbosity_error()
    if family:
        for name in FAMILIES if family == "all" else (family,):
            yield compare(None, cuts, name, device, dtype)
        return
    base: Base = open_base(model or "pydoc-llama")
    yield compare(base, cuts, None, device, dtype)


def _shown(parts: Iterable[list[VerifyRow]], tolerance: float, each: bool) -> Iterator[list[VerifyRow]]:
    """Pass the rows on and print them model by model."""
    waiting, console, header = iter(parts), Console(highlight=False), True
    while True:
        with Console(stderr=True).status("comparing …"):
            rows = next(waiting, None)
        if rows is None:
            return
        console.print(_table(rows, tolerance, each, header))
        header = False
        yield rows


def _table(rows: Sequence[VerifyRow], tolerance: float, each: bool, header: bool) -> Table:
    # Fixed widths: the tables of several models stand below each other under one header, on 80 columns.
    table = Table(box=box.SIMPLE_HEAD, show_header=header, show_edge=False, padding=0)
    widths = {"family": 11, "task": 20, "padding": 8, "cuts": 9, "loss": 8, "largest\ndifference": 10, "exact": 5}
    for name, width in widths.items():
        table.add_column(name, width=width, vertical="bottom", justify="right" if width == 10 else "left")
    total = len({row.cut for row in rows})
    for group in [[row] for row in rows] if each else _alike(rows, tolerance):
        first, worst = group[0], max(row.max_difference for row in group)
        exact = Text("yes" if first.exact else "no", style="green" if passes(first, tolerance) else "bold red")
        loss = "equal" if first.loss_equal else "differs"
        table.add_row(first.family, first.task, first.padding, _cuts(group, total), loss, f"{worst:.3g}", exact)
    return table


def _alike(rows: Sequence[VerifyRow], tolerance: float) -> Iterator[list[VerifyRow]]:
    """Rows of one task and padding that say the same: failures first, so that none hides behind the others."""

    def key(row: VerifyRow) -> tuple[Any, ...]:
        return (row.task, row.padding, passes(row, tolerance), row.exact, row.loss_equal)

    order = {(row.task, row.padding): index for index, row in reversed(list(enumerate(rows)))}
    ordered = sorted(rows, key=lambda row: (order[row.task, row.padding], *key(row)[2:], row.cut))
    for _, group in groupby(ordered, key):
        yield list(group)


def _cuts(group: Sequence[VerifyRow], total: int) -> str:
    if len(group) == total > 1:
        return f"all {total}"
    shown = " ".join(f"{c1}:{c2}" for c1, c2 in (row.cut for row in group[:_MOST_CUTS]))
    rest = len(group) - _MOST_CUTS
    return f"{shown} and {rest} more" if rest > 0 else shown


def conclusion(rows: Sequence[VerifyRow], tolerance: float, where: str) -> str:
    """The last line: equal in every bit, equal within the tolerance, or not equal."""
    exact, worst = sum(row.exact for row in rows), max(row.max_difference for row in rows)
    failed = sum(not passes(row, tolerance) for row in rows)
    if failed:
        return f"not equal: {failed} of {len(rows)} comparisons on {where}; largest difference {worst:.3g}"
    if exact == len(rows):
        return f"equal: {len(rows)} comparisons on {where}, every bit of loss and gradients"
    return (
        f"equal within {tolerance:.3g}: {len(rows)} comparisons on {where}, {exact} of them in every bit, "
        f"largest difference {worst:.3g}"
    )
