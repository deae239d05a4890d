"""The client's conversation with its server: repeats what stays unanswered, and says when to start over.

Every wait has a deadline and names whom it waits for. Nothing is trained here.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fedsplit.errors import Closed, FedsplitError, Refused, Timeout
from fedsplit.events import Emit, Note
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
    Received,
    Refuse,
    Start,
    Update,
    Waiting,
    Welcome,
)

RETRY_S = 10.0
"""A request without an answer is sent again after this long; the server answers a repeat from its ledger."""
IDLE_S = 2.0
"""Between rounds the client says that it is alive this often."""
DAMAGED = 5
"""Packets of ours in a row that may reach the server broken."""

_PREPARE, _UPDATE = -1, -2
"""Keys of the requests that are not a micro-batch's."""


class Restart(FedsplitError):
    """The connection or the server is new: say hello again. What was under way is repeated from the last round."""


class Interrupt(FedsplitError):
    """The server began something else; ``packet`` is what it wants now."""

    def __init__(self, packet: Packet) -> None:
        super().__init__(f"the server sent {type(packet.message).__name__}")
        self.packet = packet


class ServerLine:
    """Implements ``fedsplit.exchange.step.Line`` over a ``ClientEnd``. ``watch``: called while it waits, may raise."""

    def __init__(
        self,
        end: ClientEnd,
        *,
        server: str,
        patience_s: float,
        emit: Emit,
        client: str = "",
        clock: Callable[[], float] = time.monotonic,
        retry_s: float = RETRY_S,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        self.end = end
        self._server, self._patience_s, self._emit, self._clock = server, patience_s, emit, clock
        self._client, self._retry_s, self._watch = client, retry_s, watch
        self._open: dict[int, tuple[Message, Tensors]] = {}
        self._damaged = 0
        self.waited_s = 0.0
        """Seconds spent waiting for the server so far: what a step takes beyond them is this device's own work."""

    def send(self, message: Message, tensors: Tensors) -> None:
        """Send a step message; it is repeated until answered. What a lost connection swallows is noticed later."""
        assert isinstance(message, Forward | Backward | Prepare)
        self._open[_PREPARE if isinstance(message, Prepare) else message.micro] = (message, tensors)
        self._put(message, tensors)

    def receive(self) -> Packet:
        """The next step message.

        :raises Interrupt: the server started another round, a measurement or the end.
        :raises Restart: the connection was lost or the server does not know us (any more).
        :raises Timeout: the server stayed silent for longer than the patience.
        """
        begun = time.perf_counter()
        packet = self._wait(self._patience_s)
        self.waited_s += time.perf_counter() - begun
        message = packet.message
        if isinstance(message, Exchange):
            self._settle(message)
            return packet
        raise Interrupt(packet)

    def tell(self, message: Message, tensors: Tensors | None = None) -> None:
        """Send something that is no step message. An update is repeated until ``next`` hears that it was received."""
        self._open.clear()
        if isinstance(message, Update):
            self._open[_UPDATE] = (message, tensors or {})
        self._put(message, tensors or {})

    def next(self, patience_s: float | None = None) -> Packet:
        """Between steps: the next thing the server wants. Raises like ``receive``, but not Interrupt."""
        self._open = {key: open for key, open in self._open.items() if key == _UPDATE}
        return self._wait(patience_s or self._patience_s)

    def _wait(self, patience_s: float) -> Packet:
        begun = heard = nudged = self._clock()
        while True:
            self._watch()
            packet = self.end.receive(min(self._every_s, 1.0))
            now = self._clock()
            if self.end.reconnected:
                raise self._restart("the connection came back")
            if packet is not None:
                heard = now
                if not self._small_talk(packet.message):
                    return packet
            elif now - heard > patience_s:
                raise Timeout(
                    f"{self._server} has been silent for {now - heard:.0f} s (waited since {now - begun:.0f} s)"
                )
            if now - nudged >= self._every_s:
                nudged = now
                self._nudge()

    @property
    def _every_s(self) -> float:
        return self._retry_s if self._open else IDLE_S

    def _nudge(self) -> None:
        """Say everything that has no answer again, or that we are still here."""
        for message, tensors in list(self._open.values()):
            self._put(message, tensors)
        if not self._open:
            self._put(Alive(), {})

    def _small_talk(self, message: Message) -> bool:
        """Handle what is not for the caller; False when it is."""
        match message:
            case Exchange() | Start() | Evaluate() | Finish() | Welcome():
                self._damaged = 0
                return False
            case Waiting() as waiting:
                self._emit(WaitingEvent(client=self._client, on=waiting.on, what=waiting.what))
            case Received() as received:
                self._open.pop(_UPDATE, None)
                if received.late:
                    self._note(f"the update of round {received.round + 1} came too late and was dropped")
            case Refuse() as refuse:
                self._refused(refuse)
            case Bye() as bye:
                raise ended(self._server, bye)
        return True

    def _refused(self, refuse: Refuse) -> None:
        match refuse.code:
            case "hello-first" | "stale":
                raise self._restart(refuse.reason)
            case "update":
                self._open.pop(_UPDATE, None)
                self._note(f"the server left our update out: {refuse.reason}")
            case "protocol" if self._damaged < DAMAGED:
                self._damaged += 1
                self._nudge()
            case _:
                raise Refused(f"{self._server}: {refuse.reason}" + (f"; {refuse.fix}" if refuse.fix else ""))

    def _restart(self, reason: str) -> Restart:
        """What waits for an answer belongs to the connection that was: after a hello nobody may say it."""
        self._open.clear()
        return Restart(reason)

    def _settle(self, message: Exchange) -> None:
        if isinstance(message, Commit | Abort):
            self._open.clear()
        else:
            self._open.pop(message.micro, None)

    def _note(self, text: str) -> None:
        self._emit(Note(client=self._client, text=text, warning=True))

    def _put(self, message: Message, tensors: Tensors) -> None:
        try:
            self.end.send(message, tensors)
        except Closed:
            # The wait that follows notices the way back, or gives up when the patience is spent.
            return


def ended(server: str, bye: Bye) -> Closed:
    """The server's last word, as the error that it means here."""
    return Closed(f"{server} gave the run up: {bye.reason}. Once it serves again, the same command goes on")
