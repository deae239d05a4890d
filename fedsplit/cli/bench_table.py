"""A bench's rows as a table: on the terminal, and between markers in ``benchmarks/README.md``."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedsplit.devices.here import processor
from fedsplit.errors import ConfigError, Problem

Row = Mapping[str, object]


def default_report(roots: Sequence[Path] = ()) -> Path:
    """``benchmarks/README.md`` of the clone we stand in or run from (or of the first of ``roots`` that has one).

    Raises:
        ConfigError: none has one.
    """
    for root in roots or (Path.cwd(), Path(__file__).parents[2]):
        if (root / "benchmarks").is_dir():
            return root / "benchmarks" / "README.md"
    found = f"no benchmarks folder in {Path.cwd()}"
    raise ConfigError([Problem("--write", found, "a clone of fedsplit", "go there or name a file with --report")])


def show(name: str, rows: Sequence[Row]) -> None:
    """Print the rows as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"bench {name}", box=box.SIMPLE_HEAD, title_justify="left")
    columns = _columns(rows)
    for column in columns:
        table.add_column(_heading(column), justify="right" if _numeric(rows, column) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(row.get(column)) for column in columns))
    console = Console()
    console.print(table)
    console.print(machine(), style="dim", highlight=False)


def write(report: Path, name: str, rows: Sequence[Row], command: str) -> None:
    """Replace the table of bench ``name`` in ``report``; append it where there is none."""
    text = report.read_text(encoding="utf-8") if report.is_file() else "# Benchmarks\n"
    fresh = f"<!-- bench:{name} -->\n{markdown(rows, command)}<!-- /bench:{name} -->"
    pattern = re.compile(rf"<!-- bench:{re.escape(name)} -->.*?<!-- /bench:{re.escape(name)} -->", re.DOTALL)
    if pattern.search(text):
        text = pattern.sub(lambda _: fresh, text, count=1)
    else:
        text = f"{text.rstrip()}\n\n## {name}\n\n{fresh}\n"
    report.write_text(text, encoding="utf-8", newline="\n")


def markdown(rows: Sequence[Row], command: str) -> str:
    """The table with the command that repeats it, the machine and today's date."""
    columns = _columns(rows)
    lines = [
        f"`{command}` – {machine()}, {datetime.date.today().isoformat()}",
        "",
        "| " + " | ".join(_heading(column) for column in columns) + " |",
        "|" + "|".join("---:" if _numeric(rows, column) else "---" for column in columns) + "|",
        *("| " + " | ".join(cell(row.get(column)).replace("|", "\\|") for column in columns) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def machine() -> str:
    """This machine in one line: processor, cores, memory, system, Python and torch."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_gb = psutil.virtual_memory().total / 1e9
    parts = [processor(), f"{usable} cores", f"{memory_gb:.0f} GB", platform.system()]
    parts.append(f"Python {platform.python_version()}")
    try:
        parts.append(f"torch {version('torch')}")
    except PackageNotFoundError:
        parts.append("no torch")
    return ", ".join(parts)


def _columns(rows: Sequence[Row]) -> list[str]:
    """Every key of every row, in the order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _heading(column: str) -> str:
    return column.replace("_", " ")


def _numeric(rows: Sequence[Row], column: str) -> bool:
    values = [row[column] for row in rows if row.get(column) is not None]
    return bool(values) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def cell(value: object) -> str:
    """One value as read by people: thousands separated, four significant digits, yes and no."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)
