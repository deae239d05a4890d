"""What a connection's events say together, one by one as ZeroMQ would send them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import zmq

from fedsplit_client import monitor as watched
from fedsplit_client.monitor import HANDSHAKE_S, Monitor, Trouble
from tests.waiting import wait_for

Happens = Callable[..., Trouble]


@pytest.fixture
def happens(monkeypatch: pytest.MonkeyPatch) -> Iterator[Happens]:
    """``happens(event, …, after_s=0.0)``: what the trouble is once these have been seen."""
    now = [0.0]
    monkeypatch.setattr(watched, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with zmq.Context() as context, context.socket(zmq.PAIR) as source, context.socket(zmq.PAIR) as events:
        source.bind("inproc://events")
        events.connect("inproc://events")
        monitor = Monitor(SimpleNamespace(get_monitor_socket=lambda: events))  # type: ignore[arg-type]

        def call(*kinds: int, after_s: float = 0.0) -> Trouble:
            now[0] += after_s
            for kind in kinds:
                source.send_multipart([struct.pack("=Hi", kind, 0), b"tcp://there"])
            wait_for(lambda: not monitor.drain() and not events.poll(0))
            return monitor.trouble

        yield call


def test_a_refusal_is_told_while_the_next_attempt_is_open(happens: Happens) -> None:
    assert happens(zmq.EVENT_CONNECTED) is Trouble.SILENT
    assert happens(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_DISCONNECTED) is Trouble.REFUSED
    assert happens(zmq.EVENT_CONNECTED) is Trouble.REFUSED


def test_silence_after_a_refusal_is_silence(happens: Happens) -> None:
    happens(zmq.EVENT_CONNECTED, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_CONNECTED)
    assert happens(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, after_s=HANDSHAKE_S) is Trouble.SILENT


def test_nothing_listens_after_a_refusal(happens: Happens) -> None:
    happens(zmq.EVENT_CONNECTED, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
    assert happens(zmq.EVENT_CLOSED) is Trouble.NOTHING_LISTENS
    assert happens(zmq.EVENT_CONNECTED) is Trouble.SILENT


def test_a_connection_that_stood_and_was_lost_is_silent(happens: Happens) -> None:
    happens(zmq.EVENT_CONNECTED, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_CONNECTED)
    happens(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    assert happens(zmq.EVENT_DISCONNECTED) is Trouble.SILENT
    assert happens(zmq.EVENT_CONNECTED) is Trouble.SILENT
