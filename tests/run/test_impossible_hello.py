"""A device that says impossible things about itself is refused; the server goes on."""

from __future__ import annotations

import math

import pytest

from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.wire.messages import DataSummary, Hello
from fedsplit_server.admission import impossible


def hello(topology: str = "", tokens_mean: float = 10.0, **changes: object) -> Hello:
    values = {
        "name": "pi",
        "arch": "aarch64",
        "cores": 4,
        "threads": 4,
        "flops": {"float32": 1e10},
        "memory_bandwidth_bps": 1e9,
        "memory_bytes": 4 * 10**9,
        "free_memory_bytes": 2 * 10**9,
    }
    profile = DeviceProfile(**(values | changes))  # type: ignore[arg-type]  # wrong on purpose
    data = DataSummary(train_examples=1, tokens_mean=tokens_mean)
    return Hello(client="pi", topology=topology, profile=profile, data=data)


@pytest.mark.parametrize("topology", ["", "local", "u", "v", "w"])
def test_a_device_that_can_be(topology: str) -> None:
    assert impossible(hello(topology)) == ""
    assert impossible(hello(topology, link=Link(up_bps=1e6, down_bps=1e6))) == ""


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (hello("x"), "topology 'x'"),
        (hello(tokens_mean=math.nan), "tokens_mean"),
        (hello(flops={}), "flops"),
        (hello(flops={"float32": 0.0}), "flops"),
        (hello(memory_bandwidth_bps=0.0), "memory_bandwidth_bps"),
        (hello(link=Link(up_bps=0.0, down_bps=1e6)), "up_bps"),
    ],
)
def test_what_cannot_be_is_named(wrong: Hello, named: str) -> None:
    assert named in impossible(wrong)
