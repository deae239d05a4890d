"""Going away when the owner's limits say so, and coming back: the loop around taking part.

While away there is no connection and nothing is loaded: the memory is the owner's again. The server was told how long
it will be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fedsplit.errors import Closed, Timeout
from fedsplit.events import Emit, Note
from fedsplit_client.owner import Left, Owner, Paused

POLL_S = 5.0
"""The word to leave, and mains or quiet that came back, are noticed after this long."""
T = TypeVar("T")


def with_pauses(
    owner: Owner,
    once: Callable[[], T],
    goodbye: Callable[[], None],
    emit: Emit,
    name: str,
    patience_s: Callable[[], float],
) -> T:
    """``once`` takes part until the end, or raises Paused; then again, when it may be.

    ``goodbye``: tells the server that one who is away does not come back. ``patience_s``: how long a server that does
    not answer is tried again after a pause. Raises as ``once``, and Left.
    """
    was_there = False
    while True:
        try:
            _wait(owner, emit, name)
        except Left:
            if was_there:
                goodbye()
            raise
        try:
            return _dialled(owner, once, patience_s()) if was_there else once()
        except Paused as paused:
            was_there = True
            owner.close()
            emit(Note(client=name, text=f"goes away for a while: {paused}"))


def _dialled(owner: Owner, once: Callable[[], T], patience_s: float) -> T:
    """The server may be starting again just when we come back."""
    begun_s = owner.sensors.clock()
    while True:
        try:
            return once()
        except (Closed, Timeout):
            if owner.sensors.clock() - begun_s > patience_s:
                raise
            owner.sensors.sleep(POLL_S)


def _wait(owner: Owner, emit: Emit, name: str) -> None:
    """Until everything that was limited may go on; what is waited for is said once. Raises Left."""
    said = ""
    while (pause := owner.now()) is not None:
        kind = pause.why.partition(",")[0] if pause.until is None else str(pause)
        if kind != said and not (said and pause.until is None):
            said = kind
            emit(Note(client=name, text=f"waits: {pause}"))
        owner.sensors.sleep(POLL_S)
    if said:
        emit(Note(client=name, text="goes on"))
