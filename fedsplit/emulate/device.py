"""What holding a process to a device's profile comes to here: its threads, its share of this machine, its limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedsplit.devices.here import usable_threads
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.devices.units import duration, rate, size
from fedsplit.plan.threads import share_of
from fedsplit.plan.timing import ASSUMED_LINK
from fedsplit.plan.timing import speed as flops

ROOM = 1.02
"""A device this much faster than what is here is called equal: profiles have three digits."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """One device as it is emulated. ``wanted``: its speed over what ``threads`` threads give here; above 1 it cannot be
    emulated, and the process runs as fast as it can."""

    name: str
    profile: DeviceProfile
    threads: int
    wanted: float

    @property
    def share(self) -> float:
        return min(1.0, self.wanted)

    @property
    def link(self) -> Link:
        """The device's, or what its plan assumes where it was never measured."""
        return self.profile.link or ASSUMED_LINK

    @property
    def limit_bytes(self) -> int:
        """What a plan may fill there."""
        return self.profile.budget_bytes

    def __str__(self) -> str:
        at = f"{self.threads} thread{'s' if self.threads > 1 else ''} at {self.share:.0%}"
        ways = f"{rate(self.link.up_bps)} up, {rate(self.link.down_bps)} down, {duration(self.link.latency_s)}"
        return f"{self.name} is held to {self.profile.name}: {at}, {size(self.limit_bytes)}, {ways}"


def held(name: str, profile: DeviceProfile, own: DeviceProfile, dtype: str = "float32", threads: int = 0) -> Held:
    """``profile`` on this machine, whose profile is ``own``. ``threads``: fewer than the device has, as for a plan."""
    used = max(1, min(threads or profile.threads, usable_threads()))
    device = flops(profile, dtype) * share_of(profile, dtype, threads)
    here = flops(own, dtype) * share_of(own, dtype, used)
    return Held(name=name, profile=profile, threads=used, wanted=device / here)


def remarks(devices: Mapping[str, Held]) -> Iterable[str]:
    """What these devices cannot be held to here; each in a sentence."""
    fast = [one for one in devices.values() if one.wanted > ROOM]
    if fast:
        names = ", ".join(f"{one.name} ({one.wanted:.1f} times)" for one in fast)
        yield f"faster than this machine, so not emulated in speed: {names}; their steps take longer here"
    cores = sum(one.share * one.threads for one in devices.values())
    if cores + 1 > usable_threads():
        yield (
            f"together these devices compute on {cores:.1f} of {usable_threads()} cores, beside the server: "
            "where they compute at the same time, steps take longer here"
        )
    guessed = [one.name for one in devices.values() if one.profile.link is None]
    if guessed:
        yield f"no link was measured for {', '.join(guessed)}: 100 Mbit/s and 5 ms, as plans assume"
