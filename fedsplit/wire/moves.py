"""Every legal move of both roles, in one table: (state, kind of message) to the next state.

A connection, an optimiser step and a micro-batch each have a state; a message moves the one that it belongs to.
What is not in the table is not legal. Both ends use the same table, so they cannot disagree about the rules.
"""

from __future__ import annotations

from enum import Enum
from typing import get_args

from fedsplit.wire import messages as m


class Role(Enum):
    """Which end of the connection this is."""

    CLIENT = "client"
    SERVER = "server"

    @property
    def other(self) -> Role:
        return Role.SERVER if self is Role.CLIENT else Role.CLIENT


class State(Enum):
    """Of a connection (first block), a step of it, and a micro-batch of the step."""

    NEW = "new"
    GREETED = "greeted"
    WELCOMED = "welcomed"
    READY = "ready"
    ROUND = "in a round"
    UPDATED = "updated"
    FINISHED = "finished"
    CLOSED = "closed"
    BULK = "downloading"
    PROBING = "measuring the link"

    STEP_OPEN = "step open"
    STEP_PREPARED = "step prepared"
    STEP_CLOSED = "step closed"

    MICRO_NEW = "micro-batch new"
    MICRO_FORWARD = "forward asked"
    MICRO_HIDDEN = "hidden sent"
    MICRO_BACKWARD = "backward asked"
    MICRO_DONE = "micro-batch done"
    MICRO_MISSING = "activations missing"
    LOOK_ASKED = "evaluation asked"
    LOOK_DONE = "evaluation answered"


LOOK = "forward to evaluate"
"""``Forward(train=False)``: a kind of its own, because nothing follows its answer."""

_BOTH = (m.Alive, m.Bye)
_FROM_CLIENT = (m.Probe, m.Hello, m.Accept, m.Fetch, m.Update, m.Report, m.Forward, m.Backward, m.Prepare)

SENDER: dict[str, Role | None] = {
    LOOK: Role.CLIENT,
    **{
        m.kind_of(kind): None if kind in _BOTH else Role.CLIENT if kind in _FROM_CLIENT else Role.SERVER
        for kind in get_args(m.AnyMessage)
    },
}
"""Who may say it; None: both."""

_S = State
_JOINED = (_S.READY, _S.ROUND, _S.UPDATED)
_OPEN = (_S.GREETED, _S.WELCOMED, *_JOINED, _S.FINISHED)

MOVES: dict[tuple[State, str], State] = {
    # ---- a connection ----
    # Hello is legal always: it starts over, after a lost connection as after a change of mind.
    **{(state, "hello"): _S.GREETED for state in (_S.NEW, _S.PROBING, *_OPEN, _S.CLOSED)},
    **{(state, "bye"): _S.CLOSED for state in (_S.NEW, _S.PROBING, *_OPEN, _S.BULK)},
    **{(state, "alive"): state for state in (_S.NEW, _S.PROBING, *_OPEN, _S.BULK)},
    **{(state, "waiting"): state for state in _OPEN},
    (_S.NEW, "refuse"): _S.NEW,
    (_S.GREETED, "welcome"): _S.WELCOMED,
    (_S.GREETED, "refuse"): _S.NEW,
    (_S.WELCOMED, "welcome"): _S.WELCOMED,
    (_S.WELCOMED, "refuse"): _S.NEW,
    (_S.WELCOMED, "accept"): _S.READY,
    # A new plan for a client that is in already.
    (_S.READY, "welcome"): _S.READY,
    (_S.READY, "accept"): _S.READY,
    # A hello said twice is welcomed twice, and each welcome is answered: the second answer may cross the start.
    **{(state, "accept"): state for state in (_S.ROUND, _S.UPDATED, _S.FINISHED)},
    **{(state, "start"): _S.ROUND for state in _JOINED},
    # In a round, Evaluate and Finish mean that the round was closed without this client.
    **{(state, "evaluate"): _S.READY for state in _JOINED},
    **{(state, "finish"): _S.FINISHED for state in (*_JOINED, _S.FINISHED)},
    (_S.READY, "report"): _S.READY,
    (_S.ROUND, "update"): _S.UPDATED,
    (_S.UPDATED, "received"): _S.READY,
    (_S.UPDATED, "refuse"): _S.READY,
    # Too late: the round of this update is closed.
    **{(state, "received"): state for state in (_S.READY, _S.ROUND, _S.FINISHED)},
    **{(state, "refuse"): state for state in (_S.READY, _S.ROUND, _S.FINISHED, _S.BULK)},
    # ---- measuring the link, one payload at a time, before a hello ----
    (_S.NEW, "probe"): _S.PROBING,
    (_S.PROBING, "probed"): _S.NEW,
    (_S.PROBING, "refuse"): _S.NEW,
    # ---- a connection for downloads ----
    (_S.NEW, "fetch"): _S.BULK,
    (_S.BULK, "fetch"): _S.BULK,
    (_S.BULK, "chunk"): _S.BULK,
    # ---- a step ----
    (_S.STEP_CLOSED, "forward"): _S.STEP_OPEN,
    (_S.STEP_OPEN, "forward"): _S.STEP_OPEN,
    (_S.STEP_OPEN, "prepare"): _S.STEP_PREPARED,
    (_S.STEP_PREPARED, "commit"): _S.STEP_CLOSED,
    # Before Prepare too: another client of the same batch went away.
    (_S.STEP_OPEN, "abort"): _S.STEP_CLOSED,
    (_S.STEP_PREPARED, "abort"): _S.STEP_CLOSED,
    # ---- a micro-batch ----
    (_S.MICRO_NEW, "forward"): _S.MICRO_FORWARD,
    (_S.MICRO_FORWARD, "hidden"): _S.MICRO_HIDDEN,
    (_S.MICRO_HIDDEN, "backward"): _S.MICRO_BACKWARD,
    (_S.MICRO_BACKWARD, "grad"): _S.MICRO_DONE,
    # Topology v: the loss is at the server, so the gradient is the answer.
    (_S.MICRO_FORWARD, "grad"): _S.MICRO_DONE,
    (_S.MICRO_FORWARD, "missing"): _S.MICRO_MISSING,
    (_S.MICRO_HIDDEN, "missing"): _S.MICRO_MISSING,
    (_S.MICRO_BACKWARD, "missing"): _S.MICRO_MISSING,
    (_S.MICRO_MISSING, "forward"): _S.MICRO_FORWARD,
    # ---- a forward pass that trains nothing ----
    (_S.MICRO_NEW, LOOK): _S.LOOK_ASKED,
    (_S.LOOK_ASKED, "hidden"): _S.LOOK_DONE,
}

LOOK_STATES = frozenset({_S.READY, _S.ROUND, _S.UPDATED, _S.FINISHED})
"""Where a connection must be for an evaluation's forward pass."""


def legal(state: State) -> tuple[str, ...]:
    """The kinds that may come next in ``state``, sorted."""
    return tuple(sorted(kind for (at, kind) in MOVES if at is state))
