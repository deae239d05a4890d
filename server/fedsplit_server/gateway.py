"""The server's one TCP port: packets of all clients in, packets out, encrypted, with proven senders.

A ROUTER socket used by one thread. Nothing that a client sends can raise out of ``receive``: a broken packet is
answered with Refuse, reported, and the loop goes on. Encryption needs keys; without them whoever can reach the port
can read and forge everything, which the run file must ask for.
"""

from __future__ import annotations

import errno
import math
import time
from contextlib import suppress
from dataclasses import dataclass

import zmq

from fedsplit.errors import Closed, LinkError, RemoteProtocolError, Timeout
from fedsplit.events import Emit, Note, silent
from fedsplit.wire.ends import Incoming, Tensors
from fedsplit.wire.frames import Frame, decode, encode, size_of
from fedsplit.wire.keyfile import KeyPair
from fedsplit.wire.limits import Limits
from fedsplit.wire.messages import Bye, Message, Refuse
from fedsplit_server.zap import DOMAIN, Zap

LAST_WORDS_S = 5.0
"""Closing waits this long for those who were told Bye to hang up."""
_AGAIN_S = 0.05
"""A Bye is said again this often until then."""
_REASON_LETTERS = 500
"""A reason quotes what was found, and what was found is up to the sender."""


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """The server asks each quiet connection every ``interval_s`` and drops it after ``timeout_s`` without an answer.

    The timeout is long: a device that uploads one large tensor over a slow link can answer only after it.
    """

    interval_s: float = 10.0
    timeout_s: float = 120.0


class Gateway:
    """A ``ServerEnd`` over TCP.

    :raises LinkError: the port is taken, or the address is not this machine's.
    """

    def __init__(
        self,
        host: str,
        port: int,
        keys: KeyPair | None,
        limits: Limits | None = None,
        *,
        heartbeat: Heartbeat | None = None,
        send_timeout_s: float = 5.0,
        emit: Emit = silent,
    ) -> None:
        self._limits = limits or Limits()
        self._emit = emit
        if not 0 <= port < 65_536:  # ZeroMQ would wrap it around and listen elsewhere
            raise LinkError(f"cannot listen on {host}:{port}: ports go from 1 to 65535, 0 takes any free one")
        self._host = host or "*"
        # A context of its own: ZeroMQ allows one authenticator a context, and one process may run several servers.
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._zap = Zap(self._context) if keys else None
        self._byes: dict[bytes, list[Frame]] = {}
        self.broken = 0
        """Packets that were not packets, so far."""
        self._socket = self._context.socket(zmq.ROUTER)
        self._set_options(keys, heartbeat or Heartbeat(), send_timeout_s)
        try:
            self._port = self._bind(port)
        except LinkError:
            self.close()
            raise

    @property
    def address(self) -> tuple[str, int]:
        """Host and port it listens on; the port is the real one where 0 was asked for."""
        return self._host, self._port

    def receive(self, timeout_s: float) -> Incoming | None:
        """The next packet of any client, or None after ``timeout_s``. Never raises for what a client sent."""
        deadline = time.monotonic() + timeout_s
        while True:
            frames = self._frames(deadline)
            if frames is None:
                return None
            identity = frames[0].bytes
            try:
                packet = decode([frame.buffer for frame in frames[1:]], self._limits)
            except RemoteProtocolError as error:
                self._refuse(identity, error)
                continue
            return Incoming(identity, _owner(frames[-1]), packet, packet.nbytes)

    def send(self, identity: bytes, message: Message, tensors: Tensors | None = None) -> int:
        """Send one packet to one client, return its bytes. The tensors' memory is read after this returns.

        :raises Closed: that connection is gone. :raises Timeout: the client does not take what was sent before.
        :raises LocalProtocolError: the packet is beyond the limits.
        """
        frames = encode(message, tensors, self._limits)
        if isinstance(message, Bye):
            self._byes[identity] = frames
        return self.send_frames(identity, frames)

    def send_frames(self, identity: bytes, frames: list[Frame]) -> int:
        """Send what may not even be a packet; for tests. Raises like ``send``."""
        try:
            self._socket.send_multipart([identity, *frames], copy=False)
        except zmq.Again:
            raise Timeout(f"connection {identity.hex()} does not read: its queue is full") from None
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise Closed(f"sending failed: {error.strerror}") from None
            raise Closed(f"connection {identity.hex()} is gone") from None
        return size_of(frames)

    def close(self) -> None:
        """Stop listening and drop what was not sent, but for a last Bye. Safe to call twice."""
        self._say_byes()
        self._socket.close(linger=0)
        self._context.term()
        if self._zap:
            self._zap.join()

    def _say_byes(self) -> None:
        """Until everybody who was told so has hung up: lingering may close over the last bytes of a full connection."""
        until = time.monotonic() + LAST_WORDS_S
        while self._byes and time.monotonic() < until:
            time.sleep(_AGAIN_S)
            for identity, frames in list(self._byes.items()):
                try:
                    self._socket.send_multipart([identity, *frames], zmq.DONTWAIT, copy=False)
                except zmq.Again:
                    continue
                except zmq.ZMQError:
                    del self._byes[identity]
        self._byes.clear()

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set_options(self, keys: KeyPair | None, heartbeat: Heartbeat, send_timeout_s: float) -> None:
        socket = self._socket
        options = {
            zmq.LINGER: 0,
            zmq.ROUTER_MANDATORY: 1,
            # A device that lost its connection comes back under its name before we noticed that the old one is dead.
            zmq.ROUTER_HANDOVER: 1,
            zmq.MAXMSGSIZE: self._limits.frame_bytes,
            zmq.SNDHWM: self._limits.queue,
            zmq.RCVHWM: self._limits.queue,
            zmq.SNDTIMEO: round(send_timeout_s * 1000),
            zmq.HEARTBEAT_IVL: round(heartbeat.interval_s * 1000),
            zmq.HEARTBEAT_TIMEOUT: round(heartbeat.timeout_s * 1000),
            zmq.IPV6: int(":" in self._host),
        }
        for option, value in options.items():
            socket.setsockopt(option, value)
        if keys:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
            socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)

    def _bind(self, port: int) -> int:
        host = f"[{self._host}]" if ":" in self._host else self._host
        try:
            self._socket.bind(f"tcp://{host}:{port}")
        except zmq.ZMQError as error:
            raise LinkError(_why_not(self._host, port, error)) from None
        endpoint = self._socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        return int(endpoint.rstrip(b"\0").rpartition(b":")[2])

    def _frames(self, deadline: float) -> list[zmq.Frame] | None:
        """One multipart packet, identity first, or None at the deadline."""
        while True:
            try:
                return self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                left_s = deadline - time.monotonic()
                if not self._socket.poll(math.ceil(max(0.0, left_s) * 1000)) and left_s <= 0:
                    return None

    def _refuse(self, identity: bytes, error: RemoteProtocolError) -> None:
        self.broken += 1
        reason = str(error)[:_REASON_LETTERS]
        self._emit(Note(text=f"dropped a broken packet of connection {identity.hex()}: {reason}", warning=True))
        fix = "use the same version of fedsplit on both sides"
        with suppress(LinkError):  # it is gone, or does not read either
            self.send(identity, Refuse(code="protocol", reason=reason, fix=fix))


def _owner(frame: zmq.Frame) -> str:
    """The public key that the handshake proved, in hex; empty without encryption."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""


def _why_not(host: str, port: int, error: zmq.ZMQError) -> str:
    where = f"cannot listen on {host}:{port}"
    match error.errno:
        case zmq.EADDRINUSE:
            return (
                f"{where}: port {port} is in use by another program; stop it, or choose another port "
                "([server] port in the run file; 0 takes any free one)"
            )
        case errno.EACCES:
            return f"{where}: ports below 1024 are reserved; choose a port from 1024 to 65535"
        case zmq.EADDRNOTAVAIL | errno.ENODEV:
            return f"{where}: this machine has no such address; use 0.0.0.0 for all of its addresses"
    return f"{where}: {error.strerror}"
