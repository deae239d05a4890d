"""A fleet: named clients with the device each one has, in one TOML file."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from fedsplit.devices.find import find, shelf
from fedsplit.devices.load import from_dict
from fedsplit.devices.profile import DeviceProfile
from fedsplit.devices.vary import varied, vary_problems
from fedsplit.errors import ConfigError, Problem

MEMBER_KEYS = ("name", "device", "count", "link", "free_memory_bytes", "reserve_bytes", "vary")


class Fleet(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Clients by name, and the machine of the server when the file names one."""

    name: str
    devices: dict[str, DeviceProfile]
    server: DeviceProfile | None = None


def load_fleet(name: str, near: Path | None = None) -> Fleet:
    """The fleet in a file, or one that ships (``home``). Raises ConfigError with all problems."""
    path = _locate(name, near)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", str(path)) from error
    return _fleet(raw, path)


def _locate(name: str, near: Path | None) -> Path:
    given = (near or Path()) / Path(name).expanduser()
    shipped = shelf() / "fleets" / f"{name}.toml"
    for path in (given, shipped):
        if path.is_file():
            return path
    known = sorted(path.stem for path in shipped.parent.glob("*.toml"))
    close = difflib.get_close_matches(name, known, 1)
    fix = f"did you mean {close[0]!r}?" if close else "give the path of a fleet file"
    raise ConfigError([Problem("fleet", repr(name), f"a file or one of {', '.join(known)}", fix)])


def _fleet(raw: Mapping[str, Any], path: Path) -> Fleet:
    problems = [
        Problem(key, "an unknown key", "name, server or [[clients]]")
        for key in sorted(raw.keys() - {"name", "server", "clients"})
    ]
    devices: dict[str, DeviceProfile] = {}
    members = raw.get("clients")
    if not isinstance(members, list) or not members:
        problems.append(Problem("clients", "no device", "at least one [[clients]]", "add a name and a device"))
        members = []
    for index, member in enumerate(members):
        _add(devices, member, f"clients[{index}]", path, problems)
    server = _server(raw.get("server"), path, problems)
    if problems:
        raise ConfigError(problems, str(path))
    return Fleet(name=str(raw.get("name", path.stem)), devices=devices, server=server)


def _server(name: Any, path: Path, problems: list[Problem]) -> DeviceProfile | None:
    return None if name is None else _device(name, "server", path, problems)


def _device(name: Any, where: str, path: Path, problems: list[Problem]) -> DeviceProfile | None:
    if not isinstance(name, str):
        problems.append(Problem(where, repr(name), "the name or file of a device profile"))
        return None
    try:
        return find(name, path.parent)
    except ConfigError as error:
        inner = error.problems or (Problem("", str(error), "a readable profile"),)
        problems.extend(item._replace(path=f"{where}.{item.path}".rstrip(".")) for item in inner)
        return None


def _add(devices: dict[str, DeviceProfile], member: Any, where: str, path: Path, problems: list[Problem]) -> None:
    before = len(problems)
    if not isinstance(member, Mapping):
        problems.append(Problem(where, repr(member), "a table with name and device"))
        return
    for key in sorted(member.keys() - set(MEMBER_KEYS)):
        problems.append(Problem(f"{where}.{key}", "an unknown key", f"one of {', '.join(MEMBER_KEYS)}"))
    name, count = member.get("name"), member.get("count", 1)
    if not isinstance(name, str) or not name:
        problems.append(Problem(f"{where}.name", repr(name), "a name"))
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        problems.append(Problem(f"{where}.count", repr(count), "a whole number above 0"))
    spread = member.get("vary", {})
    problems.extend(vary_problems(spread, f"{where}.vary"))
    profile = _device(member.get("device"), where, path, problems)
    profile = profile and _override(profile, member, where, problems)
    if len(problems) > before or profile is None:
        return
    for client in [str(name)] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]:
        if client in devices:
            problems.append(Problem(f"{where}.name", repr(client), "a name used once"))
        devices[client] = varied(profile, client, spread) if spread else profile


def _override(profile: DeviceProfile, member: Mapping[str, Any], where: str, problems: list[Problem]) -> DeviceProfile:
    changes = {key: member[key] for key in ("link", "free_memory_bytes", "reserve_bytes") if key in member}
    if not changes:
        return profile
    raw = {key: value for key, value in msgspec.to_builtins(profile).items() if value is not None} | changes
    try:
        return from_dict(raw)
    except ConfigError as error:
        problems.extend(item._replace(path=f"{where}.{item.path}") for item in error.problems)
    return profile
