"""A device's one outbound connection: packets out, packets in, and a clear word when it does not work.

A DEALER socket used by one thread. Reconnecting is automatic; the owner is told through ``reconnected`` and says
Hello again, because the server may be a new process. What was sent and not answered may be lost then, and is repeated
by the owner: the server's ledger makes a repeat harmless. Big downloads use a second ``Dealer`` to the same server,
so that gradients never wait behind them.
"""

from __future__ import annotations

import math
import secrets
import socket as sockets
import time
from contextlib import suppress
from dataclasses import dataclass

import zmq

from fedsplit.errors import Closed, LinkError, LocalProtocolError, Refused, Timeout
from fedsplit.wire.ends import Tensors
from fedsplit.wire.frames import Frame, Packet, decode, encode, size_of
from fedsplit.wire.keyfile import KeyPair
from fedsplit.wire.limits import Limits
from fedsplit.wire.link import JoinLink
from fedsplit.wire.messages import Message
from fedsplit_client.monitor import HANDSHAKE_S, Monitor, Trouble

_REFUSALS = 4
"""Handshakes refused in a row that are a verdict; a server that is just stopping refuses one."""


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """The device asks the server every ``interval_s`` and drops the connection after ``timeout_s`` without an answer.

    On a link where one tensor needs longer than the timeout, the answer waits behind it: raise ``timeout_s``.
    """

    interval_s: float = 2.0
    timeout_s: float = 10.0


class Dealer:
    """A ``ClientEnd`` over TCP; connected when the constructor returns.

    ``keys`` may be None only where ``link`` has no key. ``patience_s``: how long a lost connection may stay lost.

    :raises Closed: nothing listens there. :raises Refused: the handshake failed, e.g. another server key.
    :raises Timeout: the server accepts connections and stays silent.
    """

    def __init__(
        self,
        link: JoinLink,
        keys: KeyPair | None = None,
        *,
        limits: Limits | None = None,
        heartbeat: Heartbeat | None = None,
        connect_timeout_s: float = 6.0,
        send_timeout_s: float = 10.0,
        patience_s: float = 300.0,
    ) -> None:
        if link.server_key and keys is None:
            raise LocalProtocolError("an encrypted server needs the device's own key pair")
        self.reconnected = False
        self.up_bytes = 0
        self.sent_bytes = 0
        """As ``up_bytes``, which its owner may set back."""
        self.down_bytes = 0
        self.patience_s = patience_s
        """May be changed once the run file is known."""
        self._link, self._limits = link, limits or Limits()
        ipv6 = _is_ipv6_only(link)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._set_options(keys, heartbeat or Heartbeat(), send_timeout_s, ipv6)
        self._monitor = Monitor(self._socket)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor.pollable, zmq.POLLIN)
        self._retry_at = 0.0
        try:
            self._socket.connect(f"tcp://{link.endpoint}")
            self._connect(connect_timeout_s)
        except BaseException:
            self.close()
            raise

    @property
    def down_s(self) -> float:
        """Seconds since the connection was lost; 0.0 while it stands. Looks at the events that have come so far."""
        self._notice()
        return 0.0 if self._monitor.up else time.monotonic() - self._monitor.since

    def send(self, message: Message, tensors: Tensors | None = None) -> int:
        """Send one packet, return its bytes. The tensors' memory is read after this returns.

        :raises Closed: there is no connection now (``wait`` for it). :raises Timeout: the server does not read.
        :raises LocalProtocolError: the packet is beyond the limits.
        """
        return self.send_frames(encode(message, tensors, self._limits))

    def send_frames(self, frames: list[Frame]) -> int:
        """Send what may not even be a packet; for tests. Raises like ``send``."""
        self._notice()
        if not self._monitor.up:
            raise self._lost()
        try:
            self._socket.send_multipart(frames, copy=False)
        except zmq.Again:
            self._notice()
            if not self._monitor.up:
                raise self._lost() from None
            raise Timeout(f"the server at {self._link.endpoint} does not take what was sent before") from None
        nbytes = size_of(frames)
        self.up_bytes += nbytes
        self.sent_bytes += nbytes
        return nbytes

    def receive(self, timeout_s: float) -> Packet | None:
        """The next packet; None after ``timeout_s``, or at once when the connection was lost or has come back.

        :raises RemoteProtocolError: what arrived is not a packet. :raises LinkError: lost for longer than the patience.
        """
        deadline = time.monotonic() + timeout_s
        noticed = False
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                if noticed:
                    return None
                noticed = self._notice()  # then look once more: a last word may have come right before the loss
                if not noticed and not self._sleep(deadline):
                    return None
                continue
            packet = decode([frame.buffer for frame in frames], self._limits)
            self.down_bytes += packet.nbytes
            return packet

    def wait(self, timeout_s: float) -> bool:
        """Wait until the connection stands; False when it does not within ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        self._notice()
        while not self._monitor.up:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            self._monitor.pollable.poll(math.ceil(min(left_s, 0.2) * 1000))
            self._notice()
        return True

    def close(self) -> None:
        """Drop the connection and what was not sent. Safe to call twice."""
        self._monitor.close()
        self._socket.close(linger=0)
        self._context.term()

    def __enter__(self) -> Dealer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_options(self, keys: KeyPair | None, heartbeat: Heartbeat, send_timeout_s: float, ipv6: bool) -> None:
        options: dict[int, int | bytes] = {
            zmq.LINGER: 0,
            # A name of its own that outlives a reconnect, so that a stored reply finds the way. Never begins with 0.
            zmq.ROUTING_ID: b"d" + secrets.token_bytes(15),
            # Nothing is queued for a server that is not there: a new process must hear Hello first.
            zmq.IMMEDIATE: 1,
            zmq.MAXMSGSIZE: self._limits.frame_bytes,
            zmq.SNDHWM: self._limits.queue,
            zmq.RCVHWM: self._limits.queue,
            zmq.SNDTIMEO: round(send_timeout_s * 1000),
            zmq.HEARTBEAT_IVL: round(heartbeat.interval_s * 1000),
            zmq.HEARTBEAT_TIMEOUT: round(heartbeat.timeout_s * 1000),
            zmq.HANDSHAKE_IVL: round(HANDSHAKE_S * 1000),
            zmq.CONNECT_TIMEOUT: 3000,
            zmq.RECONNECT_IVL: 100,
            zmq.RECONNECT_IVL_MAX: 2000,
            zmq.IPV6: int(ipv6),
        }
        if self._link.server_key and keys:
            options |= {
                zmq.CURVE_SERVERKEY: self._link.server_key,
                zmq.CURVE_PUBLICKEY: keys.public,
                zmq.CURVE_SECRETKEY: keys.secret,
            }
        for option, value in options.items():
            self._socket.setsockopt(option, value)

    def _connect(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._monitor.up:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or self._monitor.refusals >= _REFUSALS:
                raise self._trouble()
            self._monitor.pollable.poll(math.ceil(min(left_s, 0.1) * 1000))
            self._notice()
        self.reconnected = False

    def _notice(self) -> bool:
        """Take in the connection's events; True when it went down or came back."""
        changed = self._monitor.drain()
        if changed and self._monitor.up:
            self.reconnected = True
        if self._monitor.gave_up and time.monotonic() >= self._retry_at:
            self._retry()
        return changed

    def _retry(self) -> None:
        endpoint = f"tcp://{self._link.endpoint}"
        with suppress(zmq.ZMQError):  # ZeroMQ may have dropped the endpoint already
            self._socket.disconnect(endpoint)
        self._socket.connect(endpoint)
        self._monitor.gave_up = False
        self._retry_at = time.monotonic() + 0.5

    def _sleep(self, deadline: float) -> bool:
        """Until something happens; False at the deadline."""
        now = time.monotonic()
        if now >= deadline:
            return False
        until = deadline
        if not self._monitor.up:
            give_up_at = self._monitor.since + self.patience_s
            if now >= give_up_at:
                raise self._trouble()
            # In slices, because a connection that ZeroMQ gave up makes no more events.
            until = min(deadline, give_up_at, now + 0.5)
        self._poller.poll(math.ceil((until - now) * 1000))
        return True

    def _lost(self) -> Closed:
        return Closed(f"the connection to {self._link.endpoint} was lost {self.down_s:.0f} s ago ({self._why()})")

    def _why(self) -> str:
        return self._monitor.trouble.value

    def _trouble(self) -> LinkError:
        where = self._link.endpoint
        if self._monitor.trouble is Trouble.REFUSED:
            return Refused(
                f"{where} answers but refuses the handshake: the join link holds another server's key, "
                "or another program listens there; copy the line that this server printed at its last start"
            )
        # No event of a connection so far does not mean that there could be none: this machine may be busy.
        if self._monitor.trouble is Trouble.SILENT or not (reason := _reason(self._link)):
            return Timeout(
                f"{where} accepts connections but does not answer: the server hangs or is overloaded, "
                "or another program listens there; look at the server's terminal"
            )
        return Closed(
            f"nothing answers at {where} ({reason}); is the server running, are host and port right, "
            "does a firewall let them through?"
        )


def _is_ipv6_only(link: JoinLink) -> bool:
    """Look the host up before ZeroMQ does, because it says nothing when a name does not exist."""
    try:
        found = sockets.getaddrinfo(link.host, link.port, type=sockets.SOCK_STREAM)
    except OSError as error:
        raise Closed(f"there is no host called {link.host!r} ({error.strerror}); check the join link") from None
    return all(family == sockets.AF_INET6 for family, *_ in found)


def _reason(link: JoinLink) -> str:
    """What the operating system says about a plain connection; empty where that is possible."""
    try:
        sockets.create_connection((link.host, link.port), timeout=1.0).close()
    except TimeoutError:
        return "no answer to the connection request"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""
