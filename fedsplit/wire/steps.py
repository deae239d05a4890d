"""The steps of one round on one connection: at most one open, each with several micro-batches on their way.

Only bookkeeping over the table of ``moves``: a move that the table allows is FRESH, one that has been made before in
the same attempt is a REPEAT, and one that belongs to an earlier attempt or step is STALE.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from fedsplit.wire.messages import Abort, Commit, Exchange, Forward, Prepare
from fedsplit.wire.moves import MOVES, State, legal


class Verdict(Enum):
    """What to do with a legal message."""

    FRESH = "fresh"
    """Act on it."""
    REPEAT = "repeat"
    """It has been here before: the server answers with the stored reply, the client drops it."""
    STALE = "stale"
    """It belongs to something that is over: drop it."""


_WAITING = frozenset({State.MICRO_FORWARD, State.MICRO_BACKWARD})
Answer = tuple[str, Verdict]
"""(what is wrong or empty, verdict)"""
_FRESH: Answer = ("", Verdict.FRESH)
_REPEAT: Answer = ("", Verdict.REPEAT)
_STALE: Answer = ("", Verdict.STALE)


@dataclass(slots=True)
class _Micro:
    state: State
    attempt: int = 0
    seen: set[str] = field(default_factory=set)


class Steps:
    """All steps since the last Start."""

    __slots__ = ("_closed", "_closed_by", "_micros", "_state", "_step", "_total", "in_flight", "updated")

    def __init__(self) -> None:
        self.updated = False
        self.in_flight = 0
        self._state = State.STEP_CLOSED
        self._step = self._closed = -1
        self._closed_by = ""
        self._total = 0
        self._micros: dict[int, _Micro] = {}

    def __repr__(self) -> str:
        return f"step {self._step} {self._state.value}"

    @property
    def open(self) -> int | None:
        return None if self._state is State.STEP_CLOSED else self._step

    def knows(self, message: Exchange) -> bool:
        """Whether this micro-batch of the open step has been seen."""
        return message.step == self.open and message.micro in self._micros

    def move(self, message: Exchange, kind: str) -> Answer:
        """Make the move; when something is wrong nothing has changed."""
        if message.step < self._closed:
            return _STALE
        if message.step == self._closed:
            return self._after_closing(kind)
        if self._state is not State.STEP_CLOSED and message.step != self._step:
            return f"step {self._step} is still open", Verdict.STALE
        match message:
            case Prepare():
                return self._prepare()
            case Commit() | Abort():
                return self._close(message, kind)
            case Forward():
                return self._forward(message, kind)
        return self._micro(message, kind)

    def _after_closing(self, kind: str) -> Answer:
        if kind in ("commit", "abort") and kind != self._closed_by:
            return f"the step was closed by {self._closed_by}", Verdict.STALE
        return _REPEAT

    def _forward(self, message: Forward, kind: str) -> Answer:
        opening = self._state is State.STEP_CLOSED
        total = message.micros if opening else self._total
        if message.micros != total or message.micro >= total:
            return f"micro-batch {message.micro} of {message.micros} in a step of {total}", Verdict.STALE
        micro = None if opening else self._micros.get(message.micro)
        if micro is None:
            if message.attempt:
                return f"attempt {message.attempt} of a micro-batch that was never asked for", Verdict.STALE
            if opening:
                self._state, self._step, self._total = MOVES[self._state, kind], message.step, total
                self._micros, self.in_flight = {}, 0
            micro = self._micros[message.micro] = _Micro(State.MICRO_NEW)
        elif message.attempt == micro.attempt + 1 and micro.state is State.MICRO_MISSING:
            micro.attempt, micro.seen = message.attempt, set()
        else:
            return self._again(micro, message, kind)
        return self._to(micro, kind)

    def _micro(self, message: Exchange, kind: str) -> Answer:
        micro = self._micros.get(message.micro) if self.open is not None else None
        if micro is None:
            return f"no Forward of step {message.step} micro-batch {message.micro} came before it", Verdict.STALE
        if message.attempt != micro.attempt or (micro.state, kind) not in MOVES:
            return self._again(micro, message, kind)
        return self._to(micro, kind)

    def _again(self, micro: _Micro, message: Exchange, kind: str) -> Answer:
        if message.attempt < micro.attempt:
            return _STALE
        if message.attempt > micro.attempt:
            return f"attempt {message.attempt} where attempt {micro.attempt} is under way", Verdict.STALE
        if kind in micro.seen:
            return _REPEAT
        return f"in state {micro.state.value!r} these may come: {', '.join(legal(micro.state))}", Verdict.STALE

    def _to(self, micro: _Micro, kind: str) -> Answer:
        after = MOVES[micro.state, kind]
        self.in_flight += (after in _WAITING) - (micro.state in _WAITING)
        micro.state = after
        micro.seen.add(kind)
        return _FRESH

    def _prepare(self) -> Answer:
        if self._state is State.STEP_PREPARED:
            return _REPEAT
        done = sum(micro.state is State.MICRO_DONE for micro in self._micros.values())
        if self._state is State.STEP_CLOSED or done < self._total:
            return f"{done} of {self._total} micro-batches of the step are done", Verdict.STALE
        self._state = MOVES[self._state, "prepare"]
        return _FRESH

    def _close(self, message: Exchange, kind: str) -> Answer:
        after = MOVES.get((self._state, kind))
        if after is None:
            return f"in state {self._state.value!r} these may come: {', '.join(legal(self._state))}", Verdict.STALE
        self._state, self._closed, self._closed_by = after, message.step, kind
        self._micros, self.in_flight = {}, 0
        return _FRESH
