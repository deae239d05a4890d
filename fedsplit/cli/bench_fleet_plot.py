"""The picture of ``fedsplit bench fleet``: accuracy against emulated seconds, a line a method, a band over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedsplit.cli.plan_lanes import INK, QUIET
from fedsplit.cli.plan_plot import DPI, check_plot
from fedsplit.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
MARKERS = "os^Dv*"
"""Lines are told apart in grey, too."""
SIZE_IN = (9.0, 5.0)


@dataclass(frozen=True)
class Line:
    """``curves``: accuracy after each round, one a seed; a round takes ``round_s`` seconds."""

    name: str
    round_s: float
    curves: Sequence[Sequence[float]]


def check_target(path: Path) -> None:
    """Everything that can be wrong before measuring; raises as ``check_plot``."""
    check_plot(path)


def draw(lines: Sequence[Line], goal: float, path: Path) -> Path:
    """Draw into ``path``; the suffix chooses the format. Raises ConfigError when it cannot be written."""
    stamp = {".png": None, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[path.suffix.lower()]
    try:
        figure_of(lines, goal).savefig(path, dpi=DPI, metadata=stamp)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror or error}", str(path)) from error
    return path


def figure_of(lines: Sequence[Line], goal: float) -> Figure:
    """The figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_IN, facecolor="white", layout="constrained")
    axes = figure.subplots()
    for index, line in enumerate(lines):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        shortest = min(len(curve) for curve in line.curves)
        values_SR = np.asarray([curve[:shortest] for curve in line.curves])
        at_R = line.round_s * np.arange(1, shortest + 1)
        count = len(line.curves)
        label = f"{line.name} ({count} seed{'s' if count > 1 else ''})"
        axes.plot(at_R, values_SR.mean(axis=0), color=colour, marker=marker, markersize=4, label=label)
        axes.fill_between(at_R, values_SR.min(axis=0), values_SR.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    axes.axhline(goal, color=QUIET, linestyle="--", linewidth=1)
    axes.annotate(f"{goal:g}", (1.0, goal), xycoords=("axes fraction", "data"), xytext=(3, 0),
                  textcoords="offset points", va="center", color=QUIET)  # fmt: skip
    axes.set_xlabel("emulated seconds", color=INK)
    axes.set_ylabel("accuracy on test rows", color=INK)
    axes.set_title("MiniLM on AG News, five unlike devices", loc="left", color=INK)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if lines:
        axes.legend(frameon=False, loc="lower right")
    return figure
