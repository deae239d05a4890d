"""What a person reads before and after a run: the device, the plan with its price, the question, the result."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fedsplit.cli import words
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.devices.units import duration
from fedsplit.exchange.selection import HIGHER_IS_BETTER, better
from fedsplit.plan.traffic import Moved, RunTraffic
from fedsplit.plan.trained import trained
from fedsplit.plan.types import ABSENT, ClientPlan, Estimate, Topology

WIDTH = 100
BAR = 30
SHARES = frozenset({"accuracy", "macro_f1", "token_accuracy"})
"""Metrics from 0 to 1, which a bar can show."""
HERE, THERE = "green", "magenta"


class AccuracyRow(NamedTuple):
    """One device: its metric before, after training alone, and after training together; None where not measured."""

    name: str
    before: float | None
    alone: float | None
    together: float | None


def show_profile(profile: DeviceProfile, console: Console | None = None) -> None:
    """Print what this device can do, as measured."""
    rows = [
        ("machine", f"{profile.arch}, {profile.cores} cores, {profile.threads} threads used"),
        ("a layer", _flops(profile.flops)),
        *((f"  in {dtype}", _by_threads(found)) for dtype, found in sorted(profile.flops_by_threads.items())),
        ("a product", _flops(profile.matmul_flops)),
        ("overhead", duration(profile.layer_overhead_s) if profile.layer_overhead_s else ""),
        ("memory", f"{words.size(profile.free_memory_bytes)} free of {words.size(profile.memory_bytes)}, "
                   f"{_giga(profile.memory_bandwidth_bps)}B/s"),
        ("set aside", words.size(profile.reserve_bytes) if profile.reserve_bytes else ""),
        ("the program", words.size(profile.runtime_bytes) if profile.runtime_bytes else ""),
        ("disk", _disk(profile)),
        ("link", _link(profile.link)),
        ("power", f"{profile.power_w:.1f} W" if profile.power_w is not None else ""),
        ("disturbed", f"the slowest tenth took {profile.slowdown:.2g} × as long" if profile.slowdown > 1 else ""),
        ("limits", str(profile.limits) if profile.limits is not None else ""),
        ("past runs", _learnt(profile)),
    ]  # fmt: skip
    rows = [(what, text) for what, text in rows if text]
    footer = ", ".join(part for part in (profile.measured and f"measured {profile.measured}", profile.source) if part)
    _panel(console, profile.name, _pairs(rows), footer)


def _flops(flops: Mapping[str, float]) -> str:
    return ", ".join(f"{_giga(rate)}FLOP/s in {name}" for name, rate in sorted(flops.items()))


def _by_threads(found: Mapping[str, float]) -> str:
    counts = sorted(found, key=int)
    return ", ".join(f"{_giga(found[count])}FLOP/s on {count}" for count in counts) + " threads"


def _disk(profile: DeviceProfile) -> str:
    free = f"{words.size(profile.disk_free_bytes)} free" if profile.disk_free_bytes else ""
    rates = (("written", profile.disk_write_bps), ("read", profile.disk_read_bps))
    return ", ".join(part for part in (free, *(f"{words.size(one)}/s {what}" for what, one in rates if one)) if part)


def _link(link: Link | None) -> str:
    if link is None:
        return "not measured"
    text = f"{words.size(link.up_bps)}/s up, {words.size(link.down_bps)}/s down, {link.latency_s * 1e3:.1f} ms one way"
    return f"{text}, {link.source}" if link.source else text


def _learnt(profile: DeviceProfile) -> str:
    """Of a profile as kept; in a corrected one it is in the numbers."""
    if profile.time_factor == profile.memory_factor == 1:
        return ""
    return f"computing took {profile.time_factor:g} × as long, the program {profile.memory_factor:g} × its memory"


def show_plan(plan: ClientPlan, whole: RunTraffic | None = None, console: Console | None = None) -> None:
    """Print, before the first byte leaves, what will be trained, what the operator can learn, and what it costs.

    With ``whole`` the price is that of the whole run, else of one step.
    """
    body: list[RenderableType] = [_layers(plan), Text(), _pairs(_plan_rows(plan, whole))]
    if plan.reasons:
        body += [Text(), *(Text(f"· {reason}", style="dim") for reason in plan.reasons)]
    _panel(console, f"Plan for {plan.client}", Group(*body), plan.binding and f"limited by {plan.binding}")


def ask(question: str, *, yes: bool = False, console: Console | None = None) -> bool:
    """Ask for y or n until one is given. Without a terminal nobody can answer: no, unless ``yes``."""
    console = console or Console(highlight=False)
    if yes:
        return True
    if not sys.stdin.isatty():
        console.print(Text(f"{question} Nobody is there to answer; add --yes to agree beforehand."))
        return False
    while True:
        try:
            answer = console.input(Text.assemble((question, "bold"), (" [y/n] ", "dim"))).strip().lower()
        except EOFError:
            return False
        if answer in ("y", "yes"):
            return True
        if answer in ("n", "no"):
            return False


def accuracy_table(rows: Sequence[AccuracyRow], metric: str = "accuracy", console: Console | None = None) -> None:
    """Print each device's ``metric`` before, alone and together, with a bar of what training together added.

    The column ``alone`` is left out when nobody trained alone.
    """
    console = console or Console(highlight=False)
    alone = any(row.alone is not None for row in rows)
    table = Table(box=None, padding=(0, 2), header_style="dim", title=Text(metric, style="bold"), title_justify="left")
    table.add_column("device")
    for name in ("before", "alone", "together") if alone else ("before", "after"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in rows:
        rival = row.alone if alone else row.before
        wins = None not in (row.together, rival) and _beats(metric, row.together or 0.0, rival or 0.0)
        values = (row.before, row.alone) if alone else (row.before,)
        together = Text(words.number(row.together), style="bold green" if wins else "bold")
        bar = _gain(rival, row.together) if metric in SHARES else Text()
        table.add_row(Text(row.name, style="bold"), *map(words.number, values), together, bar)
    console.print(Padding(table, (1, 0, 1, 1)))


def _beats(metric: str, new: float, old: float) -> bool:
    return metric in HIGHER_IS_BETTER and better(metric, new, old)


def _gain(before: float | None, after: float | None) -> Text:
    """How far it was, and what came on top; the full width is 1."""
    low, high = (round(BAR * min(1.0, max(0.0, value or 0.0))) for value in (before, after))
    bar = Text("━" * min(low, high), style="dim")
    bar.append("━" * max(0, high - low), "bold green")
    return bar


def _plan_rows(plan: ClientPlan, whole: RunTraffic | None) -> list[tuple[str, str]]:
    here = [layer.trains for layer in plan.layers if layer.place == "client"]
    rows = [
        ("topology", f"{plan.topology}: {TOPOLOGIES[plan.topology]}"),
        ("trains", f"LoRA in {trained(plan.layers)}; on this device {sum(here)} of {len(here)} layers"),
        ("batch", f"{plan.batch} rows in {plan.micro_batches} part{'s' * (plan.micro_batches > 1)}, {plan.dtype}"),
    ]
    if plan.exposure:
        rows.append(("privacy", plan.exposure))
    if plan.estimate is not None:
        rows += _price(plan.estimate, whole)
    return rows


def _price(cost: Estimate, whole: RunTraffic | None) -> list[tuple[str, str]]:
    steps = whole.steps if whole else 1
    per = f"{steps:,} steps" if whole else "one step"
    energy = f", {cost.energy_j * steps / 3600:.2g} Wh" if cost.energy_j else ""
    traffic = _whole(whole) if whole else [("traffic", f"about {_moved(Moved(cost.up_bytes, cost.down_bytes))}")]
    return [
        ("memory", f"{words.size(cost.memory_bytes)}, disk {words.size(cost.disk_bytes)}"),
        *traffic,
        ("time", f"about {words.duration(cost.step_s * steps)} for {per}{energy}"),
    ]


def _whole(whole: RunTraffic) -> list[tuple[str, str]]:
    """The run's traffic and what it is made of."""
    causes = [
        (f"{whole.steps:,} steps", whole.training),
        (f"{whole.measurements} measurement{'s' * (whole.measurements != 1)} on your test rows", whole.measuring),
        ("adapters, every round", whole.factors),
        ("base model, once", Moved(0, whole.download_bytes)),
    ]
    parts = [f"{_moved(moved)}: {what}" for what, moved in causes if moved != Moved()]
    about = "about"
    if whole.assumed_tokens:
        about = "at most about"
        parts.append(f"if every row fills {whole.assumed_tokens} tokens; shorter rows move less")
    return [("traffic", f"{about} {_moved(whole.total)}"), *(("", part) for part in parts)]


def _moved(moved: Moved) -> str:
    return f"{words.size(moved.up_bytes)} up, {words.size(moved.down_bytes)} down"


TOPOLOGIES = {
    Topology.LOCAL: "the whole model is on this device",
    Topology.U: "first and last layers and the labels stay here",
    Topology.V: "the first layers stay here, the labels go to the server",
    Topology.W: "only the embedding and the head stay here",
}


def _layers(plan: ClientPlan) -> Text:
    """The model as a strip: what is here, what is there, what trains; legible without colours, too."""
    strip = Text("embedding ", style=HERE)
    for layer in plan.layers:
        at_home = layer.place == "client"
        if layer.place == ABSENT:
            strip.append("·", "dim")
            continue
        strip.append((("░", "▓"), ("□", "■"))[at_home][layer.trains], HERE if at_home else THERE)
    strip.append(" head", THERE if plan.topology is Topology.V else HERE)
    strip.append("   ■ this device", HERE)
    if plan.topology is not Topology.LOCAL:
        strip.append("  ▓ server", THERE)
    if plan.absent:
        strip.append("  · left out", "dim")
    if not all(layer.trains or layer.place == ABSENT for layer in plan.layers):
        strip.append("  □ ░ frozen", "dim")
    return strip


def _pairs(rows: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in rows:
        table.add_row(name, value)
    return table


def _panel(console: Console | None, title: str, body: RenderableType, footer: str) -> None:
    console = console or Console(highlight=False)
    subtitle = Text(footer, style="dim") if footer else None
    width = min(WIDTH, console.width)
    console.print(Panel(body, title=Text(title, style="bold"), title_align="left", subtitle=subtitle,
                        subtitle_align="left", border_style="dim", padding=(1, 2), width=width))  # fmt: skip


def _giga(rate: float) -> str:
    return f"{rate / 1e9:.1f} G" if rate < 1e12 else f"{rate / 1e12:.1f} T"
