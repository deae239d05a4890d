"""What happens to a connection, told by ZeroMQ's socket monitor: up, down since when, and why it does not come up.

A socket that cannot connect looks the same from outside whatever the reason; its events do not. No TCP connection at
all means that nothing listens there. A TCP connection that ends at once means that the handshake was refused: another
server key, or another program. One that stays silent until the handshake's deadline is a process that does not answer.
"""

from __future__ import annotations

import struct
import time
from enum import Enum

import zmq

HANDSHAKE_S = 4.0

# Event and value, as the monitor sends them. pyzmq's own parser would load asyncio; a small device does without.
_EVENT = struct.Struct("=Hi")


class Trouble(Enum):
    """Why there is no connection, as far as the events tell."""

    NOTHING_LISTENS = "nothing listens"
    REFUSED = "handshake refused"
    SILENT = "no answer"


class Monitor:
    """Follows one socket that connects to one address. Used by the socket's thread."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._events = socket.get_monitor_socket()
        self.up = False
        self.ups = 0
        """How often the handshake succeeded."""
        self.refusals = 0
        """Handshakes in a row that ended before their deadline."""
        self.gave_up = False
        """ZeroMQ does not try again after a protocol error; the owner must."""
        self.since = time.monotonic()
        """When ``up`` last changed."""
        self._trouble = Trouble.NOTHING_LISTENS
        self._connected_at = 0.0

    @property
    def pollable(self) -> zmq.Socket[bytes]:
        return self._events

    @property
    def trouble(self) -> Trouble:
        """Why it is not up. A connection without an answer yet counts as silent, unless the one before was refused."""
        return self._trouble

    def drain(self) -> bool:
        """Take in all events so far; True when the connection came up or went down meanwhile."""
        ups, up = self.ups, self.up
        while True:
            try:
                parts = self._events.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return ups != self.ups or up != self.up
            self._take(_EVENT.unpack_from(parts[0])[0])

    def close(self) -> None:
        self._events.close(linger=0)

    def _take(self, event: int) -> None:
        match event:
            case zmq.EVENT_CONNECTED:
                # Whoever looks between two attempts shall hear of the refusal.
                self._trouble = Trouble.REFUSED if self.refusals else Trouble.SILENT
                self._connected_at = time.monotonic()
            case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.up, self.since, self.refusals = True, time.monotonic(), 0
                self.ups += 1
            case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                if time.monotonic() - self._connected_at < HANDSHAKE_S * 0.9:
                    self._refused()
                else:
                    self._trouble, self.refusals = Trouble.SILENT, 0
            case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._refused()
                self.gave_up = True
            case zmq.EVENT_DISCONNECTED if self.up:
                self.up, self.since = False, time.monotonic()
                # Silence until the next attempt shows more.
                self._trouble = Trouble.SILENT
            case zmq.EVENT_CLOSED | zmq.EVENT_CLOSE_FAILED:
                self._trouble, self.refusals = Trouble.NOTHING_LISTENS, 0

    def _refused(self) -> None:
        self._trouble = Trouble.REFUSED
        self.refusals += 1
