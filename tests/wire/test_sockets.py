"""Gateway and dealer over real TCP: who is on the other side, and what is said when something is wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedsplit.errors import Closed, LinkError, LocalProtocolError, Refused, Timeout
from fedsplit.events import Event, Note
from fedsplit.wire import JoinLink, KeyPair, Limits, WireTensor
from fedsplit.wire import messages as m
from fedsplit_client import keys as client_keys
from fedsplit_client.dealer import Dealer, Heartbeat
from fedsplit_server.gateway import Gateway
from fedsplit_server.keys import ServerKeys, load_keys, make_pair
from tests.ports import HeldPort
from tests.waiting import LIMIT_S, wait_for

QUICK = Heartbeat(interval_s=0.1, timeout_s=0.4)


@pytest.fixture
def keys(tmp_path: Path) -> ServerKeys:
    return load_keys(tmp_path / "server")


@pytest.fixture
def own(tmp_path: Path) -> KeyPair:
    return client_keys.load_keys(tmp_path / "client")


@pytest.fixture
def gateway(keys: ServerKeys) -> Iterator[Gateway]:
    with Gateway("127.0.0.1", 0, keys.pair) as end:
        yield end


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A program that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def port() -> Iterator[int]:
    """Where nothing listens yet."""
    with HeldPort() as held:
        yield held.number


# ---- the server's port -----------------------------------------------------------------------------------------------


def test_a_port_in_use_is_named(gateway: Gateway) -> None:
    port = gateway.address[1]
    with pytest.raises(LinkError, match=rf"port {port} is in use.*\[server\] port"):
        Gateway("127.0.0.1", port, None)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(LinkError, match=r"192\.0\.2\.7.*no such address.*0\.0\.0\.0"):
        Gateway("192.0.2.7", 0, None)


@pytest.mark.parametrize("port", [-1, 65_536, 99_999])
def test_a_port_that_is_none(port: int) -> None:
    with pytest.raises(LinkError, match="1 to 65535"):
        Gateway("127.0.0.1", port, None)


def test_two_servers_in_one_process_and_closing_twice(keys: ServerKeys, own: KeyPair) -> None:
    first, second = Gateway("127.0.0.1", 0, keys.pair), Gateway("127.0.0.1", 0, keys.pair)
    assert first.address != second.address
    for end in (first, second):
        with Dealer(keys.link(*end.address), own) as dealer:
            dealer.send(m.Alive())
            assert end.receive(LIMIT_S) is not None
        end.close()
        end.close()


# ---- who is there ----------------------------------------------------------------------------------------------------


def test_the_client_is_known_by_its_key(gateway: Gateway, keys: ServerKeys, own: KeyPair) -> None:
    for _ in range(2):
        with Dealer(keys.link(*gateway.address), own) as dealer:
            dealer.send(m.Hello(client="pi"))
            incoming = gateway.receive(LIMIT_S)
            assert incoming is not None
            assert incoming.public_key == own.public.hex() == own.name


def test_without_encryption_nobody_is_proven() -> None:
    with Gateway("127.0.0.1", 0, None) as gateway, Dealer(JoinLink(*gateway.address)) as dealer:
        dealer.send(m.Alive())
        incoming = gateway.receive(LIMIT_S)
        assert incoming is not None
        assert incoming.public_key == ""


def test_a_device_connects_while_the_server_computes(gateway: Gateway, keys: ServerKeys, own: KeyPair) -> None:
    """Nobody calls ``receive``: the handshake must not need the owner's thread."""
    begun = time.perf_counter()
    Dealer(keys.link(*gateway.address), own).close()
    assert time.perf_counter() - begun < LIMIT_S


def test_an_encrypted_link_needs_own_keys(gateway: Gateway, keys: ServerKeys) -> None:
    with pytest.raises(LocalProtocolError, match="own key pair"):
        Dealer(keys.link(*gateway.address))


# ---- why there is no connection --------------------------------------------------------------------------------------


def test_nothing_listens(port: int, own: KeyPair, keys: ServerKeys) -> None:
    begun = time.perf_counter()
    with pytest.raises(Closed, match=rf"nothing answers at 127\.0\.0\.1:{port} .*refused.*is the server running"):
        Dealer(keys.link("127.0.0.1", port), own, connect_timeout_s=0.3)
    assert time.perf_counter() - begun < LIMIT_S


def test_a_server_that_starts_a_moment_later(port: int, own: KeyPair, keys: ServerKeys) -> None:
    code = f"import time; time.sleep(0.3); {_serve_code(port, keys)}"
    with _python(code) as server:
        Dealer(keys.link("127.0.0.1", port), own, connect_timeout_s=LIMIT_S).close()
        server.kill()


@pytest.mark.parametrize("link_key", ["another server's", "none"])
def test_a_wrong_key(gateway: Gateway, keys: ServerKeys, own: KeyPair, link_key: str) -> None:
    host, port = gateway.address
    link = JoinLink(host, port) if link_key == "none" else JoinLink(host, port, make_pair()[0], keys.invite)
    begun = time.perf_counter()
    with pytest.raises(Refused, match=rf"127\.0\.0\.1:{port} answers but refuses.*another server's key"):
        Dealer(link, own)
    assert time.perf_counter() - begun < LIMIT_S
    assert gateway.receive(0.0) is None


def test_an_encrypted_link_to_an_open_server(keys: ServerKeys, own: KeyPair) -> None:
    with Gateway("127.0.0.1", 0, None) as gateway, pytest.raises(Refused, match="refuses the handshake"):
        Dealer(keys.link(*gateway.address), own)


@pytest.mark.parametrize("connect_timeout_s", [0.0, 0.5], ids=["no event so far", "connected"])
def test_a_program_that_stays_silent(
    listener: socket.socket, keys: ServerKeys, own: KeyPair, connect_timeout_s: float
) -> None:
    with pytest.raises(Timeout, match="accepts connections but does not answer"):
        Dealer(keys.link(*listener.getsockname()), own, connect_timeout_s=connect_timeout_s)


def test_a_host_that_does_not_exist(keys: ServerKeys, own: KeyPair) -> None:
    with pytest.raises(Closed, match=r"no host called 'nowhere\.invalid'"):
        Dealer(keys.link("nowhere.invalid", 5700), own)


# ---- losing a connection ---------------------------------------------------------------------------------------------


def test_a_restarted_server_is_noticed(port: int, keys: ServerKeys, own: KeyPair) -> None:
    """Down, up, ``reconnected``; and what could not be delivered does not reach the new process before Hello."""
    first = Gateway("127.0.0.1", port, keys.pair)
    link = keys.link(*first.address)
    with Dealer(link, own) as dealer:
        dealer.send(m.Hello(client="pi"))
        assert first.receive(LIMIT_S) is not None
        first.close()
        begun = time.perf_counter()
        assert dealer.receive(2 * LIMIT_S) is None
        assert time.perf_counter() - begun < LIMIT_S
        assert dealer.down_s > 0
        assert not dealer.reconnected
        assert not dealer.wait(0.05)
        with pytest.raises(Closed, match="was lost"):
            dealer.send(m.Backward(round=0, era=0, step=0), {"g": WireTensor.of(np.zeros((1, 1), "<f4"))})
        with Gateway(link.host, link.port, keys.pair) as second:
            assert dealer.wait(LIMIT_S)
            assert dealer.reconnected
            assert dealer.down_s == 0.0
            dealer.reconnected = False
            dealer.send(m.Hello(client="pi"))
            incoming = second.receive(LIMIT_S)
            assert incoming is not None
            assert isinstance(incoming.packet.message, m.Hello)
            second.send(incoming.identity, m.Alive())
            assert dealer.receive(LIMIT_S) is not None
            assert not dealer.reconnected


def test_patience_ends_with_the_reason(keys: ServerKeys, own: KeyPair) -> None:
    gateway = Gateway("127.0.0.1", 0, keys.pair)
    with Dealer(keys.link(*gateway.address), own, patience_s=0.5) as dealer:
        gateway.close()
        with pytest.raises(Closed, match="nothing answers at"):
            wait_forever(dealer)


def test_a_server_that_came_back_with_other_keys(port: int, keys: ServerKeys, own: KeyPair) -> None:
    gateway = Gateway("127.0.0.1", port, keys.pair)
    with Dealer(keys.link(*gateway.address), own, patience_s=1.5) as dealer:
        gateway.close()
        with Gateway("127.0.0.1", port, KeyPair(*make_pair())), pytest.raises(Refused, match="another server's key"):
            wait_forever(dealer)


def test_back_after_another_program_had_the_port(port: int, keys: ServerKeys, own: KeyPair) -> None:
    """ZeroMQ itself never tries again after it has met a server without encryption."""
    gateway = Gateway("127.0.0.1", port, keys.pair)
    with Dealer(keys.link(*gateway.address), own) as dealer:
        gateway.close()
        # The news of the closed connection takes its way through ZeroMQ's own thread.
        wait_for(lambda: dealer.down_s > 0)
        with Gateway("127.0.0.1", port, None):
            assert not dealer.wait(1.0)
        with Gateway("127.0.0.1", port, keys.pair):
            assert dealer.wait(LIMIT_S)
            assert dealer.reconnected


def wait_forever(dealer: Dealer) -> None:
    while dealer.receive(5.0) is None:
        pass


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stopping a process is a POSIX matter")
def test_a_server_that_went_silent(port: int, keys: ServerKeys, own: KeyPair) -> None:
    """The process is stopped, its TCP connection stays: only the heartbeat can tell."""
    with _python(_serve_code(port, keys)) as server:
        link = keys.link("127.0.0.1", port)
        with Dealer(link, own, heartbeat=QUICK, connect_timeout_s=LIMIT_S, patience_s=0.5) as dealer:
            server.send_signal(signal.SIGSTOP)
            try:
                wait_for(lambda: dealer.down_s > 0)
                with pytest.raises(Timeout, match="does not answer"):
                    wait_forever(dealer)
            finally:
                server.send_signal(signal.SIGCONT)
                server.kill()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stopping a process is a POSIX matter")
def test_what_the_old_server_did_not_read_is_not_for_the_new_one(port: int, keys: ServerKeys, own: KeyPair) -> None:
    link = keys.link("127.0.0.1", port)
    with _python(_serve_code(port, keys)) as server, Dealer(link, own, connect_timeout_s=LIMIT_S) as dealer:
        server.send_signal(signal.SIGSTOP)
        for _ in range(20):
            dealer.send(m.Update(round=0, era=0, base_version=0, examples=1, steps=1), _bytes(10**6))
        server.kill()
        server.wait(LIMIT_S)
        wait_for(lambda: dealer.down_s > 0)
        with Gateway("127.0.0.1", port, keys.pair) as gateway:
            assert dealer.wait(LIMIT_S)
            dealer.send(m.Hello(client="pi"))
            incoming = gateway.receive(LIMIT_S)
            assert incoming is not None
            assert isinstance(incoming.packet.message, m.Hello)


def test_a_killed_client_is_noticed(gateway: Gateway, keys: ServerKeys, tmp_path: Path) -> None:
    code = f"""
        from pathlib import Path
        from fedsplit.wire import JoinLink, messages
        from fedsplit_client.dealer import Dealer
        from fedsplit_client.keys import load_keys
        dealer = Dealer(JoinLink.parse({str(keys.link(*gateway.address))!r}), load_keys(Path({str(tmp_path)!r})))
        dealer.send(messages.Hello(client="pi"))
        dealer.receive(60)
    """
    with _python(code) as client:
        incoming = gateway.receive(LIMIT_S)
        assert incoming is not None
        client.kill()
        client.wait(LIMIT_S)
        with pytest.raises(Closed, match="is gone"):
            _send_until_it_fails(gateway, incoming.identity)


def _send_until_it_fails(gateway: Gateway, identity: bytes) -> None:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        gateway.send(identity, m.Alive())
        time.sleep(0.01)


# ---- what is too much ------------------------------------------------------------------------------------------------


def test_an_oversized_frame_costs_its_sender_the_connection(keys: ServerKeys, own: KeyPair, tmp_path: Path) -> None:
    limits = Limits(header_bytes=10_000, tensor_bytes=10_000)
    with Gateway("127.0.0.1", 0, keys.pair, limits) as gateway:
        link = keys.link(*gateway.address)
        with Dealer(link, own) as greedy, Dealer(link, client_keys.load_keys(tmp_path / "other")) as modest:
            greedy.send(m.Update(round=0, era=0, base_version=0, examples=1, steps=1), _bytes(20_000))
            modest.send(m.Alive())
            incoming = gateway.receive(LIMIT_S)
            assert incoming is not None
            assert isinstance(incoming.packet.message, m.Alive)
            wait_for(lambda: greedy.down_s > 0 or greedy.reconnected)
            assert gateway.receive(0.1) is None


def test_the_sender_refuses_first(gateway: Gateway, keys: ServerKeys, own: KeyPair) -> None:
    with Dealer(keys.link(*gateway.address), own, limits=Limits(tensor_bytes=1000)) as dealer:
        with pytest.raises(LocalProtocolError, match="at most 1000"):
            dealer.send(m.Update(round=0, era=0, base_version=0, examples=1, steps=1), _bytes(1001))
        assert dealer.up_bytes == 0


def test_a_client_that_does_not_read_stops_nobody(keys: ServerKeys, own: KeyPair, tmp_path: Path) -> None:
    limits = Limits(queue=2)
    with Gateway("127.0.0.1", 0, keys.pair, limits, send_timeout_s=0.1) as gateway:
        link = keys.link(*gateway.address)
        other = client_keys.load_keys(tmp_path / "other")
        with Dealer(link, own, limits=limits) as lazy, Dealer(link, other) as keen:
            lazy.send(m.Hello(client="lazy"))
            identity = gateway.receive(LIMIT_S).identity  # type: ignore[union-attr]
            with pytest.raises(Timeout, match="does not read"):
                _flood(gateway, identity)
            keen.send(m.Alive())
            assert gateway.receive(LIMIT_S) is not None


def _flood(gateway: Gateway, identity: bytes) -> None:
    for _ in range(100):
        gateway.send(identity, m.Chunk(asset="w", offset=0), {"data": WireTensor.of(np.zeros(10**6, "u1"))})


def _bytes(count: int) -> dict[str, WireTensor]:
    return {"x": WireTensor.of(np.zeros(count, "u1"))}


# ---- speed that is a promise -----------------------------------------------------------------------------------------


def test_what_was_sent_may_be_forgotten_at_once(gateway: Gateway, keys: ServerKeys, own: KeyPair) -> None:
    """Tensors are not copied for sending, so the socket itself must keep their memory until it is read."""
    with Dealer(keys.link(*gateway.address), own) as dealer:
        for value in range(20):
            dealer.send(
                m.Update(round=value, era=0, base_version=0, examples=1, steps=1),
                {"x": WireTensor.of(np.full(250_000, value, "<i4"))},
            )
        for value in range(20):
            incoming = gateway.receive(LIMIT_S)
            assert incoming is not None
            assert (incoming.packet.tensors["x"].data == value).all()


def test_gradients_do_not_wait_behind_downloads(gateway: Gateway, keys: ServerKeys, own: KeyPair) -> None:
    link = keys.link(*gateway.address)
    with Dealer(link, own) as main, Dealer(link, own) as bulk:
        bulk.send(m.Fetch(asset="w", offset=0, size=1))
        main.send(m.Alive())
        found = [gateway.receive(LIMIT_S) for _ in range(2)]
        by_kind = {m.kind_of(incoming.packet.message): incoming.identity for incoming in found if incoming}
        chunk = {"data": WireTensor.of(np.zeros(1_000_000, "u1"))}
        for index in range(50):
            gateway.send(by_kind["fetch"], m.Chunk(asset="w", offset=index), chunk)
        gateway.send(by_kind["alive"], m.Grad(round=0, era=0, step=0))
        packet = main.receive(LIMIT_S)
        assert packet is not None
        assert isinstance(packet.message, m.Grad)
        behind = 0
        while bulk.receive(LIMIT_S) is not None:
            behind += 1
            if behind == 50:
                break
        assert behind == 50
        assert bulk.down_bytes > 50_000_000


def test_broken_packets_are_reported(keys: ServerKeys, own: KeyPair) -> None:
    events: list[Event] = []
    gateway = Gateway("127.0.0.1", 0, keys.pair, emit=events.append)
    with gateway, Dealer(keys.link(*gateway.address), own) as dealer:
        dealer.send_frames([b"x" * 10_000])
        dealer.send(m.Alive())
        assert gateway.receive(LIMIT_S) is not None
    [note] = events
    assert isinstance(note, Note)
    assert note.warning
    assert "not a fedsplit packet" in note.text


# ---- other processes -------------------------------------------------------------------------------------------------


def _serve_code(port: int, keys: ServerKeys) -> str:
    pair = f"KeyPair({keys.pair.public!r}, {keys.pair.secret!r})"
    imports = "from fedsplit.wire import KeyPair; from fedsplit_server.gateway import Gateway"
    return f"{imports}; Gateway('127.0.0.1', {port}, {pair}).receive(60)"


def _python(code: str) -> subprocess.Popen[bytes]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=env)
