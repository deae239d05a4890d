"""What people see while a run goes on: a live view on a terminal, plain lines everywhere else.

    with Display(title="news") as emit:
        serve(run, emit=emit)

``emit`` may be called from any thread. Colours and movement are left out when the output is no terminal, when
``NO_COLOR`` is set or ``TERM`` is ``dumb``; then every round is one line, and a wait is told of once it has lasted.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from rich.console import Console
from rich.live import Live
from rich.text import Text

from fedsplit.cli import words
from fedsplit.cli.announce import Announcer, Line
from fedsplit.cli.board import Board, Wait
from fedsplit.cli.cards import AccuracyRow, accuracy_table, ask, show_plan, show_profile
from fedsplit.cli.live import Frame
from fedsplit.events import Emit, Event

__all__ = ["AccuracyRow", "Display", "accuracy_table", "ask", "show_plan", "show_profile"]

Mode = Literal["auto", "live", "plain", "silent"]
TELL_AFTER_S = 5.0
"""A wait shorter than this is not worth a line in a log; a round's line waits no longer for its measurement."""

MARKS = {"good": ("✓ ", "green"), "bad": ("✗ ", "red"), "warning": ("! ", "yellow"), "plain": ("· ", "dim")}


class Display:
    """Context manager; entering gives the ``Emit``. Leaving restores the terminal, also after an error or Ctrl-C."""

    def __init__(
        self,
        mode: Mode = "auto",
        *,
        title: str = "fedsplit",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console(highlight=False)
        self.mode = _resolved(mode, self.console)
        # Order: printing, then rich's own lock, then the board's. The refresh thread takes the last two.
        self._printing, self._lock = threading.RLock(), threading.RLock()
        self._board = Board(clock)
        self._announcer = Announcer(self._board)
        self._told: set[tuple[str, float]] = set()
        self._done = threading.Event()
        self._ticker: threading.Thread | None = None
        self._frame = Frame(self._board, title, self._lock)
        self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=3)

    def __enter__(self) -> Emit:
        if self.mode == "live":
            self._live.start()
        elif self.mode == "plain":
            self._ticker = threading.Thread(target=self._tick, name="display", daemon=True)
            self._ticker.start()
        return self.emit

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._done.set()
        self._say(self._announcer.flush)
        if self._ticker is not None:
            self._ticker.join()
        if self.mode == "live":
            self._live.stop()

    def emit(self, event: Event) -> None:
        """Take one event; safe from any thread, never raises because of what an event says."""

        def taken() -> list[Line]:
            self._board.take(event)
            return self._announcer.lines(event)

        self._say(taken)

    def tick(self) -> None:
        """Say what became due by the passing of time. The plain display calls this once a second."""
        self._say(self._due)

    def _due(self) -> list[Line]:
        held = self._announcer.flush() if self._board.since_round_s >= TELL_AFTER_S else []
        return held + [line for waiter, wait in self._board.waits.items() for line in self._wait_line(waiter, wait)]

    def _tick(self) -> None:
        while not self._done.wait(1.0):
            self.tick()

    def _wait_line(self, waiter: str, wait: Wait) -> list[Line]:
        waited = self._board.waited_s(wait)
        if waited < TELL_AFTER_S or (waiter, wait.since_s) in self._told:
            return []
        self._told.add((waiter, wait.since_s))
        left = None if wait.deadline_s is None else wait.deadline_s - waited
        return [Line(words.waits([waiter] if waiter else [], wait.on, wait.what, waited, left))]

    def _say(self, lines: Callable[[], list[Line]]) -> None:
        with self._printing:
            with self._lock:
                due = lines()
            self._print(due)

    def _print(self, lines: list[Line]) -> None:
        for line in lines:
            if self.mode == "plain":
                self.console.print(Text(line.text), soft_wrap=True)
            elif self.mode == "live":
                mark, style = MARKS[line.kind]
                # soft_wrap: a long line stays one line to copy, the join line above all.
                self.console.print(Text.assemble((" " + mark, style), line.text), soft_wrap=True)

    def _render(self) -> Frame:
        return self._frame


def _resolved(mode: Mode, console: Console) -> Mode:
    if mode != "auto":
        return mode
    moves = console.is_terminal and not console.is_dumb_terminal and not os.environ.get("NO_COLOR")
    return "live" if moves else "plain"
