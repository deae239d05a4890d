"""What the owner of a device allows: how much memory, how many threads, what to send up, and when.

Kept as the table ``[limits]`` of the device's own profile. The planner obeys what it can (memory, threads, bytes up),
the client obeys everything. Only the former leave the device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import time
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from fedsplit.devices.units import size
from fedsplit.errors import Problem

_SPAN = re.compile(r"\s*(\d{1,2}):(\d{2})\s*[-–]\s*(\d{1,2}):(\d{2})\s*")
_PLAUSIBLE = {
    "max_memory_bytes": (1e6, 1e19),
    "threads": (1, 4096),
    "upload_per_day_bytes": (1e3, 1e19),
    "max_temperature_c": (30, 120),
}
"""The least and the most that makes sense: what is beyond is a forgotten unit."""


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Zero, empty or false: no such limit.

    ``max_memory_bytes``: of the whole process. ``threads``: that compute. ``upload_per_day_bytes``: of all runs
    together, by the device's own calendar. ``between``: two times of the day, local time, ``22:00-06:00``; the end does
    not belong to it. ``only_on_mains``: not on battery. ``pause_when_busy``: not while other programs compute.
    ``max_temperature_c``: of the processor.
    """

    max_memory_bytes: int = 0
    threads: int = 0
    upload_per_day_bytes: int = 0
    between: str = ""
    only_on_mains: bool = False
    pause_when_busy: bool = False
    max_temperature_c: float = 0.0

    @property
    def planned(self) -> Limits | None:
        """Those that a planner obeys, which a server may see; None where there is none of them."""
        found = replace(self, between="", only_on_mains=False, pause_when_busy=False, max_temperature_c=0.0)
        return None if found == Limits() else found

    def __str__(self) -> str:
        parts = (
            self.max_memory_bytes and f"at most {size(self.max_memory_bytes)} of memory",
            self.threads and f"{self.threads} thread{'s' if self.threads > 1 else ''}",
            self.upload_per_day_bytes and f"{size(self.upload_per_day_bytes)} up a day",
            self.between and f"between {self.between}",
            self.only_on_mains and "only on mains",
            self.pause_when_busy and "not while other programs compute",
            self.max_temperature_c and f"below {self.max_temperature_c:g} °C",
        )
        return ", ".join(str(part) for part in parts if part)


def span(text: str) -> tuple[time, time] | None:
    """(begin, end) of ``22:00-06:00``; None when it is not understood, or both are the same."""
    match = _SPAN.fullmatch(text)
    if match is None:
        return None
    numbers = [int(part) for part in match.groups()]
    if max(numbers[0], numbers[2]) > 24 or max(numbers[1], numbers[3]) > 59:
        return None
    if any(hour == 24 and minute for hour, minute in (numbers[:2], numbers[2:])):
        return None
    begin, end = time(numbers[0] % 24, numbers[1]), time(numbers[2] % 24, numbers[3])
    return None if begin == end else (begin, end)


def limit_problems(plain: Mapping[str, Any], path: str = "limits") -> Iterator[Problem]:
    """What no limit can be; of a table with plain numbers."""
    for key, (least, most) in _PLAUSIBLE.items():
        value = plain.get(key)
        if value and not least <= value <= most:
            fix = "0 for no limit; is the unit missing, or another one?"
            yield Problem(f"{path}.{key}", f"{value:g}", f"{least:g} to {most:g}", fix)
    between = plain.get("between")
    if between and span(between) is None:
        yield Problem(f"{path}.between", repr(between), "two times of the day that differ", 'e.g. "22:00-06:00"')
