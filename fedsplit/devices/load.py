"""Device profiles and files: read, check, write."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from fedsplit.devices.check import limits_shape, shape_problems, value_problems
from fedsplit.devices.here import architecture
from fedsplit.devices.limits import Limits, limit_problems
from fedsplit.devices.profile import DeviceProfile
from fedsplit.devices.write import dumps
from fedsplit.errors import ConfigError


def loads(text: str, source: str = "device profile") -> DeviceProfile:
    """A profile from TOML. Raises ConfigError with all problems; ``source`` names the text in it."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}", source) from error
    return from_dict(raw, source)


def from_dict(raw: dict[str, Any], source: str = "device profile") -> DeviceProfile:
    """A profile from a parsed table; sizes and rates may be texts with units. Raises ConfigError."""
    plain, problems = shape_problems(raw)
    problems += value_problems(plain)
    if problems:
        raise ConfigError(problems, source)
    try:
        return msgspec.convert(plain, DeviceProfile)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error), source) from error


def limits_from(raw: Mapping[str, Any]) -> Limits:
    """The owner's limits from a table; sizes may be texts with units. Raises ConfigError with all problems."""
    plain, problems = limits_shape(raw)
    problems += limit_problems({key: value for key, value in plain.items() if value is not None})
    if problems:
        raise ConfigError(problems)
    return msgspec.convert(plain, Limits)


def load(path: str | Path) -> DeviceProfile:
    """The profile in a file. Raises ConfigError when it is absent, unreadable or impossible."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot be read: {reason}", str(path)) from error
    return loads(text, str(path))


def save(profile: DeviceProfile, path: str | Path) -> Path:
    """Write a profile, whole or not at all. Raises ConfigError when the place cannot be written."""
    path = Path(path)
    aside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(dumps(profile), encoding="utf-8")
        os.replace(aside, path)  # noqa: PTH105
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror or error}", str(path)) from error
    return path


def foreign(profile: DeviceProfile, arch: str = "") -> str:
    """A warning when the profile was measured on another architecture than this machine's; empty when it fits."""
    here = arch or architecture()
    if _same_arch(profile.arch, here):
        return ""
    return (
        f"profile {profile.name} is of a {profile.arch} machine and this one is {here}: "
        "its numbers do not describe this machine; run `fedsplit profile`"
    )


def _same_arch(one: str, other: str) -> bool:
    alike = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
    return alike.get(one.lower(), one.lower()) == alike.get(other.lower(), other.lower())
