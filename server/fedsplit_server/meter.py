"""What moves over each client's link, counted where it arrives and leaves: by client and by what it was for."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from fedsplit.wire.messages import Chunk, Evaluate, Exchange, Fetch, Finish, Forward, Message, Report, Start, Update

STEPS, EVALUATION = "steps", "evaluation"
_KINDS: tuple[tuple[tuple[type[Message], ...], str], ...] = (
    ((Start, Update), "adapter"),
    ((Evaluate, Report, Finish), EVALUATION),
    ((Fetch, Chunk), "weights"),
)


@dataclass
class Moved:
    """Bytes of whole packets, as the client sees up and down."""

    up: int = 0
    down: int = 0


class Entry(NamedTuple):
    client: str
    what: str
    moved: Moved


class Meter:
    """Adds up until somebody takes the sums away. Packets of nobody (an empty name) do not count."""

    def __init__(self) -> None:
        self._moved: defaultdict[tuple[str, str], Moved] = defaultdict(Moved)
        self._asks: dict[str, str] = {}

    def came(self, client: str, message: Message, nbytes: int) -> None:
        """``client`` sent a packet."""
        if isinstance(message, Forward):
            # Without training it belongs to a measurement, and so does the answer, which does not say so itself.
            self._asks[client] = STEPS if message.train else EVALUATION
        if client:
            self._moved[client, self._purpose(client, message)].up += nbytes

    def went(self, client: str, message: Message, nbytes: int) -> None:
        """A packet was sent to ``client``."""
        if client:
            self._moved[client, self._purpose(client, message)].down += nbytes

    def take_step(self, client: str) -> Moved:
        """What the steps of ``client`` moved since this was last asked."""
        return self._moved.pop((client, STEPS), Moved())

    def take_rest(self) -> list[Entry]:
        """Everything that was not taken, by client and purpose; steps that were begun and not finished are in it."""
        rest = [Entry(client, what, moved) for (client, what), moved in sorted(self._moved.items())]
        self._moved.clear()
        return rest

    def _purpose(self, client: str, message: Message) -> str:
        """``steps``, ``adapter``, ``evaluation``, ``weights``; everything else is ``control``."""
        if isinstance(message, Exchange):
            return self._asks.get(client, STEPS)
        return next((what for kinds, what in _KINDS if isinstance(message, kinds)), "control")
