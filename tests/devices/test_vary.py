"""Fleets with spreads: the same thousand on every machine, within their limits, and refused when impossible."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import to_builtins

from fedsplit.devices.check import value_problems
from fedsplit.devices.find import find
from fedsplit.devices.fleet import load_fleet
from fedsplit.devices.vary import varied
from fedsplit.errors import ConfigError

SIZES = {"home": 5, "campus": 30, "hospital": 5, "thousand": 1000}


@pytest.mark.parametrize("name", SIZES)
def test_shipped_fleets_are_possible_and_always_the_same(name: str) -> None:
    fleet, again = load_fleet(name), load_fleet(name)
    assert len(fleet.devices) == SIZES[name]
    assert fleet.server is not None
    assert fleet == again
    assert [found for device in fleet.devices.values() for found in value_problems(to_builtins(device))] == []


def test_spreads_stay_within_their_factors() -> None:
    shelf, devices = find("android_phone_mid"), load_fleet("thousand").devices
    phones = [device for name, device in devices.items() if name.startswith("phone-")]
    assert shelf.link is not None
    ratios = [phone.link.up_bps / shelf.link.up_bps for phone in phones if phone.link]
    assert len(set(ratios)) == len(phones) == 450
    assert 0.25 <= min(ratios) < 0.4
    assert 2.5 < max(ratios) <= 4
    assert all(2 / 3 - 1e-6 <= phone.free_memory_bytes / shelf.free_memory_bytes <= 1.5 + 1e-6 for phone in phones)
    assert all(phone.link.down_bps / phone.link.up_bps == pytest.approx(100 / 60) for phone in phones if phone.link)


def test_free_memory_never_exceeds_the_machine() -> None:
    pi = find("raspberry_pi_4_4gb")
    assert max(varied(pi, f"pi-{n}", {"memory": 50}).free_memory_bytes for n in range(20)) == pi.memory_bytes
    assert varied(pi, "a", {}) == pi


def test_impossible_spreads_are_all_told(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    member = '[[clients]]\nname = "{}"\ndevice = "n100_mini_pc"\nvary = {}\n'
    cases = ["{ link = 0.5 }", "{ memory = nan }", "{ lnk = 2 }", "3", '{ link = "2" }']
    path.write_text("".join(member.format(f"c{n}", case) for n, case in enumerate(cases)), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_fleet(str(path))
    paths = [problem.path for problem in caught.value.problems]
    expected = ["[0].vary.link", "[1].vary.memory", "[2].vary.lnk", "[3].vary", "[4].vary.link"]
    assert paths == [f"clients{end}" for end in expected]
