"""Bytes sent up today, kept on the disk: a day's limit holds across restarts, runs and servers.

Each client of a server counts in a file of its own, which nobody else writes; the day's total is their sum. Written
once a round, because a round is what an SD card shall be written for, and when the client ends: who pulls the plug in
between loses the count of that round.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

import msgspec
from msgspec import Struct

from fedsplit.state.durable import write_file

FILE = "uploads.json"


class Day(Struct, frozen=True, forbid_unknown_fields=True):
    """``day`` in ISO form."""

    day: str
    up_bytes: int


class Uploads:
    """``folder``: of this client of a server, beside those of others; ``today``: the device's own calendar."""

    def __init__(self, folder: Path, today: Callable[[], date]) -> None:
        self._folder, self._today = folder, today
        self._day = today()
        self._own = self._kept = _read(folder / FILE, self._day)
        self._others = self._sum_of_others()

    def add(self, nbytes: int) -> None:
        """Count what was sent now."""
        self._turn()
        self._own += nbytes

    def total(self) -> int:
        """Bytes of today, of all clients on this device (of others as they were when this one last wrote)."""
        self._turn()
        return self._own + self._others

    def keep(self) -> None:
        """To the disk, where there is anything new."""
        self._turn()
        if self._own != self._kept:
            write_file(self._folder / FILE, msgspec.json.encode(Day(self._day.isoformat(), self._own)))
            self._kept = self._own
        self._others = self._sum_of_others()

    def _turn(self) -> None:
        """A new day begins with nothing."""
        if (today := self._today()) != self._day:
            self._day, self._own, self._kept, self._others = today, 0, 0, 0

    def _sum_of_others(self) -> int:
        files = (path for path in self._folder.parent.glob(f"*/{FILE}") if path.parent != self._folder)
        return sum(_read(path, self._day) for path in files)


def _read(path: Path, day: date) -> int:
    """A file that is damaged counts as none: it is a count, and the next round writes it anew."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Day)
    except (OSError, msgspec.MsgspecError):
        return 0
    return max(0, found.up_bytes) if found.day == day.isoformat() else 0
