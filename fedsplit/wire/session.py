"""One end's view of one connection: is this message legal now, is it a repeat, is it out of date?

The owner asks ``sent`` before it sends and ``received`` after it has decoded. Both look the move up in the table of
``moves``; an illegal one raises and changes nothing. Packets can be lost with a connection and repeated after it, and
the two directions cross; so besides FRESH there are two harmless verdicts, REPEAT and STALE.
"""

from __future__ import annotations

from fedsplit.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from fedsplit.wire.messages import (
    Bye,
    Chunk,
    Evaluate,
    Exchange,
    Fetch,
    Forward,
    Hello,
    Hidden,
    Message,
    Probe,
    Probed,
    Received,
    Report,
    Start,
    Update,
    kind_of,
)
from fedsplit.wire.moves import LOOK, LOOK_STATES, MOVES, SENDER, Role, State, legal
from fedsplit.wire.steps import Steps, Verdict

__all__ = ["Role", "Session", "State", "Verdict"]

_BEFORE_ALL = (-1, -1)


class Session:
    """``credit``: micro-batches and evaluations of this client that may wait for an answer at once."""

    def __init__(self, role: Role, credit: int = 64) -> None:
        self.role = role
        self.state = State.NEW
        self._credit = credit
        self._left = False
        self._reset()

    def __repr__(self) -> str:
        return f"Session({self.role.value}, {self.state.value}, round and era {self._place}, {self._steps})"

    @property
    def in_flight(self) -> int:
        """Forward and Backward requests without an answer so far."""
        return self._steps.in_flight + len(self._looks)

    @property
    def open_step(self) -> int | None:
        """The step that is neither committed nor aborted yet."""
        return self._steps.open

    def sent(self, message: Message) -> Verdict:
        """We are about to send ``message``. STALE never comes from here.

        :raises LocalProtocolError: the rules forbid it now; nothing changed.
        """
        try:
            verdict = self._move(message, self.role)
        except _Illegal as problem:
            raise LocalProtocolError(self._text("we were about to send", message, str(problem))) from None
        if verdict is Verdict.STALE:
            raise LocalProtocolError(self._text("we were about to send", message, "its round or step is over"))
        self._left = self._left or isinstance(message, Bye)
        return verdict

    def received(self, message: Message) -> Verdict:
        """The other side sent ``message``. Act on FRESH, answer REPEAT from the ledger, drop STALE.

        :raises RemoteProtocolError: the rules forbid it now; nothing changed.
        """
        if self._left and not isinstance(message, Hello):
            return Verdict.STALE
        try:
            return self._move(message, self.role.other)
        except _Illegal as problem:
            raise RemoteProtocolError(self._text("the other side sent", message, str(problem))) from None

    # ---- which rule applies ------------------------------------------------------------------------------------------

    def _move(self, message: Message, sender: Role) -> Verdict:
        kind = kind_of(message)
        if SENDER[kind] not in (sender, None):
            raise _Illegal(f"only a {sender.other.value} says that")
        if isinstance(message, Exchange):
            return self._exchange(message, kind)
        match message:
            case Hello():
                self._reset()
            case Start():
                return self._start(message)
            case Update():
                return self._update(message)
            case Received():
                return self._received(message)
            case Evaluate():
                return self._evaluate(message)
            case Report():
                return self._report(message)
            case Fetch() | Chunk():
                return self._bulk(message, kind)
            case Probe() | Probed():
                return self._probe(message, kind)
        self._step_to(kind)
        return Verdict.FRESH

    def _step_to(self, kind: str) -> None:
        self.state = self._next(self.state, kind)

    def _next(self, state: State, kind: str) -> State:
        after = MOVES.get((state, kind))
        if after is None:
            raise _Illegal(f"in state {state.value!r} these may come: {', '.join(legal(state)) or 'nothing'}")
        return after

    def _reset(self) -> None:
        self._place = _BEFORE_ALL
        self._steps = Steps()
        self._looks: dict[tuple[int, ...], None] = {}
        self._given_up: frozenset[tuple[int, ...]] = frozenset()
        self._looked: dict[tuple[int, ...], None] = {}
        self._left = False
        self._evaluations: dict[tuple[int, str], bool] = {}
        self._asked: dict[tuple[str, int], None] = {}
        self._probed = -1

    # ---- rounds ------------------------------------------------------------------------------------------------------

    def _start(self, start: Start) -> Verdict:
        place = (start.round, start.era)
        after = self._next(self.state, "start")
        if place < self._place:
            return Verdict.STALE
        if place == self._place:
            return Verdict.REPEAT
        self._given_up = frozenset(self._looks)
        self.state, self._place, self._steps, self._looks = after, place, Steps(), {}
        return Verdict.FRESH

    def _update(self, update: Update) -> Verdict:
        place = (update.round, update.era)
        self._not_ahead(place)
        if place < self._place:
            return Verdict.STALE
        if self.state is State.ROUND:
            if self._steps.open is not None:
                raise _Illegal(f"step {self._steps.open} is still open")
            self._steps.updated = True
        elif self.state in (State.UPDATED, State.READY, State.FINISHED):
            return Verdict.REPEAT if self._steps.updated else Verdict.STALE
        self._step_to("update")
        return Verdict.FRESH

    def _received(self, received: Received) -> Verdict:
        if self.state is State.UPDATED and received.round != self._place[0]:
            if received.round > self._place[0]:
                raise _Illegal(f"no update of round {received.round} was sent")
            return Verdict.FRESH
        self._step_to("received")
        return Verdict.FRESH

    def _evaluate(self, evaluate: Evaluate) -> Verdict:
        self._step_to("evaluate")
        key = (evaluate.round, evaluate.phase)
        repeated = self._evaluations.get(key) is False
        # Only the latest question is answered; an older one was given up by its deadline.
        self._evaluations = {key: False}
        return Verdict.REPEAT if repeated else Verdict.FRESH

    def _report(self, report: Report) -> Verdict:
        key = (report.round, report.phase)
        if key not in self._evaluations:
            if self._evaluations or self._place > _BEFORE_ALL:
                return Verdict.STALE
            raise _Illegal("no evaluation was asked for")
        if self.state is not State.READY:
            return Verdict.STALE
        answered, self._evaluations[key] = self._evaluations[key], True
        return Verdict.REPEAT if answered else Verdict.FRESH

    def _bulk(self, message: Fetch | Chunk, kind: str) -> Verdict:
        after = self._next(self.state, kind)
        key = (message.asset, message.offset)
        if isinstance(message, Fetch):
            repeated = key in self._asked
            if not repeated and len(self._asked) >= self._credit:
                raise _Illegal(f"{self._credit} chunks are on their way already")
            self._asked[key] = None
        else:
            repeated = key not in self._asked
            self._asked.pop(key, None)
        self.state = after
        return Verdict.REPEAT if repeated else Verdict.FRESH

    def _probe(self, message: Probe | Probed, kind: str) -> Verdict:
        # An answer that was given up on may come after the next probe, or after the hello.
        if isinstance(message, Probed) and (self.state is not State.PROBING or message.number != self._probed):
            return Verdict.STALE
        self._step_to(kind)
        self._probed = message.number
        return Verdict.FRESH

    def _not_ahead(self, place: tuple[int, int]) -> None:
        if place > self._place:
            at = f"round {self._place[0]} era {self._place[1]}" if self._place > _BEFORE_ALL else "before any round"
            raise _Illegal(f"it is {at}, and round {place[0]} era {place[1]} has not started")

    # ---- steps -------------------------------------------------------------------------------------------------------

    def _exchange(self, message: Exchange, kind: str) -> Verdict:
        if isinstance(message, Forward) and not message.train:
            return self._look(message)
        if isinstance(message, Hidden) and (verdict := self._looked_at(message)) is not None:
            return verdict
        if self.state in (State.NEW, State.GREETED, State.WELCOMED, State.BULK, State.CLOSED):
            self._next(self.state, kind)
        place = (message.round, message.era)
        self._not_ahead(place)
        if place < self._place or self.state is not State.ROUND:
            return Verdict.STALE
        if isinstance(message, Forward) and not self._steps.knows(message):
            self._room_for(message)
        problem, verdict = self._steps.move(message, kind)
        if problem:
            raise _Illegal(problem)
        return verdict

    def _look(self, forward: Forward) -> Verdict:
        if self.state not in LOOK_STATES:
            raise _Illegal(f"in state {self.state.value!r} there is nothing to evaluate")
        key = _key(forward)
        if key in self._looks:
            return Verdict.REPEAT
        if (forward.round, forward.era) == self._place and self._steps.knows(forward):
            raise _Illegal("a training micro-batch has the same round, era, step and micro")
        self._room_for(forward)
        assert MOVES[State.MICRO_NEW, LOOK] is State.LOOK_ASKED
        self._looks[key] = None
        return Verdict.FRESH

    def _room_for(self, forward: Forward) -> None:
        if self.in_flight >= self._credit:
            raise _Illegal(f"{self._credit} requests wait for an answer already")
        if _key(forward) in self._looks:
            raise _Illegal("an evaluation with the same round, era, step and micro waits for its answer")

    def _looked_at(self, hidden: Hidden) -> Verdict | None:
        """The verdict when this answers an evaluation's forward pass, else None."""
        key = _key(hidden)
        if (hidden.round, hidden.era) == self._place and self._steps.knows(hidden):
            return None
        if key in self._looks:
            del self._looks[key]
            self._looked[key] = None
            if len(self._looked) > self._credit:
                del self._looked[next(iter(self._looked))]
            return Verdict.FRESH
        if key in self._looked:
            return Verdict.REPEAT
        return Verdict.STALE if key in self._given_up else None

    def _text(self, who: str, message: Message, problem: str) -> str:
        where = ""
        if isinstance(message, Exchange):
            where = f" (round {message.round}, era {message.era}, step {message.step}, micro {message.micro})"
        return f"{who} {type(message).__name__}{where}: {problem}"


class _Illegal(ProtocolError):
    """Inside this file: becomes Local- or RemoteProtocolError by who is to blame."""


def _key(message: Exchange) -> tuple[int, ...]:
    return (message.round, message.era, message.step, message.micro, message.attempt)
