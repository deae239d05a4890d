"""The two ends of a link, as types: sockets, the in-memory pair and the fault injector all look like this.

Code that talks to the other side takes a ``ClientEnd`` or a ``ServerEnd``, so that it runs over TCP, in one process
and under injected faults without knowing which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from fedsplit.wire.frames import Packet
from fedsplit.wire.messages import Message
from fedsplit.wire.tensors import WireTensor

Tensors = Mapping[str, WireTensor]


@dataclass(frozen=True)
class Incoming:
    """A packet at the server. ``identity`` names the connection; ``public_key`` (hex) its proven owner, or is empty."""

    identity: bytes
    public_key: str
    packet: Packet
    nbytes: int


class ClientEnd(Protocol):
    """What a device holds. Used by one thread."""

    reconnected: bool
    """True after the connection was lost and is back. The owner says Hello again and sets it to False."""
    up_bytes: int
    down_bytes: int

    @property
    def down_s(self) -> float:
        """Seconds since the connection was lost; 0.0 while it stands."""
        ...

    def send(self, message: Message, tensors: Tensors | None = None) -> int:
        """Send one packet, return its bytes.

        :raises Closed: there is no connection now. :raises LocalProtocolError: too large.
        """
        ...

    def receive(self, timeout_s: float) -> Packet | None:
        """The next packet; None after ``timeout_s``, or at once when the connection was lost or has come back.

        :raises RemoteProtocolError: what arrived is not a packet. :raises Closed: gone for longer than the patience.
        """
        ...

    def wait(self, timeout_s: float) -> bool:
        """Wait until the connection stands; False when it does not within ``timeout_s``."""
        ...

    def close(self) -> None: ...


class ServerEnd(Protocol):
    """What the server holds: all clients in one place. Used by one thread."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port it listens on."""
        ...

    def receive(self, timeout_s: float) -> Incoming | None:
        """The next packet of any client, or None after ``timeout_s``. Broken packets are answered and reported."""
        ...

    def send(self, identity: bytes, message: Message, tensors: Tensors | None = None) -> int:
        """Send one packet to one client, return its bytes.

        :raises Closed: that connection is gone. :raises Timeout: its queue is full.
        """
        ...

    def close(self) -> None: ...
