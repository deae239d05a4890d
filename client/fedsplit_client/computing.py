"""How many threads this device computes with: what its plan was priced for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedsplit.config.run import RunFile
from fedsplit.devices.here import usable_threads
from fedsplit.devices.profile import DeviceProfile

OWNERS = "OMP_NUM_THREADS"
"""Where this is set, the owner has decided."""


def threads_of(run: RunFile, client: str, measured: DeviceProfile | None) -> int:
    """Those of the run file's section, else the fastest ones of this machine's own profile; 0: torch's choice."""
    if os.environ.get(OWNERS):
        return 0
    section = next((one for one in run.clients if one.name == client), None)
    wanted = section.threads if section is not None else 0
    return min(usable_threads(), wanted or (measured.threads if measured is not None else 0))


@contextmanager
def computing(run: RunFile, client: str, measured: DeviceProfile | None) -> Iterator[None]:
    """Compute with ``threads_of`` threads, and as before afterwards. ``measured``: this machine's own profile."""
    threads, before = threads_of(run, client, measured), torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
