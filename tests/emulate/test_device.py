"""What a profile comes to on this machine, and what is said of devices that it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from fedsplit.cli.emulated import devices_of, written
from fedsplit.config.load import loads
from fedsplit.devices.find import find
from fedsplit.devices.here import usable_threads
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.emulate.device import held, remarks
from fedsplit.errors import ConfigError

OWN = DeviceProfile(
    name="here", arch="x86_64", cores=4, threads=4, flops={"float32": 40e9}, memory_bandwidth_bps=1e10,
    memory_bytes=16 << 30, free_memory_bytes=8 << 30,
)  # fmt: skip
PI = replace(OWN, name="pi", threads=1, flops={"float32": 4e9}, link=Link(up_bps=1e6, down_bps=2e6, latency_s=0.01))
RUN = """
[model]
path = "pydoc-llama"
[[clients]]
name = "kitchen"
{}
"""


def test_a_slower_device_gets_its_share_of_as_many_threads() -> None:
    one = held("a", PI, OWN)
    assert (one.threads, one.share) == (1, pytest.approx(0.4))
    assert str(one) == "a is held to pi: 1 thread at 40%, 7.73 GB, 8 Mbit/s up, 16 Mbit/s down, 10 ms"
    two = held("a", replace(PI, threads=2), OWN)
    assert two.share * two.threads == pytest.approx(0.4)
    assert held("a", replace(PI, threads=64), OWN).threads == usable_threads()


def test_fewer_threads_than_the_device_has_are_slower_on_both() -> None:
    assert held("a", replace(PI, threads=2), OWN, threads=1).share == pytest.approx(0.2)


def test_what_cannot_be_emulated_is_said_once_for_all() -> None:
    fast = replace(PI, flops={"float32": 50e9}, link=None)
    said = list(remarks({name: held(name, fast, OWN) for name in "ab"}))
    assert said[0].startswith("faster than this machine, so not emulated in speed: a (5.0 times), b (5.0 times)")
    assert "together these devices compute on 2.0" in said[1] or usable_threads() > 2
    assert said[-1].startswith("no link was measured for a, b")
    assert held("a", fast, OWN).share == 1.0
    assert not list(remarks({"a": held("a", replace(PI, flops={"float32": 1e6}), OWN)})) or usable_threads() < 2


def test_devices_come_from_the_run_file_or_a_fleet(tmp_path: Path) -> None:
    named = loads(RUN.format('device = "raspberry_pi_5_8gb"'))
    assert devices_of(named, tmp_path)["kitchen"].name == "raspberry_pi_5_8gb"
    fleet = tmp_path / "two.toml"
    fleet.write_text(
        '[[clients]]\nname = "kitchen"\ndevice = "raspberry_pi_4_2gb"\n'
        '[[clients]]\nname = "cellar"\ndevice = "raspberry_pi_3b_plus"\n'
    )
    by_name = devices_of(loads(RUN.format("")), tmp_path, str(fleet))
    assert by_name["kitchen"].name == "raspberry_pi_4_2gb"
    by_device = devices_of(loads(RUN.format('device = "cellar"')), tmp_path, str(fleet))
    assert by_device["kitchen"].name == "raspberry_pi_3b_plus"
    files = written(by_device, tmp_path / "devices")
    assert find(str(files["kitchen"])) == by_device["kitchen"]


def test_a_client_without_a_device_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"clients\[0\]\.device: found nothing"):
        devices_of(loads(RUN.format("")), tmp_path)
    with pytest.raises(ConfigError, match=r"clients\[0\]\.device: found 'kitchen', expected a member of the fleet"):
        devices_of(loads(RUN.format("")), tmp_path, "home")
    with pytest.raises(ConfigError, match=r"clients\[0\]\.device: found 'raspberry_pi_9'"):
        devices_of(loads(RUN.format('device = "raspberry_pi_9"')), tmp_path)
