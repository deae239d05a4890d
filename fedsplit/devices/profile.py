"""What one machine can do, in measured numbers; one TOML file a device."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from fedsplit.devices.limits import Limits

SAFETY = 0.9
"""Share of the free memory that a plan may fill: allocators keep holes, and other programs breathe."""


TORCH_BYTES = 400_000_000
"""What a process with torch takes before any weight."""
TORCH_LEAST = 150_000_000
"""No process with torch takes less: a profile that says so is of a program without it."""
FACTOR_LEAST, FACTOR_MOST = 0.25, 4.0
"""A machine that is further off than this was measured wrongly, or is not the one that was measured."""


class Link(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The way to a server: bytes per second up and down (10th percentile), one-way latency in seconds.

    ``source``: how they are known, e.g. ``measured to HOST:PORT on 2026-11-21``; it never leaves the device.
    """

    up_bps: float
    down_bps: float
    latency_s: float = 0.01
    source: str = ""


class DeviceProfile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One machine. ``flops`` maps a dtype name (``float32``, ``bfloat16``) to measured FLOP/s of a decoder layer.

    ``free_memory_bytes``: after the operating system, before fedsplit starts. ``reserve_bytes``: of that, to be left
    alone. ``runtime_bytes``: what a fedsplit process takes before any weight (about 400 MB with torch, 92 MB with the
    edge runtime; 0 where the memory is the accelerator's). ``layer_overhead_s``: seconds of one pass through one layer
    that do not depend on its size. ``power_w``: watts while computing. ``edge``: with the edge runtime, not with torch.

    ``limits``: what its owner allows. ``time_factor``, ``memory_factor``: what past runs showed, times the computing
    seconds and times ``runtime_bytes``; between ``FACTOR_LEAST`` and ``FACTOR_MOST`` (``fedsplit.plan.correction``).
    Planners take ``corrected``.

    ``flops`` are those of ``threads`` threads; ``flops_by_threads``, where it was measured, maps a dtype to numbers of
    threads (as texts, TOML's keys) to FLOP/s, for clients that are told to use fewer. ``slowdown``: how many times
    longer than counted the slowest tenth of the repetitions took; plans are made for that (``cautious``). For a reader
    only: ``matmul_flops`` of plain multiplication, ``disk_write_bps`` and ``disk_read_bps`` (0: not measured).
    """

    name: str
    arch: str
    cores: int
    threads: int
    flops: dict[str, float]
    memory_bandwidth_bps: float
    memory_bytes: int
    free_memory_bytes: int
    reserve_bytes: int = 0
    runtime_bytes: int = TORCH_BYTES
    layer_overhead_s: float = 0.0
    disk_free_bytes: int = 0
    link: Link | None = None
    limits: Limits | None = None
    power_w: float | None = None
    time_factor: float = 1.0
    memory_factor: float = 1.0
    flops_by_threads: dict[str, dict[str, float]] = {}
    matmul_flops: dict[str, float] = {}
    disk_write_bps: float = 0.0
    disk_read_bps: float = 0.0
    slowdown: float = 1.0
    edge: bool = False
    measured: str = ""
    source: str = ""

    @property
    def corrected(self) -> DeviceProfile:
        """The same machine with what past runs showed written into its numbers, and factors of 1."""
        slower = self._paced(self.time_factor)
        runtime = round(self.runtime_bytes * self.memory_factor)
        return replace(slower, runtime_bytes=runtime, time_factor=1.0, memory_factor=1.0)

    @property
    def cautious(self) -> DeviceProfile:
        """The same machine in its slowest tenth: computing takes ``slowdown`` times as long, at most ``FACTOR_MOST``
        times, because more than that says that the measurement was disturbed. Its own ``slowdown`` is 1."""
        return self if self.slowdown == 1 else replace(self._paced(self.caution), slowdown=1.0)

    @property
    def caution(self) -> float:
        """The factor of ``cautious``."""
        return min(self.slowdown, FACTOR_MOST)

    def _paced(self, slower: float) -> DeviceProfile:
        """Computing takes ``slower`` times as long."""
        return replace(
            self,
            flops={dtype: speed / slower for dtype, speed in self.flops.items()},
            flops_by_threads={
                dtype: {count: speed / slower for count, speed in found.items()}
                for dtype, found in self.flops_by_threads.items()
            },
            memory_bandwidth_bps=self.memory_bandwidth_bps / slower,
            layer_overhead_s=self.layer_overhead_s * slower,
        )

    @property
    def without_torch(self) -> bool:
        """Whether ``runtime_bytes`` are of a program without torch."""
        return self.edge or 0 < self.runtime_bytes < TORCH_LEAST

    @property
    def with_torch(self) -> DeviceProfile:
        """The same machine as it would compute with torch, whose program takes more of its memory."""
        return replace(self, edge=False, runtime_bytes=TORCH_BYTES) if self.without_torch else self

    @property
    def anonymous(self) -> DeviceProfile:
        """As a server may see it: not where else this device has measured its link, nor when its owner lets it work."""
        link = self.link and replace(self.link, source="")
        return replace(self, link=link, limits=self.limits and self.limits.planned)

    @property
    def budget_bytes(self) -> int:
        """Memory that a whole fedsplit process may take on this machine: what there is, and what its owner allows."""
        there = int(SAFETY * (self.free_memory_bytes - self.reserve_bytes))
        allowed = self.limits.max_memory_bytes if self.limits is not None else 0
        return min(there, allowed) if allowed else there

    def threads_of(self, wanted: int) -> int:
        """Threads to plan for: as many as are ``wanted`` (0: as measured), at most those that the owner allows."""
        allowed = self.limits.threads if self.limits is not None else 0
        return min(wanted or self.threads, allowed) if allowed else wanted
