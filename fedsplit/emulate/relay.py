"""A link that is not here: a TCP relay that lets bytes through at a rate and after a delay, whatever they mean.

One virtual clock a direction, shared by all connections of a device: a chunk that arrives at s has left the sender at
max(s, end of the chunk before) + bytes / rate, and is delivered one latency later. What is on its way is bounded by
rate times latency and a fixed buffer; a sender that is faster is held back by TCP itself. Encryption passes unseen.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fedsplit.devices.profile import Link
from fedsplit.errors import InternalError

CHUNK_S = 0.004
"""Bytes are taken in pieces of about this many seconds of the link, so that a rate is felt within a message."""
SMALLEST, LARGEST = 2048, 128 * 1024
BUFFER_BYTES = 128 * 1024
"""Of every socket here: what the sender may believe to be sent though it still waits for the link."""
IDLE_S = 0.0005
"""A read that took longer than this waited for its bytes: they were not there before."""
LATE_S = 0.02
"""A relay that was itself kept waiting makes up for at most this much."""
SPARE_PIECES = 64
START_S = 10.0

Moving = asyncio.Queue[tuple[float, bytes]]
"""What has left and not arrived: (when it is due, bytes)."""


@dataclass
class Way:
    """One direction of a device's link. ``free_s``: when the last byte so far has left the sender.

    ``owed_s`` says how long the sender would still compute on its device before it sends what it sends here now.
    """

    rate_bps: float
    latency_s: float
    owed_s: Callable[[], float] = float
    free_s: float = 0.0
    passed_bytes: int = 0

    @property
    def chunk(self) -> int:
        return min(LARGEST, max(SMALLEST, int(self.rate_bps * CHUNK_S)))

    @property
    def pieces(self) -> int:
        """How many may be on their way at once: what the latency holds, and some for tiny messages."""
        return SPARE_PIECES + int(self.rate_bps * self.latency_s / self.chunk)

    def leaves(self, size: int, now: float, *, waited: bool) -> float:
        """When ``size`` bytes that were read at ``now`` have left; ``waited``: the link was idle before them."""
        behind = not waited and now - self.free_s < LATE_S
        start = self.free_s if behind else max(self.free_s, now + self.owed_s())
        self.free_s = start + size / self.rate_bps
        self.passed_bytes += size
        return self.free_s


@dataclass
class Relay:
    """A device's way to ``target`` (host, port); ``address`` is where the device has to dial."""

    target: tuple[str, int]
    up: Way
    down: Way
    address: tuple[str, int] = ("", 0)
    server: asyncio.Server | None = None
    open: set[asyncio.Task[None]] = field(default_factory=set)

    async def listen(self) -> None:
        listener = _buffered(socket.socket())
        listener.bind(("127.0.0.1", 0))
        self.server = await asyncio.start_server(self._accept, sock=listener, limit=BUFFER_BYTES)
        self.address = listener.getsockname()[:2]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.open.add(task)
        try:
            await self._connect(reader, writer)
        except* (OSError, asyncio.CancelledError):
            pass  # the server is gone, or the run is over: the device notices that its connection ends
        finally:
            self.open.discard(task)
            writer.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = _buffered(socket.socket(_family(self.target[0])))
        there.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(there, self.target)
            far_reader, far_writer = await asyncio.open_connection(sock=there, limit=BUFFER_BYTES)
        except OSError:
            there.close()
            raise
        try:
            async with asyncio.TaskGroup() as ways:
                for source, sink, way in ((reader, far_writer, self.up), (far_reader, writer, self.down)):
                    moving: Moving = asyncio.Queue(way.pieces)
                    ways.create_task(_take(source, moving, way))
                    ways.create_task(_deliver(moving, sink))
        finally:
            far_writer.close()


async def _take(source: asyncio.StreamReader, moving: Moving, way: Way) -> None:
    """Bytes onto the link at its rate, until the source ends."""
    now = asyncio.get_running_loop().time
    while True:
        asked = now()
        piece = await source.read(way.chunk)
        read = now()
        left = way.leaves(len(piece), read, waited=read - asked > IDLE_S) if piece else read
        await moving.put((left + way.latency_s, piece))
        if not piece:
            return
        await asyncio.sleep(max(0.0, left - now()))


async def _deliver(moving: Moving, sink: asyncio.StreamWriter) -> None:
    """Every piece when it is due; the end of the source (an empty piece) ends the sink, too."""
    now = asyncio.get_running_loop().time
    while True:
        due, piece = await moving.get()
        await asyncio.sleep(max(0.0, due - now()))
        if not piece:
            with suppress(OSError):
                sink.write_eof()
            return
        sink.write(piece)
        await sink.drain()


class Relays:
    """All relays of a run in one thread. Leaving the context closes every connection and ends the thread."""

    def __init__(self) -> None:
        # select() waits to the microsecond; epoll, the default, rounds every delay up to a millisecond.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._thread = threading.Thread(target=self._loop.run_forever, name="relays", daemon=True)
        self._relays: list[Relay] = []

    def __enter__(self) -> Relays:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_S)
        self._loop.close()

    def add(self, link: Link, host: str, port: int) -> Relay:
        """A relay to ``host:port`` with the rates (bytes a second) and one-way latency of ``link``."""
        up, down = Way(link.up_bps, link.latency_s), Way(link.down_bps, link.latency_s)
        relay = Relay((host, port), up, down)
        self._do(relay.listen())
        self._relays.append(relay)
        return relay

    async def _close(self) -> None:
        for relay in self._relays:
            assert relay.server is not None
            relay.server.close()
        tasks = [task for relay in self._relays for task in relay.open]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        if not self._thread.is_alive():
            work.close()
            raise InternalError("relays are used outside their context")
        asyncio.run_coroutine_threadsafe(work, self._loop).result(START_S)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _buffered(end: socket.socket) -> socket.socket:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        end.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
    # asyncio does so only for sockets that name their protocol; accepted ones inherit it.
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return end
