"""A relayed connection takes what the link would take: rate, latency, both ways, all connections together."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from fedsplit.devices.profile import Link
from fedsplit.emulate.relay import LATE_S, Relays, Way
from fedsplit.errors import InternalError
from tests.waiting import LIMIT_S, wait_for

LINK = Link(up_bps=2e6, down_bps=4e6, latency_s=0.03)
BYTES = 600_000
WITHIN = 0.15


@pytest.fixture
def server() -> Iterator[tuple[str, int]]:
    """Answers a request (two lengths, then as many bytes as the first says) with as many bytes as the second says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[:2]
        listener.shutdown(socket.SHUT_RDWR)


def answer(connection: socket.socket) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while head := take(connection, 8):
            take(connection, int.from_bytes(head[:4], "big"))
            connection.sendall(bytes(range(256)) * (int.from_bytes(head[4:], "big") // 256))


def take(connection: socket.socket, count: int) -> bytes:
    """That many bytes, or those before the connection's end."""
    parts = []
    while count and (part := connection.recv(min(count, 1 << 20))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def seconds(connection: socket.socket, up: int, down: int) -> float:
    begun = time.perf_counter()
    connection.sendall(up.to_bytes(4, "big") + down.to_bytes(4, "big") + bytes(up))
    got = take(connection, down)
    assert got == bytes(range(256)) * (down // 256)
    return time.perf_counter() - begun


def takes(expected_s: float, transfer: Callable[[], float]) -> int:
    """Transfers until one takes as long as expected. Busy machines make them longer, nothing makes them shorter."""
    taken: list[float] = []

    def done() -> bool:
        taken.append(transfer())
        assert taken[-1] > (1 - WITHIN) * expected_s
        return taken[-1] < (1 + WITHIN) * expected_s

    wait_for(done)
    return len(taken)


def dial(address: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(address, timeout=LIMIT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


@contextmanager
def through(link: Link) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of one relayed connection."""
    with Relays() as relays, socket.create_server(("127.0.0.1", 0)) as listener:
        near = dial(relays.add(link, *listener.getsockname()[:2]).address)
        far, _ = listener.accept()
        with near, far:
            yield near, far


def test_rate_and_latency_are_those_of_the_link(server: tuple[str, int]) -> None:
    trip, down = 2 * LINK.latency_s, 2 * BYTES // 256 * 256
    with Relays() as relays:
        relay = relays.add(LINK, *server)
        with dial(relay.address) as connection:
            trips = takes(trip, lambda: seconds(connection, 0, 256))
            ups = takes(BYTES / LINK.up_bps + trip, lambda: seconds(connection, BYTES, 256))
            downs = takes(down / LINK.down_bps + trip, lambda: seconds(connection, 0, down))
        assert relay.up.passed_bytes == 8 * (trips + ups + downs) + ups * BYTES


def test_connections_of_one_device_share_its_link(server: tuple[str, int]) -> None:
    with Relays() as relays, ThreadPoolExecutor(2) as pool:
        relay = relays.add(LINK, *server)
        connections = [dial(relay.address) for _ in range(2)]

        def together() -> float:
            begun = time.perf_counter()
            for done in [pool.submit(seconds, connection, BYTES // 2, 256) for connection in connections]:
                done.result(LIMIT_S)
            return time.perf_counter() - begun

        takes(BYTES / LINK.up_bps + 2 * LINK.latency_s, together)
        for connection in connections:
            connection.close()


def test_what_is_sent_while_the_device_would_still_compute_leaves_later(server: tuple[str, int]) -> None:
    with Relays() as relays:
        relay = relays.add(LINK, *server)
        relay.up.owed_s = lambda: 0.1
        with dial(relay.address) as connection:
            takes(0.1 + 2 * LINK.latency_s, lambda: seconds(connection, 0, 256))


def test_leaving_ends_open_connections_and_the_thread(server: tuple[str, int]) -> None:
    before = threading.active_count()
    with Relays() as relays:
        connection = dial(relays.add(LINK, *server).address)
        seconds(connection, 0, 256)
    with connection:
        assert connection.recv(1) == b""
    assert not [thread for thread in threading.enumerate() if thread.name == "relays"]
    assert threading.active_count() <= before + 1
    with pytest.raises(InternalError, match="outside"):
        relays.add(LINK, *server)


def test_the_end_of_one_side_reaches_the_other() -> None:
    with through(LINK) as (connection, far):
        connection.sendall(b"last")
        connection.shutdown(socket.SHUT_WR)
        assert take(far, 100) == b"last"
        far.sendall(b"words")
        far.shutdown(socket.SHUT_WR)
        assert take(connection, 100) == b"words"


def test_a_server_that_is_not_there_ends_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gone = listener.getsockname()[:2]
    with Relays() as relays, dial(relays.add(LINK, *gone).address) as connection:
        assert connection.recv(1) == b""


def test_a_receiver_that_does_not_read_holds_the_sender_back() -> None:
    sent = 0
    with through(Link(up_bps=1e9, down_bps=1e9, latency_s=0.0)) as (connection, _):
        connection.settimeout(0.3)
        with suppress(TimeoutError):
            while sent < 100_000_000:
                sent += connection.send(bytes(1 << 16))
    assert sent < 40_000_000


def test_a_busy_link_counts_from_the_last_byte_and_an_idle_one_from_now() -> None:
    way = Way(rate_bps=1000.0, latency_s=1.0)
    assert way.leaves(100, 5.0, waited=True) == pytest.approx(5.1)
    assert way.leaves(100, 5.0, waited=True) == pytest.approx(5.2)
    assert way.leaves(100, 5.2 + LATE_S / 2, waited=False) == pytest.approx(5.3)
    assert way.leaves(100, 9.0, waited=False) == pytest.approx(9.1)
