"""What has arrived and is not answered yet, and which of it comes next.

The server does one thing at a time. Where several clients wait, a backward pass and the end of a step come before a
forward pass (they free memory, and a client goes on), and among forward passes the client that has most to do on its
own comes first: by its plan, a step's seconds without the server. That is Schrage's rule (``fedsplit.plan.order``). It
changes when a client is answered, never what. A client's own messages stay in their order, and nobody is passed over
more than ``PATIENCE`` times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedsplit.wire.ends import Incoming, ServerEnd
from fedsplit.wire.messages import Backward, Forward, Prepare

MOST = 64
"""Packets taken off the socket before one is answered; more wait in the socket's own queue."""
PATIENCE = 32


@dataclass
class _Held:
    incoming: Incoming
    number: int
    passed: int = 0


class Arrivals:
    """``tail_s``: seconds that the client of a connection takes on its own, by its plan; 0 for a stranger."""

    def __init__(self, tail_s: Callable[[bytes], float]) -> None:
        self._tail_s = tail_s
        self._held: list[_Held] = []
        self._number = 0

    @property
    def waiting(self) -> int:
        """Packets that were taken off the socket and are not answered yet."""
        return len(self._held)

    def next(self, end: ServerEnd, timeout_s: float) -> Incoming | None:
        """The packet to answer now; None when nothing came within ``timeout_s``."""
        while len(self._held) < MOST:
            incoming = end.receive(0.0 if self._held else timeout_s)
            if incoming is None:
                break
            self._held.append(_Held(incoming, self._number))
            self._number += 1
        if not self._held:
            return None
        firsts: Mapping[bytes, _Held] = {held.incoming.identity: held for held in reversed(self._held)}
        chosen = min(firsts.values(), key=self._rank)
        for held in firsts.values():
            held.passed += held.number < chosen.number
        self._held.remove(chosen)
        return chosen.incoming

    def _rank(self, held: _Held) -> tuple[bool, int, float, int]:
        kind: dict[type, int] = {Backward: 0, Prepare: 0, Forward: 2}
        place = kind.get(type(held.incoming.packet.message), 1)
        tail_s = self._tail_s(held.incoming.identity) if place == 2 else 0.0
        return held.passed < PATIENCE, place, -tail_s, held.number
