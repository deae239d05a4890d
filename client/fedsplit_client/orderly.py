"""A client end that keeps the rules of the wire: what may not come now, or came before, goes no further.

Every request is repeated until it is answered, so dropping a packet is always safe; acting on a wrong one is not.
"""

from __future__ import annotations

from fedsplit.errors import RemoteProtocolError
from fedsplit.events import Emit, Note
from fedsplit.wire import Packet
from fedsplit.wire.ends import ClientEnd, Tensors
from fedsplit.wire.messages import Evaluate, Hello, Message, Start
from fedsplit.wire.session import Role, Session, State, Verdict


class OrderlyEnd:
    """A ``ClientEnd`` around another one. Until the server's welcome a broken packet raises: it may be no fedsplit."""

    def __init__(self, end: ClientEnd, client: str, emit: Emit) -> None:
        self._end, self._client, self._emit = end, client, emit
        self._rules = Session(Role.CLIENT)
        self._round = -1

    @property
    def reconnected(self) -> bool:
        return self._end.reconnected

    @reconnected.setter
    def reconnected(self, value: bool) -> None:
        self._end.reconnected = value

    @property
    def up_bytes(self) -> int:
        return self._end.up_bytes

    @up_bytes.setter
    def up_bytes(self, value: int) -> None:
        self._end.up_bytes = value

    @property
    def down_bytes(self) -> int:
        return self._end.down_bytes

    @down_bytes.setter
    def down_bytes(self, value: int) -> None:
        self._end.down_bytes = value

    @property
    def down_s(self) -> float:
        return self._end.down_s

    def send(self, message: Message, tensors: Tensors | None = None) -> int:
        """As the wrapped end. :raises LocalProtocolError: we may not say this now."""
        self._rules.sent(message)
        if isinstance(message, Hello):
            self._round = -1
        return self._end.send(message, tensors)

    def receive(self, timeout_s: float) -> Packet | None:
        """The next packet that is new and legal; None also for one that is not.

        :raises RemoteProtocolError: before the welcome, a packet that is none.
        """
        try:
            packet = self._end.receive(timeout_s)
        except RemoteProtocolError as error:
            if self._rules.state in (State.NEW, State.GREETED):
                raise
            self._dropped(error)
            return None
        try:
            fresh = packet is not None and self._is_fresh(packet.message)
        except RemoteProtocolError as error:
            # After a hello in the middle of a round, what the server had sent before still arrives.
            self._dropped(error)
            return None
        return packet if fresh else None

    def _is_fresh(self, message: Message) -> bool:
        if isinstance(message, Evaluate) and message.round <= self._round:
            # A question from before the round that we are in; one that ends the round has a higher number.
            return False
        fresh = self._rules.received(message) is Verdict.FRESH
        if fresh and isinstance(message, Start):
            self._round = message.round
        return fresh

    def _dropped(self, error: RemoteProtocolError) -> None:
        self._emit(Note(client=self._client, text=f"dropped a packet: {error}", warning=True))

    def wait(self, timeout_s: float) -> bool:
        return self._end.wait(timeout_s)

    def close(self) -> None:
        self._end.close()
