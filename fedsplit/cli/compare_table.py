"""A comparison on the terminal: a row a variant, the paired differences, and what was tuned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsplit.cli.compare_numbers import Pair, Spread, Summary, pairs, spread, summaries
from fedsplit.cli.compare_record import Comparison
from fedsplit.devices.units import duration, size
from fedsplit.exchange.selection import higher_is_better

Column = tuple[str, Callable[[Summary], str]]

WIDE = 120
"""Columns of a terminal from which on one table holds it all."""


def print_comparison(found: Comparison, console: Console | None = None) -> None:
    """Print the tables and the notes that say how to read them."""
    console = console or Console(highlight=False)
    rows = summaries(found)
    metric, cost = _metric_columns(found), _cost_columns()
    for columns in [metric + cost] if console.width >= WIDE else [metric, cost]:
        console.print(_table(rows, columns))
    for row in rows:
        if row.failed:
            console.print(Text.assemble(("✗ ", "red"), f"{row.variant}: {row.failed}"), soft_wrap=True)
    if gaps := pairs(found):
        console.print(_pairs(gaps, found))
    if found.tuned_on:
        console.print(_tuned(found))
    for note in notes(found):
        console.print(Text(note, style="dim"), soft_wrap=True)


def notes(found: Comparison) -> list[str]:
    """How to read the numbers."""
    way = "higher" if higher_is_better(found.metric) else "lower"
    made = [f"{found.metric} ({way} is better) on {found.measured_on}; mean ± standard deviation over seeds"]
    made.append("best: of a run's evaluations, on the rows that chose it")
    if len(found.seeds) > 1 and found.seed_holds_back:
        made.append("another seed holds back other rows, which ± shows as well; differences are free of it")
    made.append("up, down: a client's bytes of training; training: from the first round's begin to the last evaluation")
    gaps = pairs(found)
    if gaps:
        on = "the test file" if found.test else "the last evaluation"
        made.append(f"differences: within a seed, on {on}; 95 % interval of their mean (Student's t)")
    if len(gaps) > 1:
        made.append(f"of {len(gaps)} such intervals some miss the true difference by chance")
    return [*made, *found.notes]


def number(value: float) -> str:
    """Four significant digits, never in powers of ten."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) >= 1e-4 else f"{value:.4f}"


def _metric_columns(found: Comparison) -> list[Column]:
    columns: list[Column] = [
        ("runs", lambda row: str(row.runs)),
        ("final", lambda row: _spread(row.final)),
        ("best", lambda row: _spread(row.best)),
    ]
    if found.test:
        columns.append(("test", lambda row: _spread(row.test)))
    if found.target is not None:
        columns.append((f"rounds to {number(found.target)}", _reached))
    return columns


def _cost_columns() -> list[Column]:
    return [
        ("up", lambda row: _mean(row.up_bytes, size)),
        ("down", lambda row: _mean(row.down_bytes, size)),
        ("training", lambda row: _mean(row.seconds, duration)),
        ("client peak", lambda row: size(row.client_peak_bytes) if row.client_peak_bytes else "?"),
        ("server peak", lambda row: size(row.server_peak_bytes) if row.server_peak_bytes else "?"),
    ]


def _table(rows: Sequence[Summary], columns: Sequence[Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold", style="bold")
    for header, _ in columns:
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.variant, *(cell(row) for _, cell in columns))
    return table


def _pairs(gaps: Sequence[Pair], found: Comparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", padding=(0, 1, 0, 0))
    for header in ("difference", found.metric, "95 % interval", "seeds"):
        table.add_column(header, justify="left" if header == "difference" else "right")
    for pair in gaps:
        inside = "?" if pair.low is None or pair.high is None else f"{_signed(pair.low)} to {_signed(pair.high)}"
        table.add_row(f"{pair.first} − {pair.second}", _signed(pair.mean), inside, str(pair.n))
    return table


def _tuned(found: Comparison) -> Table:
    """Every setting that was tried, the chosen ones marked."""
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", padding=(0, 1, 0, 0))
    for header in ("setting", f"best {found.metric}", "chosen"):
        table.add_column(header, justify="right" if header.startswith("best") else "left")
    for one in found.variants:
        runs = [run for run in found.of(one.name) if run.seed in found.tuned_on]
        failed = any(run.error for run in found.runs if run.variant == one.name)
        value = "failed" if failed else _spread(spread([run.best(found.metric) for run in runs]))
        table.add_row(one.name, value, "✓" if one.name in found.chosen else "")
    return table


def _spread(found: Spread | None) -> str:
    if found is None:
        return "–"
    if found.std is None:
        return number(found.mean)
    # The mean as exactly as its deviation, which has two digits.
    digits = max(0, 1 - math.floor(math.log10(found.std))) if found.std > 0 else 4
    return f"{found.mean:.{digits}f} ± {found.std:.{digits}f}"


def _mean(found: Spread | None, text: Callable[[float], str]) -> str:
    return "–" if found is None else text(found.mean)


def _reached(row: Summary) -> str:
    if row.reached is None:
        return "never"
    some = "" if row.reached_by == row.runs else f" ({row.reached_by} of {row.runs})"
    return f"{row.reached.mean:.3g}{some}"


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else '−' if value < 0 else ''}{number(abs(value))}"
