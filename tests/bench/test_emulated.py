"""The bench of emulated devices: what it measures, and how it compares. Its processes run when the bench does."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsplit.cli.bench_emulated import FLEETS, Case, Device, Measure, Training, held_to, name, rows
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import ConfigError
from fedsplit.plan.options import Option, describe

CORE = DeviceProfile(
    name="one core", arch="x86_64", cores=1, threads=1, flops={"float32": 40e9}, memory_bandwidth_bps=1e10,
    memory_bytes=2**36, free_memory_bytes=2**36, layer_overhead_s=1e-4,
)  # fmt: skip
DEVICES = [device for fleet in FLEETS.values() for device in fleet]


def case(device: Device, minilm: Path, folder: Path) -> Case:
    training = Training(
        folder=minilm, model=str(minilm), task="classification", data=folder / "rows.jsonl", batch=4, tokens=24
    )
    return Case.of(training, device, CORE, folder)


def test_a_device_is_its_share_of_a_core_in_everything() -> None:
    slow = held_to(CORE, 0.25, "slow")
    assert slow.flops["float32"] == 10e9
    assert slow.memory_bandwidth_bps == 2.5e9
    assert slow.layer_overhead_s == 4e-4


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_every_device_has_cuts_to_choose_from(device: Device, minilm: Path, tmp_path: Path) -> None:
    found = case(device, minilm, tmp_path)
    assert describe(*found.planned) in {name(one) for one in found.options}
    assert len(found.options) == 16 or (device.memory and 1 < len(found.options) < 16)


def took(best: str, chosen: str) -> Measure:
    """1 s with the best cut, 1.05 s with the planned one, 2 s with any other."""

    def seconds(profile: DeviceProfile, share: float, option: Option, steps: int) -> list[float]:
        return [{best: 1.0, chosen: 1.05}.get(name(option), 2.0)] * steps

    return seconds


def test_the_planned_cut_is_compared_with_the_best_one(minilm: Path, tmp_path: Path) -> None:
    found = case(DEVICES[0], minilm, tmp_path)
    chosen = describe(*found.planned)
    best = next(name(one) for one in found.options if name(one) != chosen)
    row, numbers = found.compared(took(best, chosen), 2)
    assert (row["planned"], row["best"], row["over"]) == (chosen, best, 0.05)
    assert row["cuts"] == len(numbers) == 16
    assert sum(bool(one["again"]) for one in numbers) == 3
    same, _ = found.compared(took(chosen, chosen), 2)
    assert (same["best"], same["over"]) == (chosen, 0.0)


def test_unknown_fleets_and_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="--fleets: found 'none', expected some of slow link"):
        rows(fleets="none")
    with pytest.raises(ConfigError, match="--shape: found '4'"):
        rows(shape="4")
