"""All checks in the order in which one thing needs the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedsplit.errors import ConfigError
from fedsplit_client.doctor.finding import Finding
from fedsplit_client.doctor.machine import machine, missing_here
from fedsplit_client.doctor.way import way
from fedsplit_client.doctor.wheels import WHEELS, backend, try_wheel


def survey(link: str, state: Path | None) -> Iterator[Finding]:
    """Findings as they come. ``link`` empty: no server is looked at. ``state``: None for the platform's folder."""
    folder = state or _state_folder()
    yield from machine(folder)
    lacks = missing_here()
    tried = []
    for wheel in WHEELS:
        tried.append(found := try_wheel(wheel, lacks))
        yield found
    yield backend(tried)
    broken = sorted(one.check for one in tried if one.level == "problem" and one.check not in ("torch", "onnxruntime"))
    if broken:
        for check in ("limits", *(["server"] if link else [])):
            why = f"needs {' and '.join(broken)}"
            yield Finding(check=check, level="skipped", found=why)
        return
    yield limits()
    if link:
        yield from way(link, folder)


def limits() -> Finding:
    """What the owner has set in this machine's profile."""
    # Reading a profile needs msgspec, which has been tried by now.
    from fedsplit.devices.find import own_path
    from fedsplit.devices.load import load

    path = own_path()
    if not path.is_file():
        found = "this machine was not measured yet; `fedsplit join` does it briefly"
        return Finding(check="limits", level="ok", found=found)
    try:
        profile = load(path)
    except ConfigError as error:
        return Finding(
            check="limits", level="problem", found=str(error), fix="mend it, or measure again: fedsplit profile"
        )
    text = str(profile.limits) if profile.limits is not None else ""
    return Finding(check="limits", level="ok", found=text or "none set; see `fedsplit profile limit --help`")


def _state_folder() -> Path:
    from platformdirs import user_state_path  # Python alone

    return user_state_path("fedsplit", appauthor=False)
