"""Less memory than there is here: a process that takes more than its device could give is killed, and named.

What counts is the resident set, shared pages of libraries and of mapped weights included: on the device nothing else
would hold them. The kernel keeps its peak (``VmHWM``), so that nothing between two looks is missed; where the system
does not tell the peak, what is resident at each look counts.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

LOOK_S = 0.02


@dataclass
class Ceiling:
    """The most bytes a process may hold; ``peak_bytes`` so far, ``broken`` once it was killed for more."""

    name: str
    pid: int
    limit_bytes: int
    peak_bytes: int = 0
    broken: bool = False
    ended: bool = False

    def look(self) -> None:
        """Read the peak, and kill where it is above the limit."""
        peak = peak_of(self.pid)
        self.peak_bytes, self.ended = max(self.peak_bytes, peak), not peak
        if self.peak_bytes > self.limit_bytes and not self.ended:
            self.broken = self.ended = True
            with suppress(ProcessLookupError):
                os.kill(self.pid, getattr(signal, "SIGKILL", signal.SIGTERM))


def peak_of(pid: int) -> int:
    """Peak resident bytes of a process; 0 when it has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_bytes().splitlines():
            if line.startswith(b"VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


class Ceilings:
    """Watches any number of processes, in a thread, until the context is left."""

    def __init__(self) -> None:
        self._watched: dict[str, Ceiling] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ceilings", daemon=True)

    def __enter__(self) -> Ceilings:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join(10.0)

    def watch(self, name: str, pid: int, limit_bytes: int) -> Ceiling:
        """Kill ``pid`` once it has held more than ``limit_bytes``."""
        ceiling = self._watched[name] = Ceiling(name, pid, limit_bytes)
        return ceiling

    def broken(self, name: str) -> Ceiling | None:
        """The ceiling that ``name`` went through; None when it has not."""
        ceiling = self._watched.get(name)
        return ceiling if ceiling is not None and ceiling.broken else None

    def _run(self) -> None:
        while not self._done.wait(LOOK_S):
            for ceiling in list(self._watched.values()):
                if not ceiling.ended:
                    ceiling.look()
