"""The client's conversation with its server: repeats what stays unanswered, and says when to start over.

Every wait has a deadline and names whom it waits for. Nothing is trained here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fedsplit.errors import Closed, FedsplitError, Refused, Timeout
from fedsplit.events import Emit
from fedsplit.events import Waiting as WaitingEvent
from fedsplit.wire import Packet
from fedsplit.wire.ends import ClientEnd, Tensors
from fedsplit.wire.messages import (
    Abort,
    Alive,
    Backward,
    Bye,
    Commit,
    Evaluate,
    Exchange,
    Finish,
    Forward,
    Message,
    Prepare,
    Refuse,
    Start,
    Waiting,
)

RETRY_S = 10.0
"""A request without an answer is sent again after this long; the server answers a repeat from its ledger."""

IDLE_S = 2.0
"""Between rounds the client says that it is alive this often."""


class Restart(FedsplitError):
    """The connection or the server is new: say hello again. What was under way is repeated from the last round."""


class Interrupt(FedsplitError):
    """The server began something else; ``packet`` is what it wants now."""

    def __init__(self, packet: Packet) -> None:
        super().__init__(f"the server sent {type(packet.message).__name__}")
        self.packet = packet


class ServerLine:
    """Implements ``fedsplit.train.step.Line`` over a ``ClientEnd``."""

    def __init__(
        self,
        end: ClientEnd,
        *,
        server: str,
        patience_s: float,
        emit: Emit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.end = end
        self._server, self._patience_s, self._emit, self._clock = server, patience_s, emit, clock
        self._open: dict[int, tuple[Message, Tensors]] = {}

    def send(self, message: Message, tensors: Tensors) -> None:
        """Send a step message; it is repeated until answered. Raises Restart when the connection is gone."""
        assert isinstance(message, Forward | Backward | Prepare)
        self._open[-1 if isinstance(message, Prepare) else message.micro] = (message, tensors)
        self._put(message, tensors)

    def receive(self) -> Packet:
        """The next step message.

        :raises Interrupt: the server started another round, a measurement or the end.
        :raises Restart: the connection was lost or the server does not know us (any more).
        :raises Timeout: the server stayed silent for longer than the patience.
        """
        packet = self._wait(self._patience_s, self._resend, RETRY_S)
        message = packet.message
        if isinstance(message, Exchange):
            self._settle(message)
            return packet
        raise Interrupt(packet)

    def tell(self, message: Message, tensors: Tensors | None = None) -> None:
        """Send something that is no step message."""
        self._open.clear()
        self._put(message, tensors or {})

    def next(self, patience_s: float | None = None) -> Packet:
        """Between steps: the next thing the server wants. Raises like ``receive``."""
        self._open.clear()
        return self._wait(patience_s or self._patience_s, self._alive, IDLE_S)

    def _wait(self, patience_s: float, nudge: Callable[[], None], every_s: float) -> Packet:
        begun = heard = nudged = self._clock()
        while True:
            packet = self.end.receive(min(every_s, 1.0))
            now = self._clock()
            if self.end.reconnected:
                raise Restart("the connection came back")
            if packet is not None:
                heard = now
                if not self._small_talk(packet):
                    return packet
            elif now - heard > patience_s:
                raise Timeout(
                    f"{self._server} has been silent for {now - heard:.0f} s (waited since {now - begun:.0f} s)"
                )
            if now - nudged > every_s:
                nudged = now
                nudge()

    def _small_talk(self, packet: Packet) -> bool:
        """Handle what needs no answer; False when the packet is for the caller."""
        match packet.message:
            case Alive():
                return True
            case Waiting() as waiting:
                self._emit(WaitingEvent(on=waiting.on, what=waiting.what))
                return True
            case Refuse(code="hello-first" | "stale") as refuse:
                raise Restart(refuse.reason)
            case Refuse() as refuse:
                raise Refused(f"{self._server}: {refuse.reason}; {refuse.fix}")
            case Bye() as bye:
                raise Closed(f"{self._server} ended the run: {bye.reason}")
            case Exchange() | Start() | Evaluate() | Finish():
                return False
            case _:
                return False

    def _settle(self, message: Exchange) -> None:
        if isinstance(message, Commit | Abort):
            self._open.clear()
        else:
            self._open.pop(message.micro, None)

    def _resend(self) -> None:
        for message, tensors in list(self._open.values()):
            self._put(message, tensors)

    def _alive(self) -> None:
        self._put(Alive(), {})

    def _put(self, message: Message, tensors: Tensors) -> None:
        try:
            self.end.send(message, tensors)
        except Closed:
            # The wait that follows notices the way back, or gives up when the patience is spent.
            return
