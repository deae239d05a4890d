"""Starting this Python again: in place of this process, or beside it for a while.

The new one imports from where this one does. What the user said with flags that cut Python off from its surroundings
could not be said again, so then nothing is started.
"""

from __future__ import annotations

import os
import sys


def possible() -> bool:
    """Whether a process of this Python can be started here, or become another one."""
    plain = not (sys.flags.isolated or sys.flags.ignore_environment or sys.flags.no_site)
    return os.name == "posix" and plain and bool(sys.executable)


def command(module: str, *words: str) -> list[str]:
    """``python -m module words``."""
    # -P: the folder that somebody stands in is no place to import from, unless it was one before.
    return [sys.executable, "-P", "-m", module, *words]


def environment() -> dict[str, str]:
    """For ``command``."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
