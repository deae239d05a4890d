"""Numbers and events in words, for people: used on terminals, in logs and in tables."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from fedsplit.cli.board import Round, headline

FINISHED = "finished"
"""The reason with which a device leaves when all is done."""
BLOCKS = "▁▂▃▄▅▆▇█"


def size(nbytes: float) -> str:
    """``12.3 MB``; decimal units, three digits."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= 0.9995 * factor:
            value = nbytes / factor
            return f"{value:.{0 if value >= 99.95 else 1}f} {unit}"
    return f"{nbytes:.0f} B"


def duration(seconds: float) -> str:
    """``0.42 s``, ``12 s``, ``3:05 min``, ``1 h 02``."""
    if seconds < 9.995:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60} h {minutes % 60:02d}"


def number(value: float | None) -> str:
    """Four significant digits; a dash for nothing."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1e5 or 0 < abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:.{max(0, 3 - max(0, len(str(int(abs(value)))) - 1))}f}"


def names(group: Sequence[str], most: int = 4) -> str:
    """``pi, laptop and 3 more``."""
    if len(group) <= most:
        return ", ".join(group)
    return f"{', '.join(group[: most - 1])} and {len(group) - most + 1} more"


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts ``edge-2`` before ``edge-10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def spark(values: Sequence[float], width: int) -> str:
    """The last ``width`` values as blocks between their own minimum and maximum."""
    shown = [value for value in values if math.isfinite(value)][-width:]
    if len(shown) < 2:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in shown)


def where(topology: str, cut: tuple[int, int]) -> str:
    """Which layers are not on the device."""
    c1, c2 = cut
    if topology in ("", "local") or c1 == c2:
        return "local" if topology else ""
    return f"{topology} {c1}–{c2}"


def joined(client: str, topology: str, cut: tuple[int, int]) -> str:
    """One line for a device that came."""
    c1, c2 = cut
    if topology in ("", "local") or c1 == c2:
        return f"{client} joined, holds the whole model itself"
    last = "" if topology != "v" else " and the head"
    span = f"layer {c1}" if c2 == c1 + 1 else f"layers {c1} to {c2 - 1}"
    return f"{client} joined, topology {topology}: {span}{last} on the server"


def round_line(closed: Round, metrics: Mapping[str, float]) -> str:
    """The one line of a round."""
    parts = [f"round {closed.round + 1}/{closed.rounds}"]
    total = len(closed.arrived) + len(closed.late)
    if total > 1 or closed.late:
        parts.append(f"{len(closed.arrived)} of {total} devices")
    if not closed.committed:
        parts.append(f"discarded: {closed.reason or 'nothing to merge'}")
    if closed.loss is not None:
        parts.append(f"loss {number(closed.loss)}")
    if metrics:
        parts.append(measured(metrics))
    if closed.up_bytes or closed.down_bytes:
        parts.append(f"{size(closed.up_bytes)} up, {size(closed.down_bytes)} down")
    parts.append(duration(closed.seconds))
    if closed.late and closed.committed:
        parts.append(f"without {names(closed.late)}")
    return "  ".join(parts)


def measured(metrics: Mapping[str, float]) -> str:
    """``accuracy 0.4200 (worst device 0.3100)``."""
    name = headline(metrics)
    if not name:
        return ", ".join(f"{key} {number(value)}" for key, value in sorted(metrics.items()))
    worst, own = metrics.get(f"worst_client_{name}"), metrics.get(f"server_{name}")
    extra = [f"worst device {number(worst)}"] if worst is not None and worst != metrics[name] else []
    extra += [f"operator's rows {number(own)}"] if own is not None else []
    return f"{name} {number(metrics[name])}" + (f" ({', '.join(extra)})" if extra else "")


def waits(waiters: Sequence[str], on: Sequence[str], what: str, waited_s: float, left_s: float | None) -> str:
    """Who waits for whom since when."""
    verb = "waits" if len(waiters) == 1 else "wait"
    who = f"{names(waiters)} {verb}" if waiters else "waiting"
    end = f", gives up in {duration(max(0.0, left_s))}" if left_s is not None else ""
    return f"{who} for {names(on)}: {what}, since {duration(waited_s)}{end}"
