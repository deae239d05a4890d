"""``compare.png``: the metric against rounds, bytes and seconds; a line a variant, its band over the seeds.

The band is from the smallest to the largest of the seeds: with three of them nothing finer can be shown. Colours are
Okabe and Ito's (2008); dashes and marks tell lines apart in grey.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fedsplit.cli.compare_record import Comparison, Point, Run
from fedsplit.errors import ConfigError, MissingExtra
from fedsplit.exchange.selection import higher_is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
INK, QUIET = "#222222", "#666666"
WIDTH_IN, HEIGHT_IN, DPI = 12.5, 4.4, 130
LEGEND_ROW_IN = 0.24
COLUMNS, SHORT = 3, 20
"""Of the legend, with names longer than that; twice as many with shorter ones."""
LONGEST = 46
SPAN = 8.0
"""From largest to smallest: beyond it a falling metric is drawn in powers."""


class Curve(NamedTuple):
    """Of one variant: where, the mean, and the smallest and largest over the seeds."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def check_matplotlib() -> None:
    """:raises MissingExtra: it is not installed."""
    try:
        import matplotlib  # noqa: F401  # only whether it is there
    except ImportError:
        raise MissingExtra("matplotlib, which compare.png needs (--no-plot goes without),", "plot") from None


def write_plot(found: Comparison, path: Path) -> Path:
    """Draw ``found`` into ``path``. Raises ConfigError when it cannot be written."""
    figure = draw(found)
    try:
        figure.savefig(path, dpi=DPI)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror or error}", str(path)) from error
    return path


def draw(found: Comparison) -> Figure:
    """The figure: three panels that share their vertical axis."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    columns = COLUMNS if max(map(len, found.shown)) > SHORT else 2 * COLUMNS
    rows = -(-len(found.shown) // columns)
    height = HEIGHT_IN + LEGEND_ROW_IN * rows
    figure = Figure(figsize=(WIDTH_IN, height), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    largest = max((point.up_bytes + point.down_bytes for run in found.runs for point in run.points), default=0.0)
    factor, unit = _unit(largest)
    _panel(panels[0], found, "rounds", lambda point: float(point.round))
    text = f"{unit} up and down, a client"
    _panel(panels[1], found, text, lambda point: (point.up_bytes + point.down_bytes) / factor)
    _panel(panels[2], found, "seconds since the first round began", lambda point: point.seconds)
    way = "higher" if higher_is_better(found.metric) else "lower"
    if _spans(found):
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panels[0].yaxis.set_major_formatter(ScalarFormatter())
        panels[0].yaxis.set_minor_locator(NullLocator())
    panels[0].set_ylabel(f"{found.metric} ({way} is better)", color=INK)
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=min(columns, len(names) or 1), frameon=False)
    seeds = f"{len(found.seeds)} seeds, band from smallest to largest" if len(found.seeds) > 1 else "one seed"
    figure.suptitle(f"{found.metric} on {found.measured_on}: mean of {seeds}", fontsize=11, color=INK)
    return figure


def curve(runs: Sequence[Run], metric: str, x: Callable[[Point], float]) -> Curve:
    """Over the rounds that every run has measured; where a run stopped early, all stop."""
    by_round = [{p.round: p for p in run.points if p.metrics.get(metric) is not None} for run in runs]
    shared = sorted(set.intersection(*map(set, by_round))) if by_round else []
    made = Curve([], [], [], [])
    for number in shared:
        points = [points[number] for points in by_round]
        values = [value for point in points if (value := point.metrics[metric]) is not None]
        made.x.append(statistics.fmean(map(x, points)))
        made.mean.append(statistics.fmean(values))
        made.low.append(min(values))
        made.high.append(max(values))
    return made


def _panel(axes: Axes, found: Comparison, label: str, x: Callable[[Point], float]) -> None:
    from matplotlib.ticker import MaxNLocator

    for index, name in enumerate(found.shown):
        line = curve(found.of(name), found.metric, x)
        if not line.x:
            continue
        colour = COLOURS[index % len(COLOURS)]
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        every = max(1, len(line.x) // 12)
        axes.plot(
            line.x, line.mean, color=colour, linestyle=DASHES[index % len(DASHES)], marker=MARKS[index % len(MARKS)],
            markevery=every, markersize=4, linewidth=1.6, label=_label(name), clip_on=False,
        )  # fmt: skip
    if found.target is not None:
        axes.axhline(found.target, color=QUIET, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.annotate(
            f"target {found.target:g}", (1, found.target), xycoords=("axes fraction", "data"), ha="right", va="bottom",
            fontsize=8, color=QUIET,
        )  # fmt: skip
    axes.set_xlabel(label, color=INK)
    axes.set_xlim(left=0)
    axes.grid(color="#E4E4E4", linewidth=0.6)
    axes.tick_params(colors=INK)
    if label == "rounds":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _spans(found: Comparison) -> bool:
    """Whether most of an even axis would be taken by the way down from the start."""
    values = [value for run in found.runs for point in run.points if (value := point.metrics.get(found.metric))]
    return bool(values) and not higher_is_better(found.metric) and min(values) > 0 and max(values) > SPAN * min(values)


def _label(name: str) -> str:
    """Long ones without their middle: variants differ at either end."""
    half = LONGEST // 2
    return name if len(name) <= LONGEST else f"{name[: half - 1]}…{name[-half:]}"


def _unit(largest: float) -> tuple[float, str]:
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= factor:
            return factor, unit
    return 1.0, "bytes"
