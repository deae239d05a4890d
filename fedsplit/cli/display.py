"""What people see while a run goes on: a live view on a terminal, plain lines everywhere else.

    with Display(title="news") as emit:
        serve(run, emit=emit)

``emit`` may be called from any thread. Colours and movement are left out when the output is no terminal, when
``NO_COLOR`` is set or ``TERM`` is ``dumb``; then every round is one line, and a wait is told of once it has lasted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from rich.console import Console
from rich.live import Live
from rich.text import Text

from fedsplit.cli.announce import Line
from fedsplit.cli.cards import AccuracyRow, accuracy_table, ask, show_plan, show_profile
from fedsplit.cli.lines import Lines
from fedsplit.cli.live import Frame
from fedsplit.events import Emit, Event

__all__ = ["AccuracyRow", "Display", "accuracy_table", "ask", "show_plan", "show_profile"]

Mode = Literal["auto", "live", "plain", "silent"]
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
        self._lines = Lines(self._say, ticks=self.mode == "plain", clock=clock)
        self._board = self._lines.board
        self._frame = Frame(self._board, title, self._lines.lock)
        self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=3)

    def __enter__(self) -> Emit:
        if self.mode == "live":
            self._live.start()
        self._lines.__enter__()
        return self.emit

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._lines.__exit__(kind, error, tb)
        if self.mode == "live":
            self._live.stop()

    def emit(self, event: Event) -> None:
        """Take one event; safe from any thread, never raises because of what an event says."""
        self._lines.emit(event)

    def tick(self) -> None:
        """Say what became due by the passing of time. The plain display calls this once a second."""
        self._lines.tick()

    def _say(self, line: Line) -> None:
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
