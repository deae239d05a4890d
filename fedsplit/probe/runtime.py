"""What a client's program takes before any weight."""

from __future__ import annotations

import os
from importlib import import_module

import psutil

EDGE_BYTES = 76_000_000
"""A client that has joined, with the sessions of its graphs, on x86-64 Linux: measured in MiniLM as ``w``, 86 MB in
all, of which its plan counts 11. The process that reads the rows takes no more, before the first graph is loaded."""


def runtime_bytes(*, torch: bool) -> int:
    """Resident bytes of this process once all that a torch client needs is imported, to the next million.

    Ask before anything large is loaded: what this process holds already counts. Without torch: ``EDGE_BYTES``.
    """
    if not torch:
        return EDGE_BYTES
    import_module("fedsplit.split.segment")
    resident: int = psutil.Process(os.getpid()).memory_info().rss
    return round(resident, -6)
