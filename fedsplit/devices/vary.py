"""Many devices from one profile: links and free memory spread around it, each client's factors from its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import Problem
from fedsplit.seeds import generator

KEYS = ("link", "memory")
MOST = 100.0
"""A wider spread is a mistake: no two machines of one profile differ by more."""


def vary_problems(spread: Any, where: str) -> list[Problem]:
    """Everything wrong with a ``vary`` table: unknown keys, and numbers outside 1 to 100."""
    if not isinstance(spread, Mapping):
        return [Problem(where, repr(spread), "a table", "e.g. vary = { link = 2.0, memory = 1.25 }")]
    found = [
        Problem(f"{where}.{key}", "an unknown key", f"one of {', '.join(KEYS)}")
        for key in sorted(set(spread) - {*KEYS})
    ]
    for key in KEYS:
        value = spread.get(key, 1.0)
        # Written so that NaN, which compares with nothing, is refused, too.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= MOST:
            fix = "2 means between half and twice the profile's value"
            found.append(Problem(f"{where}.{key}", repr(value), f"a number from 1 to {MOST:g}", fix))
    return found


def varied(profile: DeviceProfile, client: str, spread: Mapping[str, float]) -> DeviceProfile:
    """``profile`` as ``client`` has it: rates and free memory times factors between 1/x and x, log-uniform.

    One factor serves both directions of the link; latency stays. Memory never exceeds the machine's, nor falls below
    its reserve. The same name and spread give the same device on every machine.
    """
    draw = generator("fleet", client)
    link, memory = (float(spread.get(key, 1.0)) ** (2 * draw.random() - 1) for key in KEYS)
    free = round(profile.free_memory_bytes * memory)
    changed = msgspec.structs.replace(
        profile, free_memory_bytes=max(profile.reserve_bytes, min(profile.memory_bytes, free))
    )
    if profile.link is None:
        return changed
    rates = msgspec.structs.replace(
        profile.link, up_bps=profile.link.up_bps * link, down_bps=profile.link.down_bps * link
    )
    return msgspec.structs.replace(changed, link=rates)
