"""What one machine can do, in measured numbers; one TOML file a device."""

from __future__ import annotations

from msgspec import Struct


class Link(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The way to a server: bytes per second up and down (10th percentile), one-way latency in seconds."""

    up_bps: float
    down_bps: float
    latency_s: float = 0.01


class DeviceProfile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One machine. ``flops`` maps a dtype name (``float32``, ``bfloat16``) to measured FLOP/s of a decoder layer."""

    name: str
    arch: str
    cores: int
    threads: int
    flops: dict[str, float]
    memory_bandwidth_bps: float
    memory_bytes: int
    free_memory_bytes: int
    disk_free_bytes: int = 0
    link: Link | None = None
    power_w: float | None = None
    measured: str = ""
    source: str = ""
