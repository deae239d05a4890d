"""What the clients of a simulated run are started with, and its record for ``fedsplit rerun``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedsplit.cli.emulated import written
from fedsplit.config.run import RunFile
from fedsplit.data.partition import digest
from fedsplit.devices.find import find
from fedsplit.devices.profile import DeviceProfile
from fedsplit.events import Emit
from fedsplit.probe.measure import this_device
from fedsplit.state.manifest import Given, SimulatedClients, command, write_simulated


def profiles_of(run: RunFile, given: Mapping[str, Path], default: Path | None, emit: Emit) -> dict[str, DeviceProfile]:
    """What every client shows of itself: its profile in ``given``, its section's, ``default``, or this machine's.

    Looked up once for all of them, so that what is free now is the same for each and can be kept.
    """
    named = {one.name: str(given.get(one.name) or one.device or default or "") for one in run.clients}
    own = this_device(emit=emit) if "" in named.values() else None
    shown = {name: find(place) if place else own for name, place in named.items()}
    return {name: profile for name, profile in shown.items() if profile is not None}


def as_files(profiles: Mapping[str, DeviceProfile], folder: Path) -> dict[str, Path]:
    """The profiles where the clients' processes find them."""
    return written(profiles, folder / "profiles")


def keep(
    folder: Path,
    run: RunFile,
    profiles: Mapping[str, DeviceProfile],
    threads: Mapping[str, int],
    flags: Mapping[str, Sequence[str]],
    *,
    emulated: bool,
) -> None:
    """Write ``clients/@simulated.toml`` into the run directory. Raises DataError when the disk refuses it."""
    clients = {
        one.name: Given(
            data=one.data,
            # A client says itself what is wrong with its file.
            sha256=digest(Path(one.data)) if Path(one.data).exists() else "",
            threads=threads[one.name],
            profile=profiles.get(one.name),
            flags=tuple(flags.get(one.name, ())),
        )
        for one in run.clients
    }
    write_simulated(folder, SimulatedClients(command=command(), emulated=emulated, clients=clients))
