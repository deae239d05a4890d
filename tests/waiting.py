"""Tests wait for what must happen, and for so long that no busy machine is taken for a broken program."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT_S = 240.0
"""Only a test that fails waits this long."""


def wait_for(true: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Until ``true()`` holds. Fails after ``limit_s``."""
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
