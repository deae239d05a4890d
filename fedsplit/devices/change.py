"""What if this device were different: one value of a profile replaced, written as people write it."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from typing import Any

import msgspec

from fedsplit.devices.load import from_dict
from fedsplit.devices.profile import DeviceProfile
from fedsplit.devices.units import units_of
from fedsplit.errors import ConfigError, Problem

SHORT = {
    "uplink": "link.up_bps",
    "downlink": "link.down_bps",
    "latency": "link.latency_s",
    "memory": "free_memory_bytes",
    "reserve": "reserve_bytes",
    "speed": "flops.float32",
}
"""Short names of the values that people ask about."""


def changed(profile: DeviceProfile, key: str, value: str) -> DeviceProfile:
    """``profile`` with ``key`` (a short name or a path such as ``link.up_bps``) set to ``value`` (``2 Mbit/s``).

    More free memory than the machine has is taken as a machine that has more. Raises ConfigError.
    """
    raw: dict[str, Any] = {k: v for k, v in msgspec.to_builtins(profile).items() if v is not None}
    path = SHORT.get(key, key)
    section, _, name = path.rpartition(".")
    table = raw.setdefault(section, {}) if section in ("link", "flops") else raw
    if section not in ("", "link", "flops") or (not section and name not in DeviceProfile.__struct_fields__):
        near = difflib.get_close_matches(key, [*SHORT, *DeviceProfile.__struct_fields__], 1)
        fix = f"did you mean {near[0]!r}?" if near else f"e.g. {', '.join(SHORT)}"
        raise ConfigError([Problem(key, "an unknown value", "a value of a device profile", fix)])
    table[name] = _number(value) if units_of(name) or section == "flops" else _plain(value)
    if section == "link":
        raw["link"] = {"up_bps": 12.5e6, "down_bps": 12.5e6} | table
    if path == "free_memory_bytes":
        asked = from_dict(raw | {"memory_bytes": 2**60}, f"{profile.name}, changed").free_memory_bytes
        raw["memory_bytes"] = max(profile.memory_bytes, asked)
    return from_dict(raw, f"{profile.name}, changed")


def what_if(devices: Mapping[str, DeviceProfile], text: str) -> dict[str, DeviceProfile]:
    """``devices`` after a change written ``CLIENT.KEY=VALUE``. Raises ConfigError: unknown client, key or unit."""
    target, equals, value = text.partition("=")
    client = next((name for name in sorted(devices, key=len, reverse=True) if target.startswith(f"{name}.")), None)
    if not equals or client is None:
        found = f"one of {', '.join(devices)}, then .KEY=VALUE"
        raise ConfigError([Problem("--what-if", repr(text), found, "e.g. pi-kitchen.uplink=2Mbit/s")])
    return {**devices, client: changed(devices[client], target[len(client) + 1 :].strip(), value.strip())}


def _number(value: str) -> str | float:
    try:
        return float(value)
    except ValueError:
        return value


def _plain(value: str) -> Any:
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value
