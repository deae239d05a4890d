"""The owner's limits in a profile: written and read, wrong ones told all at once, and what of them a plan obeys."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fedsplit.devices.limits import Limits, span
from fedsplit.devices.load import load, loads, save
from fedsplit.devices.write import dumps
from fedsplit.errors import ConfigError
from tests.run.party import LAPTOP

ALL = Limits(
    max_memory_bytes=400_000_000, threads=2, upload_per_day_bytes=200_000_000, between="22:00-06:00",
    only_on_mains=True, pause_when_busy=True, max_temperature_c=75.0,
)  # fmt: skip


def test_limits_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    profile = msgspec.structs.replace(LAPTOP, limits=ALL)
    assert load(save(profile, tmp_path / "a.toml")) == profile
    text = dumps(profile).replace("max_memory_bytes = 400000000", 'max_memory_bytes = "400 MB"')
    assert "400 MB" in text
    assert loads(text).limits == ALL
    assert "[limits]" not in dumps(LAPTOP)


def test_all_wrong_limits_are_told_with_their_paths() -> None:
    table = (
        'limits = {max_memory_bytes = 400, between = "22-6", only_on_mains = 1, max_temprature_c = 75, threads = -1}\n'
    )
    with pytest.raises(ConfigError) as caught:
        loads(table + dumps(LAPTOP))
    paths = {problem.path for problem in caught.value.problems}
    names = ("max_memory_bytes", "between", "only_on_mains", "max_temprature_c", "threads")
    assert paths == {f"limits.{name}" for name in names}


@pytest.mark.parametrize("text", ["", "22-6", "25:00-06:00", "22:61-06:00", "06:00-06:00", "24:30-06:00"])
def test_what_is_no_span_of_the_day(text: str) -> None:
    assert span(text) is None


def test_only_what_a_planner_needs_leaves_the_device() -> None:
    told = msgspec.structs.replace(LAPTOP, limits=ALL).anonymous.limits
    assert told == Limits(max_memory_bytes=400_000_000, threads=2, upload_per_day_bytes=200_000_000)
    assert msgspec.structs.replace(LAPTOP, limits=Limits(only_on_mains=True)).anonymous.limits is None
