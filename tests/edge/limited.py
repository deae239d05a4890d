"""Run as a script: ``blocked`` with no more than 512 MB of addresses: memory, mapped files, stacks and libraries."""

from __future__ import annotations

import os
import resource
import runpy
import sys
from pathlib import Path

LIMIT_BYTES = 512 * 2**20
FEW = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
"""Each further arena reserves 64 MB of addresses, whatever it uses."""

if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in FEW.items()):
        # The C library reads them when a process begins.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | FEW)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    runpy.run_path(str(Path(__file__).with_name("blocked.py")), run_name="__main__")
