"""One step of every client in time: lanes for device, uplink, server and downlink, as the simulation runs them.

The slowest is on top; every other micro-batch is paler, hatching is time in which a client awaits the slowest. The last
row is the server: each client's share of it is a band, filled while it works for that client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsplit.cli.plan_picture import Bar, Picture, step_text
from fedsplit.devices.units import duration
from fedsplit.plan.pipeline import Busy, Resource

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "device": "#0072B2",
    "up": "#E69F00",
    "server": "#009E73",
    "down": "#56B4E9",
    "latency": "#CC79A7",
    "runtime": "#999999",
    "model": "#F0E442",
    "training": "#D55E00",
}
INK, QUIET, TRACK = "#222222", "#666666", "#F1F1F1"

LANES = {
    Resource.CLIENT: ("device", "the device computes", 0.0, 0.34),
    Resource.UP: ("up", "sending", 0.36, 0.13),
    Resource.SERVER: ("server", "the server, for this device", 0.51, 0.15),
    Resource.DOWN: ("down", "receiving", 0.68, 0.13),
}
"""Colour, name, offset from the top of the row and height of each resource's lane, in rows."""
TOP = 0.41
"""From a row's middle to its first lane."""
PALE = 0.5
"""Opacity of every other micro-batch."""


def draw_lanes(axes: Axes, found: Picture) -> None:
    """The left panel: a row of lanes a client, then the server's row."""
    end_s = max(bar.lane_s for bar in found.bars)
    axes.set_xlim(0, 1.13 * end_s)
    for row, bar in enumerate(found.bars):
        _lanes(axes, row, bar, label=row == 0)
        _after(axes, row, bar, end_s)
    _server(axes, len(found.bars), found, end_s)
    _legend(axes, found, end_s)
    axes.set_xlabel(f"seconds   (a round: {found.steps} steps, {duration(found.steps * found.slowest_s)})")


def _lanes(axes: Axes, row: int, bar: Bar, *, label: bool) -> None:
    alone = all(busy.stage.resource is Resource.CLIENT for busy in bar.lane)
    for resource, (cause, _, offset, lane_height) in LANES.items():
        bottom, height = row - TOP + offset, 2 * TOP if alone else lane_height
        mine = [busy for busy in bar.lane if busy.stage.resource is resource]
        if mine or resource is Resource.CLIENT:
            axes.broken_barh([(0, bar.lane_s)], (bottom, height), facecolor=TRACK, zorder=0.4)
        for odd in (0, 1):
            _blocks(axes, [busy for busy in mine if busy.micro % 2 == odd], (bottom, height), COLOURS[cause], odd)


def _blocks(axes: Axes, some: list[Busy], at: tuple[float, float], colour: str, odd: int) -> None:
    spans = [(busy.start, busy.end - busy.start) for busy in some if busy.end > busy.start]
    if spans:
        axes.broken_barh(spans, at, facecolor=colour, alpha=PALE if odd else 1.0, edgecolor="white", linewidth=0.4)


def _after(axes: Axes, row: int, bar: Bar, end_s: float) -> None:
    """Hatched until the slowest is done, and the step's seconds, also as the plan counts them where that differs."""
    if end_s - bar.lane_s > 0.005 * end_s:
        axes.barh(
            row, end_s - bar.lane_s, left=bar.lane_s, height=2 * TOP, facecolor="white", edgecolor="#CCCCCC",
            hatch="////", linewidth=0, zorder=0.5,
        )  # fmt: skip
    planned = (
        step_text(bar) if abs(bar.lane_s / bar.step_s - 1) < 0.01 else f"{duration(bar.lane_s)}\nplan: {step_text(bar)}"
    )
    axes.text(
        bar.lane_s + 0.012 * end_s, row, planned, va="center", ha="left", size=8.5, color=INK,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.9},
    )  # fmt: skip


def _server(axes: Axes, row: int, found: Picture, end_s: float) -> None:
    """Bands as high as the clients' shares, in their order; what is left over belongs to nobody yet."""
    axes.axhline(row - 0.5, color="#BBBBBB", linewidth=0.8)
    axes.broken_barh([(0, end_s)], (row - TOP, 2 * TOP), facecolor=TRACK, zorder=0.4)
    top = row - TOP
    for index, bar in enumerate(found.bars):
        height = 2 * TOP * bar.served
        spans = [(b.start, b.end - b.start) for b in bar.lane if b.stage.resource is Resource.SERVER]
        if spans:
            axes.broken_barh(
                spans, (top, height), facecolor=COLOURS["server"], alpha=PALE if index % 2 else 1.0, edgecolor="white",
                linewidth=0.4,
            )  # fmt: skip
        top += height


def _legend(axes: Axes, found: Picture, end_s: float) -> None:
    drawn = {busy.stage.resource for bar in found.bars for busy in bar.lane}
    for resource, (cause, name, _, _) in LANES.items():
        if resource in drawn:
            axes.barh([0], [0], color=COLOURS[cause], label=name)
    if any(end_s - bar.lane_s > 0.005 * end_s for bar in found.bars):
        axes.barh(
            [0], [0], facecolor="white", edgecolor="#C8C8C8", hatch="////", linewidth=0,
            label="free: the slowest is awaited",
        )  # fmt: skip
