"""How many threads this device computes with: what its plan was priced for."""

from __future__ import annotations

import os

from fedsplit.config.run import RunFile
from fedsplit.devices.here import usable_threads
from fedsplit.devices.profile import DeviceProfile

OWNERS = "OMP_NUM_THREADS"
"""Where this is set, the owner has decided."""


def threads_of(run: RunFile, client: str, measured: DeviceProfile | None, most: int = 0) -> int:
    """Those of the run file's section, else the fastest ones of this machine's own profile; 0: the backend's.

    ``most``: what the owner's limits allow; 0: as many as there are.
    """
    if most:
        return min(most, threads_of(run, client, measured) or int(os.environ.get(OWNERS, "0") or 0) or most)
    if os.environ.get(OWNERS):
        return 0
    section = next((one for one in run.clients if one.name == client), None)
    wanted = section.threads if section is not None else 0
    return min(usable_threads(), wanted or (measured.threads if measured is not None else 0))
