"""The measurement itself: short, on this machine, and a link over real sockets held to a known rate."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedsplit.devices.find import own, own_path
from fedsplit.devices.load import loads, save
from fedsplit.devices.profile import Link
from fedsplit.devices.write import dumps
from fedsplit.errors import ConfigError, MissingExtra
from fedsplit.events import Event, Note, Progress
from fedsplit.probe import measure as probe
from fedsplit.probe.layer import Shape, numpy_pass
from fedsplit.probe.link import measure_link
from fedsplit.probe.runtime import EDGE_BYTES

UP_BPS, DOWN_BPS, LATENCY_S = 8e6, 20e6, 0.004


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "find_spec", lambda name: None)


def test_measuring_with_numpy(without_torch: None, tmp_path: Path) -> None:
    events: list[Event] = []
    found = probe.measure("box", seconds=0.6, folder=tmp_path, emit=events.append)
    assert found.name == "box"
    assert 1e7 < found.flops["float32"] < 1e14
    assert found.flops.keys() == {"float32"}
    assert 1e7 < found.memory_bandwidth_bps < 1e13
    assert 0 < found.layer_overhead_s < 0.1
    assert 0 < found.free_memory_bytes <= found.memory_bytes
    assert found.runtime_bytes == EDGE_BYTES == 92_000_000
    assert found.link is None
    assert found.measured
    assert loads(dumps(found)) == found
    steps = [event for event in events if isinstance(event, Progress)]
    assert [event.done for event in steps] == [0, 1, 2, 3]
    assert steps[-1].done == steps[-1].total


def test_measuring_with_torch() -> None:
    pytest.importorskip("torch")
    found = probe.measure(seconds=0.8)
    assert found.name
    assert found.flops["float32"] > 1e7
    assert 150_000_000 < found.runtime_bytes < 4_000_000_000  # of this process, which holds other tests' models
    assert loads(dumps(found)) == found


def test_measuring_takes_about_as_long_as_asked(without_torch: None) -> None:
    start = time.process_time()
    probe.measure(seconds=0.6)
    assert time.process_time() - start < 20


def test_operations_are_counted_as_the_planner_counts_them() -> None:
    """Forward 2·P + 4·T·W, backward the same and the attention twice, LoRA 2 and 4 times its parameters: a token."""
    shape = Shape(hidden=24, ffn=40, heads=2, rows=3, tokens=7)
    weights, attention, lora = 4 * 24 * 24 + 3 * 24 * 40, 4 * 7 * 24, 2 * 8 * (24 + 24)
    assert shape.operations == 21 * (2 * 2 * weights + 3 * attention + 3 * 2 * lora)


def test_the_numpy_layer_runs_at_any_shape() -> None:
    gradient = numpy_pass(Shape(hidden=12, ffn=20, heads=3, rows=2, tokens=5))()
    assert isinstance(gradient, np.ndarray)
    assert (gradient.shape, gradient.dtype) == ((10, 12), np.float32)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).min() > 0


class Server:
    """Answers a request of n bytes with m bytes over TCP, no faster than a given link."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._client = socket.create_connection(self._listener.getsockname())
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def exchange(self, up: int, down: int) -> None:
        self._client.sendall(up.to_bytes(8, "big") + down.to_bytes(8, "big") + bytes(up))
        receive(self._client, down)

    def close(self) -> None:
        self._client.close()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while head := receive(connection, 16):
                up, down = int.from_bytes(head[:8], "big"), int.from_bytes(head[8:], "big")
                receive(connection, up)
                time.sleep(2 * LATENCY_S + up / UP_BPS + down / DOWN_BPS)
                connection.sendall(bytes(down))


def receive(connection: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        part = connection.recv(size - len(found))
        if not part:
            return b""
        found += part
    return bytes(found)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def test_a_link_of_known_rate(server: Server) -> None:
    found = measure_link(server.exchange, 0.5)
    # A busy machine can only make a link look slower.
    assert 0.3 * UP_BPS < found.up_bps < 1.05 * UP_BPS
    assert 0.3 * DOWN_BPS < found.down_bps < 1.05 * DOWN_BPS
    assert LATENCY_S <= found.latency_s < 10 * LATENCY_S


def test_the_link_is_part_of_the_profile(server: Server, without_torch: None) -> None:
    found = probe.measure(seconds=0.4, link=lambda seconds: measure_link(server.exchange, seconds))
    assert found.link is not None
    assert found.link.up_bps < found.link.down_bps


def test_a_broken_link_is_the_callers_error(without_torch: None) -> None:
    def broken(seconds: float) -> Link:
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        probe.measure(seconds=0.2, link=broken)


def test_no_gpu(without_torch: None) -> None:
    with pytest.raises(MissingExtra):
        probe.measure(device="cuda")


def test_no_gpu_with_torch() -> None:
    torch = pytest.importorskip("torch")
    missing = f"cuda:{torch.cuda.device_count() + 7}"
    with pytest.raises(ConfigError, match=f"--device: found {missing}, this machine has"):
        probe.measure(device=missing)


def test_this_device_measures_once(without_torch: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSPLIT_PROFILE", str(tmp_path / "kept.toml"))
    events: list[Event] = []
    first = probe.this_device(seconds=0.3, emit=events.append)
    assert any(isinstance(event, Note) and "kept" in event.text for event in events)
    events.clear()
    again = probe.this_device(emit=events.append)
    assert events == []
    assert (again.flops, again.name) == (first.flops, first.name)


def test_this_device_warns_of_a_foreign_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsplit.devices.find import find

    monkeypatch.setenv("FEDSPLIT_PROFILE", str(tmp_path / "kept.toml"))
    other = "server_l4" if probe.here.architecture() == "aarch64" else "raspberry_pi_5_8gb"
    save(find(other), own_path())
    events: list[Event] = []
    found = probe.this_device(emit=events.append)
    assert [event.warning for event in events if isinstance(event, Note)] == [True]
    assert found.free_memory_bytes <= own().memory_bytes
