"""Which events become a line that stays: the log of a run, the same on a terminal and in a file.

A round is one line. It is held back until its measurement came, because that belongs on it, or until something newer
happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedsplit.cli import words
from fedsplit.cli.board import Board, Round
from fedsplit.events import Event, Joined, Left, Measured, Moved, Note, Progress, RoundStarted


@dataclass(frozen=True)
class Line:
    """``kind`` is ``good``, ``bad``, ``warning`` or ``plain``; it decides the colour, nothing else."""

    text: str
    kind: str = "plain"


class Announcer:
    """Feed it every event after the board took it; it returns the lines that are due."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._said: Round | None = None

    def lines(self, event: Event) -> list[Line]:
        """The lines that ``event`` makes due, in order."""
        board = self._board
        match event:
            case Measured(phase="round") if self._is_news(event) and self._held is not None:
                return self.flush(event.metrics)
            case Measured() if self._is_news(event):
                named = {"before": "before training", "after": "after training"}
                words_of = named.get(event.phase, f"after round {event.round}")
                return [*self.flush(), Line(f"{words_of}  {words.measured(event.metrics)}", "good")]
            case RoundStarted() if self._held is not None and event.round > self._held.round:
                return self.flush()
            case Joined():
                return [*self.flush(), Line(words.joined(event.client, event.topology, event.cut))]
            case Moved():
                return [*self.flush(), Line(f"{event.client} {event.text}")]
            case Left(reason=words.FINISHED):
                return self.flush()
            case Left():
                reason = f": {event.reason}" if event.reason else ""
                return [*self.flush(), Line(f"{event.client} left{reason}", "warning")]
            case Note():
                who = f"{event.client}: " if event.client and not board.one_device else ""
                return [*self.flush(), Line(who + event.text, "warning" if event.warning else "plain")]
            case Progress() if event.done >= event.total and event.total > 0:
                who = f"{event.client}: " if event.client and not board.one_device else ""
                amount = words.size(event.total) if event.unit == "bytes" else f"{event.total} {event.unit}"
                return [Line(f"{who}{event.what}, {amount}")]
        return []

    def flush(self, metrics: Mapping[str, float] | None = None) -> list[Line]:
        """The held line of the last round, if any."""
        held = self._held
        if held is None:
            return []
        self._said = held
        return [Line(words.round_line(held, metrics or {}), "good" if held.committed else "bad")]

    @property
    def _held(self) -> Round | None:
        return self._board.closed if self._board.closed is not self._said else None

    def _is_news(self, event: Measured) -> bool:
        """A device's own numbers are news in its own view only; elsewhere they are on its row."""
        return not event.client or self._board.one_device
