"""Who connects: answers ZeroMQ's authentication requests so that every packet carries its sender's public key.

Any key may complete the handshake, because whoever can start one already knows the server's public key from a join
link; whether a key is welcome is decided by the invitation in Hello. A thread of its own, so that a device can connect
while the server computes. pyzmq's authenticator would do the same through an asyncio loop (RFC 27 is the protocol).
"""

from __future__ import annotations

from threading import Thread

import zmq

DOMAIN = b"fedsplit"
ENDPOINT = "inproc://zeromq.zap.01"


class Zap:
    """Answers on the context until that is terminated."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(ENDPOINT)
        self._thread = Thread(target=self._answer, name="fedsplit-zap", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread, after the context began to terminate."""
        self._thread.join(timeout=5.0)

    def _answer(self) -> None:
        try:
            while True:
                self._socket.send_multipart(_reply(self._socket.recv_multipart()))
        except zmq.ContextTerminated:
            pass
        finally:
            self._socket.close()


def _reply(request: list[bytes]) -> list[bytes]:
    """Version, request id, status code, status text, user id, metadata."""
    if len(request) != 7 or request[0] != b"1.0":
        return [b"1.0", request[1] if len(request) > 1 else b"", b"500", b"malformed", b"", b""]
    _, number, _, _, _, mechanism, key = request
    if mechanism != b"CURVE" or len(key) != 32:
        return [b"1.0", number, b"400", b"only CURVE", b"", b""]
    return [b"1.0", number, b"200", b"OK", key.hex().encode(), b""]
