"""A profile as a text that a person can read and edit: what each number means and what it amounts to."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import tomli_w

from fedsplit.devices.limits import Limits
from fedsplit.devices.profile import DeviceProfile
from fedsplit.devices.units import duration, rate, size, speed

_NONE = msgspec.to_builtins(Limits())
HEAD = """\
# A device profile of fedsplit: edit it as you like, `fedsplit profile show` reads it back. Numbers may carry units, as
# in "1.5 GB", "20 Mbit/s", "5 ms", "12 GFLOPS"; a plain number is in bytes, bytes per second, seconds, FLOP/s, watts.
"""
MEANING = {
    "cores": "physical cores",
    "threads": "that compute; the numbers under [flops] are theirs",
    "memory_bandwidth_bps": "read and written while copying",
    "memory_bytes": "of the machine, or of its container or GPU",
    "free_memory_bytes": "after the operating system, before fedsplit starts",
    "reserve_bytes": "of the free memory, left alone: raise it to keep room for other programs",
    "runtime_bytes": "of the program before any weight",
    "edge": "computes with the edge runtime, not with torch",
    "layer_overhead_s": "of one pass through one layer, whatever its size",
    "disk_free_bytes": "free when it was measured; looked up again at every start",
    "disk_write_bps": "to the disk itself; 0: not measured",
    "disk_read_bps": "from the disk itself; 0: not measured",
    "power_w": "watts while computing",
    "time_factor": "past runs: computing took this many times as long as measured here",
    "memory_factor": "past runs: the program took this many times its memory",
    "slowdown": "the slowest tenth of the repetitions took this many times as long: other programs, heat",
    "limits.max_memory_bytes": "the whole program takes no more; 0: no limit",
    "limits.threads": "that compute; 0: as measured",
    "limits.upload_per_day_bytes": "of all runs together, until midnight; 0: no limit",
    "limits.between": 'times of the day, as in "22:00-06:00"; empty: always',
    "limits.only_on_mains": "not on battery",
    "limits.pause_when_busy": "not while other programs compute",
    "limits.max_temperature_c": "of the processor, in °C; 0: no limit",
    "link.up_bps": "to the server, 10th percentile",
    "link.down_bps": "from the server, 10th percentile",
    "link.latency_s": "one way",
}
SECTIONS = {
    "flops": "FLOP/s of a decoder layer, forward and backward: what plans count on",
    "matmul_flops": "operations per second of plain multiplication, for comparison only",
    "link": "delete this section, and the link counts as not measured",
    "limits": "what the owner allows: obeyed by plans and by the client, the last four never leave the device",
    "flops_by_threads": "by number of threads: for clients that are told to use fewer",
}


def dumps(profile: DeviceProfile) -> str:
    """Commented TOML that ``loads`` turns back into an equal profile."""
    raw = msgspec.to_builtins(profile)
    # An empty table says nothing; a link's source only where there is one.
    kept = {key: value for key, value in raw.items() if value is not None and value != {} and value != _NONE}
    if profile.link is not None and not profile.link.source:
        del kept["link"]["source"]
    lines, section = [HEAD.rstrip()], ""
    for line in tomli_w.dumps(kept).rstrip("\n").split("\n"):
        if line.startswith("["):
            section = line.strip("[]")
            about = SECTIONS.get(section.partition(".")[0], "")
            lines += [f"{line}  # {about}" if about else line]
            continue
        key, equals, _ = line.partition(" = ")
        note = _note(f"{section}.{key}" if section else key, _at(kept, section).get(key)) if equals else ""
        lines.append(f"{line}  # {note}" if note else line)
    return "\n".join(lines) + "\n"


def _at(raw: dict[str, Any], section: str) -> dict[str, Any]:
    for part in section.split(".") if section else ():
        raw = raw[part]
    return raw


def _note(path: str, value: Any) -> str:
    read = _read(path, value) if isinstance(value, int | float) and math.isfinite(value) and value else ""
    return ": ".join(part for part in (read, MEANING.get(path, "")) if part)


def _read(path: str, value: float) -> str:
    """The number as people say it; empty where it says so itself."""
    if "flops" in path.partition(".")[0]:
        return speed(value)
    if path.startswith("link.") and path.endswith("_bps"):
        return rate(value)
    if path.endswith("_bps"):
        return f"{size(value)}/s"
    if path.endswith("_bytes"):
        return size(value)
    return duration(value) if path.endswith("_s") else ""
