"""Sizes, rates, times and speeds as people write them: ``4 GB``, ``20 Mbit/s``, ``5 ms``, ``12 GFLOPS``."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\s*([+-]?\d+(?:[._]\d+)*(?:[eE][+-]?\d+)?)\s*(.*?)\s*$")

_SCALES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}

BYTES = {f"{prefix}B": scale for prefix, scale in _SCALES.items()} | {
    f"{prefix}iB": 1024.0**power for power, prefix in enumerate("KMGT", 1)
}
RATES = (
    {f"{unit}/s": scale for unit, scale in BYTES.items()}
    | {f"{prefix}bit/s": scale / 8 for prefix, scale in _SCALES.items()}
    | {f"{prefix}bps": scale / 8 for prefix, scale in _SCALES.items() if prefix}
)
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60.0}
SPEEDS = {f"{prefix}FLOP{end}": scale for prefix, scale in _SCALES.items() for end in ("S", "/s")}
WATTS = {"W": 1.0, "mW": 1e-3}


def units_of(field: str) -> dict[str, float]:
    """The units that a field may be written in, known from the end of its name; empty: a plain number only."""
    ends = {"_bytes": BYTES, "_bps": RATES, "_s": SECONDS, "_w": WATTS, "_flops": SPEEDS}
    return next((units for end, units in ends.items() if field.endswith(end)), {})


def parse(text: str, units: dict[str, float]) -> float | None:
    """``text`` in the base unit (bytes, bytes per second, seconds, FLOP/s, watts); None when it is not understood."""
    match = _NUMBER.match(text)
    if match is None or (match[2] and match[2] not in units):
        return None
    return float(match[1].replace("_", "")) * (units[match[2]] if match[2] else 1.0)


def size(count: float) -> str:
    """Bytes for a reader, three digits: ``312 MB``, ``1.24 GB``."""
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(count) >= 0.9995 * scale:
            return f"{_three(count / scale)} {unit}"
    return f"{count:.0f} B"


def _three(value: float) -> str:
    """Three significant digits, whole numbers without a fraction."""
    text = f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def duration(seconds: float) -> str:
    """Seconds for a reader: ``4.2 ms``, ``1.31 s``, ``12 min``."""
    if seconds < 1:
        return f"{seconds * 1e3:.2g} ms" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def speed(flops: float) -> str:
    """FLOP/s for a reader: ``12.4 GFLOP/s``."""
    return f"{_three(flops / 1e12)} TFLOP/s" if flops >= 1e12 else f"{_three(flops / 1e9)} GFLOP/s"


def rate(bytes_per_s: float) -> str:
    """A link's rate for a reader, in bits as it is sold: ``20 Mbit/s``."""
    bits = 8 * bytes_per_s
    return f"{_three(bits / 1e9)} Gbit/s" if bits >= 1e9 else f"{_three(bits / 1e6)} Mbit/s"
