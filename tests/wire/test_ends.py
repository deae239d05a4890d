"""Both kinds of link keep the same promises, with and without injected faults."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedsplit.errors import Closed, RemoteProtocolError
from fedsplit.testing import faulty_ends
from fedsplit.testing.faults import Faults, InjectedCrash
from fedsplit.wire import ClientEnd, Incoming, Packet, ServerEnd, WireTensor
from fedsplit.wire import messages as m
from tests.waiting import LIMIT_S

WHERE: dict[str, Any] = {"round": 0, "era": 0, "step": 3}
G = WireTensor.of(np.arange(12, dtype="<f4").reshape(3, 4))
BACKWARD = m.Backward(**WHERE, client="pi")


def arrives(end: ServerEnd, timeout_s: float = LIMIT_S) -> Incoming:
    incoming = end.receive(timeout_s)
    assert incoming is not None
    return incoming


def comes(end: ClientEnd, timeout_s: float = LIMIT_S) -> Packet:
    packet = end.receive(timeout_s)
    assert packet is not None
    return packet


def test_there_and_back(ends: Any) -> None:
    server, dealer = ends
    client = dealer("pi")
    sent = client.send(BACKWARD, {"g": G})
    incoming = arrives(server)
    assert incoming.nbytes == incoming.packet.nbytes == sent == client.up_bytes
    assert incoming.packet.message.client == "pi"
    assert incoming.packet.tensors["g"].data.tobytes() == G.data.tobytes()
    sent = server.send(incoming.identity, m.Grad(**WHERE), {"g": G})
    packet = comes(client)
    assert (packet.message.tensors[0].name, packet.nbytes, client.down_bytes) == ("g", sent, sent)


def test_every_packet_carries_its_owner(ends: Any) -> None:
    server, dealer = ends
    first, second, again = dealer("pi"), dealer("laptop"), dealer("pi")
    for end in (first, second, again):
        end.send(m.Alive())
    a, b, c = sorted((arrives(server) for _ in range(3)), key=lambda incoming: incoming.public_key)
    keys = [a.public_key, b.public_key, c.public_key]
    assert len(set(keys)) == 2
    assert all(len(bytes.fromhex(key)) == 32 for key in keys)
    assert len({a.identity, b.identity, c.identity}) == 3


def test_many_clients_get_their_own_answers(ends: Any) -> None:
    server, dealer = ends
    clients = {name: dealer(name) for name in ("a", "b", "c", "d")}
    for name, end in clients.items():
        end.send(m.Hello(client=name))
    for _ in clients:
        incoming = arrives(server)
        server.send(incoming.identity, m.Refuse(code="x", reason=incoming.packet.message.client))
    for name, end in clients.items():
        assert comes(end).message == m.Refuse(code="x", reason=name)


def test_order_is_kept(ends: Any) -> None:
    server, dealer = ends
    client = dealer("pi")
    for step in range(100):
        client.send(m.Backward(round=0, era=0, step=step), {"g": G})
    assert [arrives(server).packet.message.step for _ in range(100)] == list(range(100))  # type: ignore[attr-defined]


def test_silence_takes_the_timeout_and_no_longer(ends: Any) -> None:
    server, dealer = ends
    client = dealer("pi")
    for end in (server, client):
        begun = time.perf_counter()
        assert end.receive(0.1) is None
        assert 0.09 < time.perf_counter() - begun < LIMIT_S
    assert server.receive(0.0) is None


def test_broken_packets_are_answered_and_the_loop_goes_on(ends: Any) -> None:
    server, dealer = ends
    client = dealer("pi")
    client.send_frames([b"junk"])
    client.send_frames([b"", b""])
    client.send(m.Alive())
    assert isinstance(arrives(server).packet.message, m.Alive)
    assert server.broken == 2
    refusals = [comes(client).message for _ in range(2)]
    assert all(isinstance(refusal, m.Refuse) and refusal.code == "protocol" for refusal in refusals)


def test_another_protocol_version_is_told_both_versions(ends: Any) -> None:
    server, dealer = ends
    client = dealer("pi")
    client.send(m.Hello(protocol=9, client="pi"))
    client.send(m.Alive())
    assert isinstance(arrives(server).packet.message, m.Alive)
    refusal = comes(client).message
    assert isinstance(refusal, m.Refuse)
    assert "protocol 9" in refusal.reason
    assert "protocol 1" in refusal.reason
    assert "same version" in refusal.fix or "same version" in refusal.reason


def test_a_client_that_is_gone(ends: Any) -> None:
    server, dealer = ends
    client = dealer("pi")
    client.send(m.Alive())
    identity = arrives(server).identity
    client.close()
    with pytest.raises(Closed):
        keep_sending(server, identity)
    with pytest.raises(Closed):
        server.send(b"never seen", m.Alive())


def keep_sending(server: ServerEnd, identity: bytes) -> None:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        server.send(identity, m.Alive())
        time.sleep(0.01)


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["client", "server"])
def test_dropped(ends: Any, side: str) -> None:
    server, client, faults = faulty(ends, side, Faults().drop("backward", client="pi", step=3))
    client.send(BACKWARD, {"g": G})
    client.send(m.Alive())
    assert isinstance(arrives(server).packet.message, m.Alive)
    client.send(BACKWARD, {"g": G})
    assert isinstance(arrives(server).packet.message, m.Backward)
    faults.check()
    assert [fired.action for fired in faults.fired] == ["drop"]


@pytest.mark.parametrize("side", ["client", "server"])
def test_duplicated(ends: Any, side: str) -> None:
    server, client, faults = faulty(ends, side, Faults().duplicate("backward", times=2))
    client.send(BACKWARD, {"g": G})
    first, second = arrives(server).packet, arrives(server).packet
    assert first.message == second.message
    with pytest.raises(AssertionError, match=r"duplicate\('backward'\) happened 1 of 2 times"):
        faults.check()


@pytest.mark.parametrize("side", ["client", "server"])
def test_delayed_past_a_later_packet(ends: Any, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(faulty_ends, "time", SimpleNamespace(monotonic=lambda: now[0]))
    server, client, faults = faulty(ends, side, Faults().delay("backward", seconds=0.05))
    client.send(BACKWARD, {"g": G})
    client.send(m.Alive())
    assert isinstance(arrives(server).packet.message, m.Alive)
    now[0] = 0.05
    if side == "client":
        assert client.receive(0.1) is None  # the owner keeps on receiving, which lets it go
    assert isinstance(arrives(server).packet.message, m.Backward)
    faults.check()


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("message", [BACKWARD, m.Alive()])
def test_corrupted(ends: Any, side: str, message: m.Message) -> None:
    server, client, faults = faulty(ends, side, Faults().corrupt(m.kind_of(message)))
    client.send(message, {"g": G} if message is BACKWARD else None)
    client.send(m.Bye())
    assert isinstance(arrives(server).packet.message, m.Bye)
    refusal = comes(client).message
    assert isinstance(refusal, m.Refuse)
    assert "checksum" in refusal.reason
    faults.check()


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_corrupted_answer(ends: Any, side: str) -> None:
    server, client, faults = faulty(ends, side, Faults().corrupt("grad"))
    client.send(BACKWARD, {"g": G})
    server.send(arrives(server).identity, m.Grad(**WHERE), {"g": G})
    with pytest.raises(RemoteProtocolError, match="'g': the checksum is wrong"):
        client.receive(LIMIT_S)
    faults.check()


@pytest.mark.parametrize("after", [False, True])
def test_crash_on_sending(ends: Any, after: bool) -> None:
    server, client, faults = faulty(ends, "client", Faults().crash("backward", after=after))
    with pytest.raises(InjectedCrash, match=r"crash\('backward'\)"):
        client.send(BACKWARD, {"g": G})
    assert (server.receive(LIMIT_S if after else 0.2) is not None) is after
    faults.check()


@pytest.mark.parametrize("after", [False, True])
def test_crash_on_receiving(ends: Any, after: bool) -> None:
    server, client, faults = faulty(ends, "server", Faults().crash("backward", after=after))
    client.send(BACKWARD, {"g": G})
    if after:
        arrives(server)
    with pytest.raises(InjectedCrash):
        server.receive(LIMIT_S)
    faults.check()


def test_a_crash_may_be_anything(ends: Any) -> None:
    died = []
    _, client, faults = faulty(ends, "client", Faults().crash("alive", act=lambda: died.append(True)))
    client.send(m.Alive())
    assert died == [True]
    faults.check()


def test_conditions(ends: Any) -> None:
    plan = Faults().drop("backward", client="laptop").drop("backward", step=4).drop("alive", client="pi")
    server, client, faults = faulty(ends, "client", plan)
    client.send(BACKWARD, {"g": G})
    assert isinstance(arrives(server).packet.message, m.Backward)
    client.send(m.Alive())
    assert server.receive(0.1) is None
    with pytest.raises(AssertionError, match=r"drop\('backward', client='laptop'\) happened 0 of 1 times; drop"):
        faults.check()


def faulty(ends: Any, side: str, faults: Faults) -> tuple[Any, Any, Faults]:
    server, dealer = ends
    client = dealer("pi")
    if side == "client":
        return server, faults.client(client, "pi"), faults
    return faults.server(server), client, faults
