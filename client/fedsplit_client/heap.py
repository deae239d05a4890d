"""Memory that was freed goes back to the system: glibc keeps it, and on a small device that counts."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back() -> None:
    """What Python and the allocator hold and do not use. Without glibc only Python's part."""
    gc.collect()
    if not sys.platform.startswith("linux"):
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        return
