"""The way to a server, step by step, against real sockets: right, and wrong in every way that a join line can be."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from fedsplit import __version__
from fedsplit.wire.frames import encode
from fedsplit.wire.link import JoinLink
from fedsplit.wire.messages import PROTOCOL, Probe, Probed
from fedsplit_client.doctor.finding import Finding
from fedsplit_client.doctor.way import steps, way
from fedsplit_server.gateway import Gateway
from fedsplit_server.keys import load_keys
from fedsplit_server.probes import Probes
from tests.waiting import LIMIT_S


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JoinLink]:
    """A real gateway that answers probes as a server does."""
    keys = load_keys(tmp_path_factory.mktemp("server"))
    over = threading.Event()
    with Gateway("127.0.0.1", 0, keys.pair) as gateway:
        join = keys.link(*gateway.address)
        probes = Probes(join.invite.hex())

        def serve() -> None:
            while not over.is_set():
                incoming = gateway.receive(0.05)
                if incoming is not None and isinstance(incoming.packet.message, Probe):
                    message = incoming.packet.message
                    up = incoming.packet.tensors["data"].nbytes
                    answer, tensors = probes.answer(incoming.identity, message, up, time.monotonic(), busy=False)
                    gateway.send(incoming.identity, answer, tensors)
                elif incoming is not None:
                    probes.over(incoming.identity)

        thread = threading.Thread(target=serve)
        thread.start()
        yield join
        over.set()
        thread.join(LIMIT_S)


def looked(text: object, state: Path, timeout_s: float = LIMIT_S) -> dict[str, Finding]:
    return {one.check: one for one in steps(str(text), state, timeout_s)}


def test_a_server_that_is_right_in_a_process_of_its_own(link: JoinLink, tmp_path: Path) -> None:
    found = {one.check: one for one in way(str(link), tmp_path, deadline_s=2 * LIMIT_S)}
    assert [*found] == ["link", "name", "port", "key", "protocol", "invitation", "version"]
    assert {one.level for one in found.values()} == {"ok"}, found
    assert __version__ in found["version"].found


def test_another_servers_key(link: JoinLink, tmp_path: Path) -> None:
    other = load_keys(tmp_path / "other").link("127.0.0.1", link.port)
    found = looked(other, tmp_path / "state")
    assert [*found][-1] == "key"
    assert found["key"].level == "problem"
    assert "copy the line" in found["key"].fix


def test_a_wrong_invitation(link: JoinLink, tmp_path: Path) -> None:
    found = looked(replace(link, invite=bytes(16)), tmp_path)
    assert found["key"].level == "ok"
    assert found["invitation"].level == "problem"


def test_a_port_where_nothing_listens(tmp_path: Path) -> None:
    found = looked("fedsplit://127.0.0.1:1/?unencrypted", tmp_path)
    assert [*found] == ["link", "name", "port"]
    assert found["port"].level == "problem"
    assert "refused" in found["port"].found


def test_a_name_that_does_not_exist_and_a_line_that_was_cut(tmp_path: Path) -> None:
    found = looked("fedsplit://no-such-host.invalid:7000/?unencrypted", tmp_path)
    assert [*found][-1] == "name"
    assert found["name"].level == "problem"
    cut = looked("fedsplit://127.0.0.1:7000/", tmp_path)
    assert [*cut] == ["link"]
    assert cut["link"].level == "problem"


def test_a_program_that_accepts_and_stays_silent(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = looked(f"fedsplit://127.0.0.1:{listener.getsockname()[1]}/?unencrypted", tmp_path, timeout_s=0.5)
    assert [*found][-1] == "key"
    assert found["key"].level == "problem"
    assert "does not answer" in found["key"].found


def test_it_ends_at_the_deadline_with_what_was_found_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = "import json, time; print(json.dumps(dict(check='link', level='ok', found='a line')), flush=True)"
    monkeypatch.setattr("fedsplit_client.doctor.way._MAIN", says + "; time.sleep(600)")
    for deadline_s in (0.5, 5.0, LIMIT_S):  # so long as this machine needs to start Python
        found = way("a link", tmp_path, deadline_s=deadline_s)
        assert f"no end after {deadline_s:.0f} s" in found[-1].found
        if len(found) > 1:
            break
    assert [one.check for one in found] == ["link", "server"]


def test_another_protocol(tmp_path: Path) -> None:
    with old_server() as port:
        found = looked(f"fedsplit://127.0.0.1:{port}/?unencrypted", tmp_path)
    assert found["key"].level == "warning", "no encryption is worth a word"
    assert found["protocol"].level == "problem"
    assert str(PROTOCOL + 7) in found["protocol"].found
    assert "same version" in found["protocol"].fix


@contextmanager
def old_server() -> Iterator[int]:
    """Answers everything in another version of the protocol."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        over = threading.Event()

        def answer() -> None:
            first = bytearray(b"".join(bytes(frame) for frame in encode(Probed(number=1))[:1]))
            first[2:4] = (PROTOCOL + 7).to_bytes(2, "little")
            while not over.is_set():
                if router.poll(50):
                    router.send_multipart([router.recv_multipart()[0], bytes(first)])

        thread = threading.Thread(target=answer)
        thread.start()
        yield port
        over.set()
        thread.join(LIMIT_S)
