"""``fedsplit plan --plot FILE``: where the time of a step goes, and how full every device's memory gets.

Colours are Okabe and Ito's (2008), told apart with any colour vision; waiting is hatched, so it reads in grey, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsplit.cli.plan_lanes import COLOURS, INK, QUIET, draw_lanes
from fedsplit.cli.plan_picture import CAUSES, PARTS, Bar, Picture, memory_text, step_text
from fedsplit.devices.units import duration
from fedsplit.errors import ConfigError, MissingExtra, Problem

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")

FAINT = "#E4E4E4"

WIDTH_IN = 13.0
ROW_IN = 0.34
LANE_IN = 0.52
"""Height of a row of bars, and of one with lanes."""
ABOVE_IN, BELOW_IN = 1.0, 1.4
"""Title and notes above the rows, axes and legends below them."""
LETTER_IN = 0.085
"""Width of a letter of a client's name, about."""
GAP = "      "
MEANING = GAP.join(
    (
        "local: everything on the device",
        "u (a, b): layers a to b−1 on the server",
        "v (a): all from a on, and the loss",
        "w: all layers",
    )
)
SPREAD = f"bars: means; lines: 10th to 90th percentile{GAP}"
DPI = 130


def check_plot(path: Path) -> None:
    """Everything that can be wrong before planning.

    :raises MissingExtra: matplotlib is not installed. :raises ConfigError: a format or a folder that cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError([Problem("--plot", repr(str(path)), f"a file ending in {', '.join(FORMATS)}")])
    if not path.parent.is_dir():
        raise ConfigError([Problem("--plot", f"no folder {path.parent}", "a folder that exists", "make it first")])
    try:
        import matplotlib  # noqa: F401  # only whether it is there
    except ImportError:
        raise MissingExtra("matplotlib, which --plot needs,", "plot") from None


def write_plot(found: Picture, path: Path) -> Path:
    """Draw ``found`` into ``path``; the suffix chooses the format. Raises ConfigError when it cannot be written."""
    figure = draw(found)
    # Without a date the same plan is the same file.
    stamp = {".png": None, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[path.suffix.lower()]
    try:
        figure.savefig(path, dpi=DPI, metadata=stamp)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror or error}", str(path)) from error
    return path


def draw(found: Picture) -> Figure:
    """The figure: a row a bar of ``found``, time on the left, memory on the right."""
    from matplotlib.figure import Figure

    rows = len(found.bars) + (not found.grouped)
    height = ABOVE_IN + BELOW_IN + (ROW_IN if found.grouped else LANE_IN) * max(rows, 3)
    longest = max(20, *(len(text) for bar in found.bars for text in (_name(bar), bar.plan)))
    left = min(0.35, (0.35 + LETTER_IN * longest) / WIDTH_IN)
    figure = Figure(figsize=(WIDTH_IN, height), facecolor="white")
    time_axes, memory_axes = figure.subplots(1, 2, sharey=True, width_ratios=(1.75, 1))
    figure.subplots_adjust(left=left, right=0.985, wspace=0.05, bottom=BELOW_IN / height, top=1 - ABOVE_IN / height)
    if found.grouped:
        _time(time_axes, found)
    else:
        draw_lanes(time_axes, found)
        _finish(time_axes, "One step, as it would run", 3)
    _memory(memory_axes, found)
    _names(time_axes, found)
    left_in = 0.2 / WIDTH_IN
    figure.text(left_in, 1 - 0.28 / height, found.title, size=14, weight="bold", color=INK, va="center")
    figure.text(left_in, 1 - 0.56 / height, "   ·   ".join(found.notes), size=9, color=QUIET, va="center")
    figure.text(left_in, 0.16 / height, SPREAD * found.grouped + MEANING, size=8, color=QUIET, va="center")
    return figure


def _time(axes: Axes, found: Picture) -> None:
    done = [0.0] * len(found.bars)
    rows = range(len(found.bars))
    for cause, label in CAUSES.items():
        took = [bar.seconds[cause] for bar in found.bars]
        if any(took):
            axes.barh(rows, took, left=done, height=0.66, color=COLOURS[cause], label=label)
        done = [a + b for a, b in zip(done, took, strict=True)]
    waiting = [max(0.0, found.slowest_s - end) for end in done]
    if any(wait > 0.005 * found.slowest_s for wait in waiting):
        axes.barh(
            rows, waiting, left=done, height=0.66, facecolor="white", edgecolor="#C8C8C8", hatch="////", linewidth=0,
            label="free: the slowest is awaited", zorder=0.5,
        )  # fmt: skip
    if found.grouped:
        _spread(axes, [bar.spread_s for bar in found.bars])
    axes.set_xlim(0, 1.02 * max(found.slowest_s, *(bar.spread_s[1] for bar in found.bars)))
    _step_labels(axes, found, done)
    axes.set_xlabel(f"seconds of one step   (a round: {found.steps} steps, {duration(found.steps * found.slowest_s)})")
    _finish(axes, "Time of a step", 4)


def _step_labels(axes: Axes, found: Picture, done: Sequence[float]) -> None:
    """The step time after the bar, or inside its right end where there is no room after it."""
    full = axes.get_xlim()[1]
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.9}
    for row, (bar, end) in enumerate(zip(found.bars, done, strict=True)):
        end = max(end, bar.spread_s[1]) if found.grouped else end
        inside = end > (0.8 if found.grouped else 0.88) * full
        axes.text(
            end + (-0.008 if inside else 0.008) * full, row, step_text(bar), va="center",
            ha="right" if inside else "left", size=8.5, color=INK, bbox=box,
        )  # fmt: skip


def _memory(axes: Axes, found: Picture) -> None:
    rows = range(len(found.bars))
    done = [0.0] * len(found.bars)
    axes.barh(rows, [100.0] * len(found.bars), height=0.66, color=FAINT, zorder=0.4)
    for part, label in PARTS.items():
        took = [100 * bar.bytes[part] / bar.limit_bytes for bar in found.bars]
        if any(took):
            axes.barh(rows, took, left=done, height=0.66, color=COLOURS[part], label=label)
        done = [a + b for a, b in zip(done, took, strict=True)]
    if found.grouped:
        _spread(axes, [(100 * low, 100 * high) for low, high in (bar.spread_share for bar in found.bars)])
    axes.axvline(100, color=INK, linewidth=1.2)
    for row, bar in enumerate(found.bars):
        axes.text(102, row, memory_text(bar), va="center", size=8.5, color=INK)
    axes.set_xlim(0, 152)
    axes.set_xticks(range(0, 101, 25), [f"{share} %" for share in range(0, 101, 25)])
    axes.set_xlabel("of the memory that a plan may fill", x=0.33)
    _finish(axes, "Peak memory", 2)


def _spread(axes: Axes, spreads: Sequence[tuple[float, float]]) -> None:
    for row, (low, high) in enumerate(spreads):
        axes.plot([low, high], [row, row], color=INK, linewidth=1.3, marker="|", markersize=7)


def _names(axes: Axes, found: Picture) -> None:
    rows = [(_name(bar), bar.plan) for bar in found.bars]
    if not found.grouped:
        rows.append(("server", "whose work runs, by share"))
    axes.set_yticks(range(len(rows)), [""] * len(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    for row, (name, plan) in enumerate(rows):
        for text, offset, colour, weight in ((name, 5.5, INK, "bold"), (plan, -5.5, QUIET, "normal")):
            axes.annotate(
                text, (0, row), (-8, offset), xycoords=("axes fraction", "data"), textcoords="offset points",
                ha="right", va="center", size=8.5 if weight == "bold" else 7.5, color=colour, weight=weight,
            )  # fmt: skip


def _name(bar: Bar) -> str:
    return f"{bar.name} × {bar.count}" if bar.count > 1 else bar.name


def _finish(axes: Axes, title: str, columns: int) -> None:
    axes.set_title(title, loc="left", size=11, color=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False, colors=QUIET, labelsize=8.5)
    axes.xaxis.label.set(color=QUIET, size=9)
    axes.set_axisbelow(True)
    axes.legend(
        loc="upper left", bbox_to_anchor=(0, 0), borderaxespad=4.6, frameon=False, ncols=columns, fontsize=8.5,
        handlelength=1.3, columnspacing=1.4, borderpad=0.0,
    )  # fmt: skip
