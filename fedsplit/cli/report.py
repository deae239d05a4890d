"""``fedsplit report RUN``: what the planner predicted against what the run's journal says happened, client by client.

Seconds are medians over rounds (a client that did not say: over its steps as the server saw them); bytes a step are
means, headers included; memory is the peak of the client's process. No torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec import Struct
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsplit.devices.units import duration, size
from fedsplit.errors import DataError
from fedsplit.plan.options import describe
from fedsplit.plan.types import ClientPlan
from fedsplit.state.journal import Journal
from fedsplit.state.rows import COST, MetricRow, StepRow
from fedsplit.state.rundir import RunDir

FAR = 1.5
"""A prediction that is off by more than this factor is marked."""
WIDEST = 1000
"""Columns of a terminal on which everything fits."""


class Pair(Struct, frozen=True, kw_only=True):
    """One quantity; ``actual`` is None where nobody measured it."""

    predicted: float
    actual: float | None

    @property
    def ratio(self) -> float | None:
        """Actual / predicted; None where that says nothing."""
        return self.actual / self.predicted if self.actual and self.predicted else None


class Compared(Struct, frozen=True, kw_only=True):
    """One client: its plan, and prediction beside measurement. ``device_s``: seconds of a step computing there."""

    client: str
    plan: str
    steps: int
    step_s: Pair
    up_bytes: Pair
    down_bytes: Pair
    memory_bytes: Pair
    device_s: float | None = None


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory that fedsplit serve named.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare the plan of a run with what happened: seconds, bytes and memory of every client."""
    with Journal(RunDir(run).journal_db, read_only=True) as journal:
        rows = compared(journal)
    if not rows:
        raise DataError("found no plan; no client has joined this run yet", str(run))
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(rows)).decode())
    else:
        print_report(rows)


def compared(journal: Journal) -> list[Compared]:
    """One row a client that was ever given a plan, in name order; of several plans the last. Raises DataError."""
    plans, steps, costs = last_plans(journal), journal.steps(), journal.metrics(COST)
    return [_compared(plans[name], steps, costs) for name in sorted(plans)]


def last_plans(journal: Journal) -> dict[str, ClientPlan]:
    """The last plan of every client that was ever given one. Raises DataError."""
    plans: dict[str, ClientPlan] = {}
    for row in journal.plans():
        try:
            plans[row.client] = msgspec.json.decode(row.plan, type=ClientPlan)
        except msgspec.MsgspecError as error:
            found = f"the plan of {row.client} cannot be read: {error}"
            raise DataError(f"{found}; read it with the fedsplit that wrote it", str(journal.path)) from error
    return plans


def _compared(plan: ClientPlan, steps: Sequence[StepRow], costs: Sequence[MetricRow]) -> Compared:
    said: dict[str, list[float]] = {}
    for row in costs:
        if row.client == plan.client:
            said.setdefault(row.name, []).append(row.value)
    mine = [step for step in steps if step.client == plan.client]
    seen = [step.seconds for step in mine]
    up = said.get("up_bytes") or [step.up_bytes for step in mine if step.up_bytes]
    down = said.get("down_bytes") or [step.down_bytes for step in mine if step.down_bytes]
    cost = plan.estimate
    times = said.get("step_s") or seen
    return Compared(
        client=plan.client,
        plan=describe(plan.topology, plan.cut),
        steps=len(seen),
        step_s=Pair(predicted=cost.median_step_s if cost else 0.0, actual=statistics.median(times) if times else None),
        up_bytes=Pair(predicted=cost.up_bytes if cost else 0, actual=_mean(up)),
        down_bytes=Pair(predicted=cost.down_bytes if cost else 0, actual=_mean(down)),
        # A system that does not tell its peak says 0.
        memory_bytes=Pair(predicted=cost.memory_bytes if cost else 0, actual=max(said.get("peak_bytes", [0])) or None),
        device_s=statistics.median(said["device_s"]) if "device_s" in said else None,
    )


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def print_report(rows: Sequence[Compared], console: Console | None = None) -> None:
    """Print a row a client: predicted → actual and their ratio, far ones marked."""
    console = console or Console(highlight=False)
    table = _table(rows)
    needed = console.measure(table, options=console.options.update(max_width=WIDEST)).maximum
    console.print(table if needed <= console.width else _table(rows, folded=True))
    note = "predicted → actual, × their ratio; bytes are those of a step; memory is the whole process at its peak"
    console.print(Text(note, style="dim"), soft_wrap=True)


def _table(rows: Sequence[Compared], *, folded: bool = False) -> Table:
    """``folded``: every number on a line of its own, for terminals on which a client's would not fit on one."""
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", padding=(0, 1, 0, 0))
    for header in ("client", "plan"):
        table.add_column(header, no_wrap=not folded, overflow="fold")
    for header in ("a step", "up", "down", "memory"):
        table.add_column(header, justify="right", no_wrap=True)
        if not folded:
            table.add_column("", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(Text(row.client, style="bold"), row.plan, *_cells(row, folded=folded))
    return table


def _cells(row: Compared, *, folded: bool) -> Iterator[Text]:
    pairs = (row.step_s, duration), (row.up_bytes, size), (row.down_bytes, size), (row.memory_bytes, size)
    for pair, text in pairs:
        predicted, actual = text(pair.predicted), "?" if pair.actual is None else text(pair.actual)
        if folded:
            yield Text("\n").join([Text(predicted), Text(f"→ {actual}"), _ratio(pair)])
        else:
            yield from (Text(f"{predicted} → {actual}"), _ratio(pair))


def _ratio(pair: Pair) -> Text:
    if pair.ratio is None:
        return Text()
    far = not 1 / FAR <= pair.ratio <= FAR
    return Text(f"× {pair.ratio:.2f}", style="yellow" if far else "dim")
