"""What people see of a run where nothing can move: a line a round, and of a wait once it has lasted.

    with Lines(print) as emit:
        serve(run, emit=emit)

``emit`` may be called from any thread. Draws nothing, so that a small device need not load what does.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from fedsplit.cli import words
from fedsplit.cli.announce import Announcer, Line
from fedsplit.cli.board import Board, Wait
from fedsplit.events import Emit, Event

TELL_AFTER_S = 5.0
"""A wait shorter than this is not worth a line in a log; a round's line waits no longer for its measurement."""


class Lines:
    """Context manager; entering gives the ``Emit``. ``say`` gets one line at a time; ``ticks``: also what became due by
    the passing of time, once a second."""

    def __init__(
        self, say: Callable[[Line], None], *, ticks: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._ticks = say, ticks
        # Order: printing, then what the printer locks, then the board's. Who draws the board takes the last two.
        self._printing, self.lock = threading.RLock(), threading.RLock()
        self.board = Board(clock)
        self._announcer = Announcer(self.board)
        self._told: set[tuple[str, float]] = set()
        self._done = threading.Event()
        self._ticker: threading.Thread | None = None

    def __enter__(self) -> Emit:
        if self._ticks:
            self._ticker = threading.Thread(target=self._tick, name="display", daemon=True)
            self._ticker.start()
        return self.emit

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._done.set()
        self._print(self._announcer.flush)
        if self._ticker is not None:
            self._ticker.join()

    def emit(self, event: Event) -> None:
        """Take one event; safe from any thread, never raises because of what an event says."""

        def taken() -> list[Line]:
            self.board.take(event)
            return self._announcer.lines(event)

        self._print(taken)

    def tick(self) -> None:
        """Say what became due by the passing of time."""
        self._print(self._due)

    def _due(self) -> list[Line]:
        held = self._announcer.flush() if self.board.since_round_s >= TELL_AFTER_S else []
        return held + [line for waiter, wait in self.board.waits.items() for line in self._wait_line(waiter, wait)]

    def _tick(self) -> None:
        while not self._done.wait(1.0):
            self.tick()

    def _wait_line(self, waiter: str, wait: Wait) -> list[Line]:
        waited = self.board.waited_s(wait)
        if waited < TELL_AFTER_S or (waiter, wait.since_s) in self._told:
            return []
        self._told.add((waiter, wait.since_s))
        left = None if wait.deadline_s is None else wait.deadline_s - waited
        return [Line(words.waits([waiter] if waiter else [], wait.on, wait.what, waited, left))]

    def _print(self, lines: Callable[[], list[Line]]) -> None:
        with self._printing:
            with self.lock:
                due = lines()
            for line in due:
                self._say(line)


def may_move() -> bool:
    """Whether standard output may be a terminal that moves. ``Display`` knows better; where this says no, it agrees."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "") in ("dumb", "unknown"):
        return False
    return any(os.environ.get(name) for name in ("FORCE_COLOR", "TTY_COMPATIBLE")) or _is_terminal()


def _is_terminal() -> bool:
    try:
        return sys.stdout.isatty()
    except ValueError:  # closed
        return False
