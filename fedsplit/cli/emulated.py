"""Which device every client of a run is held to: named in the run file, or a member of a fleet."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from fedsplit.config.run import ClientSection, RunFile
from fedsplit.devices.find import find
from fedsplit.devices.fleet import load_fleet
from fedsplit.devices.load import save
from fedsplit.devices.profile import DeviceProfile
from fedsplit.emulate.device import Held, held, remarks
from fedsplit.errors import ConfigError, Problem
from fedsplit.events import Emit, Note
from fedsplit.probe.measure import this_device


def devices_of(run: RunFile, near: Path, fleet: str = "", default: Path | None = None) -> dict[str, DeviceProfile]:
    """Client to profile. With a ``fleet``, a client whose ``device``, or else name, is a member's gets that one.

    ``default``: the file of those that name none. Raises ConfigError with all problems: no device, an unknown one.
    """
    members = load_fleet(fleet).devices if fleet else {}
    found: dict[str, DeviceProfile] = {}
    problems: list[Problem] = []
    for index, section in enumerate(run.clients):
        try:
            found[section.name] = _device(section, members, near, default)
        except ConfigError as error:
            inner = error.problems or (Problem("", str(error), "a readable profile"),)
            problems += [one._replace(path=f"clients[{index}].device") for one in inner]
    if problems:
        raise ConfigError(problems)
    return found


def _device(
    section: ClientSection, members: Mapping[str, DeviceProfile], near: Path, default: Path | None
) -> DeviceProfile:
    of = section.device or section.name
    if of in members:
        return members[of]
    if section.device or default is not None:
        return find(section.device or str(default), near)
    if members:
        close = difflib.get_close_matches(of, members, 1)
        fix = f"did you mean {close[0]!r}?" if close else "name one as the client's device"
        raise ConfigError([Problem("device", repr(of), f"a member of the fleet: {', '.join(members)}", fix)])
    raise ConfigError([Problem("device", "nothing", "a device to hold this client to", "see fedsplit profile list")])


def written(devices: Mapping[str, DeviceProfile], folder: Path) -> dict[str, Path]:
    """The profiles as files, so that other processes find them."""
    return {name: save(profile, folder / f"{name}.toml") for name, profile in devices.items()}


def holding(devices: Mapping[str, DeviceProfile], run: RunFile, emit: Emit) -> dict[str, Held]:
    """What holding the clients to ``devices`` comes to on this machine, and what it cannot come to, both said."""
    own, dtype = this_device(emit=emit), run.model.dtype
    threads = {section.name: section.threads for section in run.clients}
    found = {name: held(name, profile, own, dtype, threads[name]) for name, profile in devices.items()}
    for one in found.values():
        emit(Note(text=str(one)))
    for remark in remarks(found):
        emit(Note(text=remark, warning=True))
    return found
