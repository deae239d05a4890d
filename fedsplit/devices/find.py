"""Where profiles are: the shelf that ships with fedsplit, a path, and the file of this machine's own measurement."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import platformdirs

from fedsplit.devices.load import load
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import ConfigError, Problem

OWN = "FEDSPLIT_PROFILE"
"""Environment variable that moves this machine's own profile, e.g. for a service."""


def shelf() -> Path:
    """The folder of curated profiles: package data when installed, else the sibling folder of a checkout.

    Raises ConfigError when neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "device_profiles", package.parent / "device_profiles"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"no folder device_profiles in {package} or beside it; install fedsplit again")


def names(folder: Path | None = None) -> tuple[str, ...]:
    """Names of the curated profiles, sorted."""
    return tuple(sorted(path.stem for path in (folder or shelf()).glob("*.toml")))


def find(name: str, near: Path | None = None) -> DeviceProfile:
    """The profile called ``name``: ``here`` (measured on this machine), a file, or a name on the shelf.

    ``near``: folder that a relative path starts from, usually the run file's. Raises ConfigError: unknown name with
    the nearest ones, no measurement of this machine yet, an impossible file.
    """
    if name == "here":
        return own()
    path = locate(name, near)
    if path is not None:
        return load(path).corrected
    known = names()
    close = difflib.get_close_matches(name.lower().replace("-", "_"), known, 3, 0.5)
    fix = f"did you mean {' or '.join(close)}?" if close else "give a path, or `here` for this machine"
    raise ConfigError([Problem("device", repr(name), f"a file or one of {', '.join(known)}", fix)])


def locate(name: str, near: Path | None = None) -> Path | None:
    """The file of a profile, or None."""
    given = Path(name).expanduser()
    if given.suffix == ".toml" or given.parent != Path():
        path = (near or Path()) / given
        return path if path.is_file() else None
    path = shelf() / f"{name.lower().replace('-', '_')}.toml"
    return path if path.is_file() else None


def own_path(device: str = "cpu") -> Path:
    """Where this machine's measured profile is kept; the environment variable FEDSPLIT_PROFILE moves it.

    ``device``: ``cpu``, or ``cuda``, ``cuda:1``, whose measurements are kept in files beside it.
    """
    moved = os.environ.get(OWN)
    path = Path(moved).expanduser() if moved else platformdirs.user_config_path("fedsplit") / "device.toml"
    return path if device == "cpu" else path.with_stem(f"{path.stem}-{device.replace(':', '-')}")


def own(device: str = "cpu") -> DeviceProfile:
    """This machine's measured profile, corrected by what past runs showed. Raises ConfigError if never measured."""
    path = own_path(device)
    if not path.is_file():
        fix = "run `fedsplit profile`, which takes half a minute"
        raise ConfigError([Problem("device", f"no measurement at {path}", "this machine's profile", fix)])
    return load(path).corrected
