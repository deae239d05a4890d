"""The emulated device, fetched once."""

from __future__ import annotations

import pytest

from tests.arm.emulator import Emulated, Unavailable, emulated, say


@pytest.fixture(scope="session")
def device() -> Emulated:
    """A Cortex-A72 with the packages of a device; skips with the reason where there can be none."""
    try:
        found = emulated()
    except Unavailable as error:
        pytest.skip(str(error))
    about = "import platform, sys, onnxruntime as o; print(platform.machine(), sys.version.split()[0], o.__version__)"
    machine, python, runtime = found.run("-c", about).split()
    assert machine == "aarch64"
    say(f"{machine}, Python {python}, onnxruntime {runtime}")
    return found
