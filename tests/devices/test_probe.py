"""The measurement itself: short, on this machine, and a link whose rate is known because its time is made up."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

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
from fedsplit.probe.link import MOST_BYTES, measure_link
from fedsplit.probe.runtime import EDGE_BYTES


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
    assert found.runtime_bytes == EDGE_BYTES == 76_000_000
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


LINKS = {
    "half a megabit": Link(up_bps=62_500, down_bps=250_000, latency_s=0.03),
    "home": Link(up_bps=2.5e6, down_bps=10e6, latency_s=0.004),
    "far away": Link(up_bps=1e6, down_bps=2e6, latency_s=0.06),
}


class Wire:
    """An exchange over ``link`` that takes its time on a clock of its own."""

    def __init__(self, link: Link, patch: pytest.MonkeyPatch) -> None:
        self.link, self.now, self.bytes = link, 0.0, [0, 0]
        clock = SimpleNamespace(perf_counter=lambda: self.now)
        for module in ("link", "repeat"):
            patch.setattr(f"fedsplit.probe.{module}.time", clock)

    def __call__(self, up: int, down: int) -> None:
        self.bytes = [self.bytes[0] + up, self.bytes[1] + down]
        self.now += 2 * self.link.latency_s + up / self.link.up_bps + down / self.link.down_bps


@pytest.mark.parametrize("name", LINKS)
def test_a_link_of_known_rate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(LINKS[name], monkeypatch)
    found = measure_link(wire, 1.5)
    assert found.up_bps == pytest.approx(wire.link.up_bps, rel=0.1)
    assert found.down_bps == pytest.approx(wire.link.down_bps, rel=0.1)
    assert found.latency_s == pytest.approx(wire.link.latency_s, rel=0.01)
    assert wire.now < 4
    assert max(wire.bytes) < 1.1 * MOST_BYTES


def test_the_link_is_part_of_the_profile(without_torch: None) -> None:
    link = LINKS["home"]
    assert probe.measure(seconds=0.2, link=lambda seconds: link).link == link


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
