"""A link in memory that looks like the sockets and still encodes and decodes every packet.

``Loopback().gateway`` and ``Loopback().dealer(name)`` are a ``ServerEnd`` and ``ClientEnd`` for one process: in one
thread for examples and tests that take turns, or in several. ``cut`` and ``restore`` make the link fail on purpose.
"""

from __future__ import annotations

import hashlib
import queue
import time

from fedsplit.errors import Closed, RemoteProtocolError
from fedsplit.events import Emit, Note, silent
from fedsplit.wire.ends import Incoming, Tensors
from fedsplit.wire.frames import Frame, Packet, decode, encode, size_of
from fedsplit.wire.limits import Limits
from fedsplit.wire.messages import Message, Refuse


class Loopback:
    """One server end and any number of client ends."""

    def __init__(self, limits: Limits | None = None, emit: Emit = silent) -> None:
        self.limits = limits or Limits()
        self.gateway = LoopbackGateway(self.limits, emit)

    def dealer(self, name: str = "client") -> LoopbackDealer:
        """A new client end. ``name`` decides its public key: the same name proves the same key again."""
        return LoopbackDealer(self.gateway, name, self.limits)


class LoopbackGateway:
    """The server end: a ``ServerEnd``."""

    def __init__(self, limits: Limits, emit: Emit = silent) -> None:
        self.broken = 0
        self.address = "loopback", 1
        self._limits, self._emit = limits, emit
        self._inbox: queue.SimpleQueue[tuple[bytes, str, list[bytes]]] = queue.SimpleQueue()
        self._dealers: dict[bytes, LoopbackDealer] = {}

    def receive(self, timeout_s: float) -> Incoming | None:
        """The next packet of any client, or None after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                identity, key, frames = self._inbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            try:
                packet = decode(frames, self._limits)
            except RemoteProtocolError as error:
                self._refuse(identity, error)
                continue
            return Incoming(identity, key, packet, packet.nbytes)

    def send(self, identity: bytes, message: Message, tensors: Tensors | None = None) -> int:
        """Send one packet to one client, return its bytes. :raises Closed: it is not connected."""
        return self.send_frames(identity, encode(message, tensors, self._limits))

    def send_frames(self, identity: bytes, frames: list[Frame]) -> int:
        """Send what may not even be a packet. :raises Closed: it is not connected."""
        dealer = self._dealers.get(identity)
        if dealer is None or not dealer.connected:
            raise Closed(f"{identity.hex()} is not connected any more")
        return dealer.deliver(frames)

    def close(self) -> None:
        """Every client sees the connection go."""
        for dealer in self._dealers.values():
            dealer.cut()

    def attach(self, dealer: LoopbackDealer) -> None:
        """Called by a new client end."""
        self._dealers[dealer.identity] = dealer

    def deliver(self, identity: bytes, key: str, frames: list[Frame]) -> int:
        """Called by a client end: the frames of one packet, as bytes."""
        self._inbox.put((identity, key, [bytes(frame) for frame in frames]))
        return size_of(frames)

    def _refuse(self, identity: bytes, error: RemoteProtocolError) -> None:
        self.broken += 1
        self._emit(Note(text=f"dropped a broken packet of connection {identity.hex()}: {error}", warning=True))
        if (dealer := self._dealers.get(identity)) and dealer.connected:
            self.send(identity, Refuse(code="protocol", reason=str(error)))


class LoopbackDealer:
    """One client end: a ``ClientEnd``."""

    def __init__(self, gateway: LoopbackGateway, name: str, limits: Limits) -> None:
        number = len(gateway._dealers)
        self.identity = hashlib.blake2b(f"{number}:{name}".encode(), digest_size=16).digest()
        self.public_key = hashlib.blake2b(name.encode(), digest_size=32).hexdigest()
        self.connected, self.reconnected = True, False
        self.up_bytes = self.down_bytes = 0
        self._gateway, self._limits = gateway, limits
        self._inbox: queue.SimpleQueue[list[bytes] | None] = queue.SimpleQueue()
        self._since = 0.0
        gateway.attach(self)

    @property
    def down_s(self) -> float:
        """Seconds since ``cut``; 0.0 while the connection stands."""
        return 0.0 if self.connected else time.monotonic() - self._since

    def send(self, message: Message, tensors: Tensors | None = None) -> int:
        """Send one packet, return its bytes. :raises Closed: the connection is cut."""
        return self.send_frames(encode(message, tensors, self._limits))

    def send_frames(self, frames: list[Frame]) -> int:
        """Send what may not even be a packet."""
        if not self.connected:
            raise Closed("the loopback connection is cut")
        nbytes = self._gateway.deliver(self.identity, self.public_key, frames)
        self.up_bytes += nbytes
        return nbytes

    def receive(self, timeout_s: float) -> Packet | None:
        """The next packet; None after ``timeout_s``, or at once when the connection was cut or restored."""
        try:
            frames = self._inbox.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None
        if frames is None:
            return None
        packet = decode(frames, self._limits)
        self.down_bytes += packet.nbytes
        return packet

    def wait(self, timeout_s: float) -> bool:
        """Whether the connection stands within ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while not self.connected and time.monotonic() < deadline:
            time.sleep(0.001)
        return self.connected

    def deliver(self, frames: list[Frame]) -> int:
        """Called by the server end."""
        self._inbox.put([bytes(frame) for frame in frames])
        return size_of(frames)

    def cut(self) -> None:
        """Lose the connection; what the client has not received yet is gone."""
        if self.connected:
            self.connected, self._since = False, time.monotonic()
            self._inbox = queue.SimpleQueue()
            self._inbox.put(None)

    def restore(self, gateway: LoopbackGateway | None = None) -> None:
        """Connect again, to the same server or (``gateway``) to one that was started anew."""
        self._gateway = gateway or self._gateway
        self._gateway.attach(self)
        self.connected = self.reconnected = True
        self._inbox.put(None)

    def close(self) -> None:
        self.cut()
