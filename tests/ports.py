"""A port for a server that starts later, or a second time: until then nobody else gets it.

A port that was free a moment ago may be given to any program before its server binds it: to another test's server, or
to a connection that goes out.
"""

from __future__ import annotations

import socket
import sys


class HeldPort:
    """A port of 127.0.0.1, ``number``, held until it is closed; nothing answers there before a server listens.

    A socket that is bound and does not listen lets a server bind beside it on Linux. Elsewhere it would not, and the
    port is only one that was free a moment ago.
    """

    def __init__(self) -> None:
        self._holder = socket.socket()
        if sys.platform != "win32":
            self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._holder.bind(("127.0.0.1", 0))
        self.number: int = self._holder.getsockname()[1]
        if sys.platform != "linux":
            self._holder.close()

    def close(self) -> None:
        self._holder.close()

    def __enter__(self) -> HeldPort:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
