"""Profiles and fleets as files: what is accepted, what is refused, all problems at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fedsplit.devices.change import changed, what_if
from fedsplit.devices.find import find, locate, names, own, own_path, shelf
from fedsplit.devices.fleet import load_fleet
from fedsplit.devices.load import foreign, from_dict, load, loads, save
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.devices.units import BYTES, RATES, duration, parse, rate, size, speed, units_of
from fedsplit.devices.write import dumps
from fedsplit.errors import ConfigError

GOOD = """
name = "pi"
arch = "aarch64"
cores = 4
threads = 4
memory_bandwidth_bps = "4 GB/s"
memory_bytes = "2 GiB"
free_memory_bytes = "1.5 GB"
[flops]
float32 = "12 GFLOPS"
[link]
up_bps = "20 Mbit/s"
down_bps = 5_000_000
latency_s = "5 ms"
"""


def problems(text: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        loads(text)
    return {problem.path: str(problem) for problem in caught.value.problems}


def test_units_are_understood() -> None:
    found = loads(GOOD)
    assert (found.memory_bytes, found.free_memory_bytes) == (2 * 2**30, 1_500_000_000)
    assert found.flops == {"float32": 12e9}
    assert found.link == Link(up_bps=2.5e6, down_bps=5e6, latency_s=0.005)
    assert found.budget_bytes == 1_350_000_000


@pytest.mark.parametrize(
    ("text", "units", "value"),
    [
        ("1 GiB", BYTES, 2**30),
        ("4_000", BYTES, 4000),
        ("1.5e3 kB", BYTES, 1.5e6),
        ("2Mbps", RATES, 250_000),
        ("2 MB/s", RATES, 2e6),
        ("2 parsecs", RATES, None),
        ("fast", RATES, None),
        ("5 GB", {}, None),
    ],
)
def test_numbers_with_units(text: str, units: dict[str, float], value: float | None) -> None:
    assert parse(text, units) == value


def test_units_follow_the_name() -> None:
    assert "GiB" in units_of("memory_bytes")
    assert "Mbit/s" in units_of("up_bps")
    assert "ms" in units_of("latency_s")
    assert units_of("cores") == {}


def test_every_problem_at_once() -> None:
    text = (
        GOOD.replace("cores = 4", 'cores = "many"')
        .replace('"4 GB/s"', '"4 GB"')
        .replace("free_memory", "free_memroy")
        .replace('float32 = "12 GFLOPS"', 'float32 = "12 GFLOPS"\nint3 = 1')
        .replace("down_bps = 5_000_000", "")
    )
    found = problems(text)
    assert found.keys() == {
        "cores", "memory_bandwidth_bps", "free_memroy_bytes", "free_memory_bytes", "flops.int3", "link.down_bps",
    }  # fmt: skip
    assert "did you mean 'free_memory_bytes'?" in found["free_memroy_bytes"]
    assert "MB/s" in found["memory_bandwidth_bps"]


def test_impossible_numbers_at_once() -> None:
    text = (
        GOOD.replace("cores = 4", "cores = -4")
        .replace('"1.5 GB"', '"3 GB"\nreserve_bytes = "4 GB"')
        .replace('"20 Mbit/s"', "0")
        .replace('"12 GFLOPS"', "inf")
    )
    found = problems(text)
    assert {"cores", "free_memory_bytes", "reserve_bytes", "link.up_bps", "flops.float32"} <= found.keys()
    assert "leave [link] out" in found["link.up_bps"]
    assert "lower the reserve" in found["reserve_bytes"]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (("[flops]\nfloat32", "[flops]\nbfloat16"), "flops.float32"),
        (('name = "pi"', 'name = ""'), "name"),
        (('name = "pi"', "name = 3"), "name"),
        (("threads = 4", "threads = 99"), "threads"),
        (("cores = 4", "cores = true"), "cores"),
        (("cores = 4", "cores = nan"), "cores"),
        (("cores = 4", "cores = 2.5"), "cores"),
    ],
)
def test_single_problems(change: tuple[str, str], path: str) -> None:
    assert path in problems(GOOD.replace(*change))


def test_link_must_be_a_table() -> None:
    text = GOOD.partition("[link]")[0].replace("[flops]", 'link = "fast"\n[flops]')
    assert "link" in problems(text)


PROFILES = st.builds(
    DeviceProfile,
    name=st.text(min_size=1, max_size=8),
    arch=st.just("x86_64"),
    cores=st.integers(1, 64),
    threads=st.just(1),
    flops=st.fixed_dictionaries({"float32": st.floats(1e6, 1e16)}),
    flops_by_threads=st.dictionaries(
        st.sampled_from(["float32", "bfloat16"]),
        st.dictionaries(st.integers(1, 64).map(str), st.floats(1e6, 1e16), min_size=1),
    ),
    matmul_flops=st.dictionaries(st.sampled_from(["float32", "int8"]), st.floats(1e6, 1e16)),
    slowdown=st.floats(1, 9),
    memory_bandwidth_bps=st.floats(1e6, 1e13),
    memory_bytes=st.just(2**40),
    free_memory_bytes=st.integers(2**20, 2**40),
    link=st.none()
    | st.builds(
        Link, up_bps=st.floats(10, 1e10), down_bps=st.floats(10, 1e10), latency_s=st.floats(0, 9), source=st.text()
    ),
    power_w=st.none() | st.floats(0.1, 900),
)


@given(PROFILES)
def test_writing_and_reading_is_the_identity(profile: DeviceProfile) -> None:
    assert loads(dumps(profile)) == profile


def test_files(tmp_path: Path) -> None:
    path = save(loads(GOOD), tmp_path / "deep" / "pi.toml")
    assert load(path) == loads(GOOD)
    assert [file.name for file in path.parent.iterdir()] == ["pi.toml"]
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "bad.toml")
    (tmp_path / "half.toml").write_text("name =")
    with pytest.raises(ConfigError, match="not TOML"):
        load(tmp_path / "half.toml")
    with pytest.raises(ConfigError, match="cannot be written"):
        save(loads(GOOD), path / "below-a-file.toml")


def test_another_architecture_is_warned_of() -> None:
    assert foreign(loads(GOOD), "arm64") == ""
    assert "its numbers do not describe this machine" in foreign(loads(GOOD), "AMD64")


@pytest.mark.parametrize("name", names())
def test_shipped_profiles_are_possible_and_say_where_numbers_come_from(name: str) -> None:
    path = shelf() / f"{name}.toml"
    found, text = find(name), path.read_text(encoding="utf-8")
    assert found.name == name
    assert found.source
    assert "2026" in text
    for line in ("memory_bandwidth_bps", "free_memory_bytes", "power_w", "float32"):
        above = text[: text.index(f"\n{line}")].rsplit("\n", 1)[-1]
        assert above.startswith("#"), f"{name}: no comment above {line}"


def test_the_shelf_has_what_was_promised() -> None:
    promised = {
        "raspberry_pi_zero_2w", "raspberry_pi_4_2gb", "raspberry_pi_4_4gb", "raspberry_pi_4_8gb", "raspberry_pi_5_8gb",
        "laptop_x86_4core", "n100_mini_pc", "android_phone_mid", "server_h200", "server_l4",
        "raspberry_pi_3b_plus", "raspberry_pi_5_16gb", "jetson_nano", "jetson_orin_nano", "laptop_apple_m1",
        "desktop_gpu", "server_a100", "server_h100",
    }  # fmt: skip
    assert promised <= set(names())


def test_finding(tmp_path: Path) -> None:
    assert find("Raspberry-Pi-4-2GB").name == "raspberry_pi_4_2gb"
    save(loads(GOOD), tmp_path / "mine.toml")
    assert find("mine.toml", tmp_path).name == "pi"
    assert find(str(tmp_path / "mine.toml")).name == "pi"
    assert locate("nowhere.toml", tmp_path) is None
    with pytest.raises(ConfigError, match="did you mean raspberry_pi_4"):
        find("raspberry_pi_4")
    with pytest.raises(ConfigError, match="give a path"):
        find("zzz")


def test_own_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSPLIT_PROFILE", str(tmp_path / "here.toml"))
    with pytest.raises(ConfigError, match="run `fedsplit profile`"):
        find("here")
    save(loads(GOOD), own_path())
    assert own() == find("here") == loads(GOOD)


def test_home_fleet() -> None:
    fleet = load_fleet("home")
    assert len(fleet.devices) == 5
    assert fleet.server is not None
    link = fleet.devices["laptop"].link
    assert link is not None
    assert link.up_bps == 5e6
    assert fleet.devices["laptop"].flops == find("laptop_x86_4core").flops


def test_fleets_count_and_override(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_text(
        '[[clients]]\nname = "pi"\ndevice = "raspberry_pi_4_2gb"\ncount = 3\n'
        '[[clients]]\nname = "phone"\ndevice = "android_phone_mid"\nfree_memory_bytes = "1 GB"\n'
    )
    found = load_fleet("f.toml", tmp_path)
    assert list(found.devices) == ["pi-1", "pi-2", "pi-3", "phone"]
    assert found.devices["phone"].free_memory_bytes == 1_000_000_000
    assert (found.name, found.server) == ("f", None)


def test_a_wrong_fleet_says_everything(tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_text(
        'sever = "x"\nserver = 3\n'
        '[[clients]]\nname = "a"\ndevice = "raspberry_pi_44"\n'
        '[[clients]]\nname = ""\ndevice = "n100_mini_pc"\ncount = 0\n'
        '[[clients]]\nname = "b"\ndevice = "n100_mini_pc"\nlink = { up_bps = "1 Mbit/s", down_bps = 0 }\n'
        '[[clients]]\nname = "c"\ndevice = "n100_mini_pc"\nram = 1\n'
        '[[clients]]\nname = "d"\ndevice = "n100_mini_pc"\nreserve_bytes = "90 GB"\n'
        '[[clients]]\nname = "e"\ndevice = "n100_mini_pc"\n[[clients]]\nname = "e"\ndevice = "n100_mini_pc"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_fleet(str(path))
    assert {problem.path for problem in caught.value.problems} == {
        "sever", "server", "clients[0].device", "clients[1].name", "clients[1].count", "clients[2].link.down_bps",
        "clients[3].ram", "clients[4].reserve_bytes", "clients[6].name",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "clients = []", "clients = 3"])
def test_a_fleet_needs_devices(tmp_path: Path, text: str) -> None:
    (tmp_path / "f.toml").write_text(text)
    with pytest.raises(ConfigError, match="at least one"):
        load_fleet(str(tmp_path / "f.toml"))


def test_unknown_fleet() -> None:
    with pytest.raises(ConfigError, match="did you mean 'home'"):
        load_fleet("hom")


@pytest.mark.parametrize(
    ("key", "value", "path", "expected"),
    [
        ("uplink", "2 Mbit/s", "link.up_bps", 250_000),
        ("link.latency_s", "0.5", "link.latency_s", 0.5),
        ("memory", "8 GB", "free_memory_bytes", 8_000_000_000),
        ("speed", "3 GFLOPS", "flops.float32", 3e9),
        ("cores", "2", "cores", 2),
    ],
)
def test_what_if(key: str, value: str, path: str, expected: Any) -> None:
    found: Any = msgspec.to_builtins(changed(loads(GOOD), key, value))
    for part in path.split("."):
        found = found[part]
    assert found == expected


def test_what_if_of_one_client() -> None:
    devices = {"a": loads(GOOD), "a.b": loads(GOOD)}
    found = what_if(devices, "a.b.memory=100MB")
    assert found["a"] == devices["a"]
    assert found["a.b"].free_memory_bytes == 100_000_000
    for wrong in ("c.memory=1GB", "a.memory", "a.memry=1GB", "a.memory=-1GB", "a.memory=lots", "a.flops.int3=1"):
        with pytest.raises(ConfigError):
            what_if(devices, wrong)


def test_a_link_can_be_imagined() -> None:
    unlinked = from_dict({k: v for k, v in msgspec.to_builtins(loads(GOOD)).items() if k != "link" and v is not None})
    found = changed(unlinked, "uplink", "1 Mbit/s").link
    assert found == Link(up_bps=125_000, down_bps=12.5e6)


def test_words_for_readers() -> None:
    assert [size(n) for n in (0, 999, 1500, 48_276_000, 312e6, 1.24e9, 139e9, 3.8e12)] == [
        "0 B", "999 B", "1.5 kB", "48.3 MB", "312 MB", "1.24 GB", "139 GB", "3.8 TB",
    ]  # fmt: skip
    assert [duration(s) for s in (0.0042, 0.27, 1.31, 48, 720, 9000)] == [
        "4.2 ms",
        "270 ms",
        "1.31 s",
        "48 s",
        "12 min",
        "2.5 h",
    ]
    assert (speed(12.4e9), speed(3.3e13)) == ("12.4 GFLOP/s", "33 TFLOP/s")
    assert (rate(2.5e6), rate(125e6)) == ("20 Mbit/s", "1 Gbit/s")


def test_a_small_program_is_one_without_torch() -> None:
    laptop = find("laptop_x86_4core")
    for small in (find("raspberry_pi_zero_2w"), replace(laptop, runtime_bytes=92_000_000, edge=True)):
        assert small.without_torch
        assert (small.with_torch.edge, small.with_torch.runtime_bytes) == (False, 400_000_000)
    for usual in (laptop, replace(laptop, runtime_bytes=0)):
        assert usual.with_torch == usual, "the accelerator's memory has no program in it"
