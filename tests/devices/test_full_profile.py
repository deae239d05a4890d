"""`fedsplit profile` in full: every number of threads, products, the disk, the link; written to be read and edited."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from fedsplit.cli.main import run as command
from fedsplit.devices.find import find, own_path
from fedsplit.devices.load import load, loads, save
from fedsplit.devices.write import dumps
from fedsplit.errors import ConfigError
from fedsplit.events import Event, Progress
from fedsplit.plan.threads import share_of
from fedsplit.probe import measure as probe
from fedsplit.probe.disk import disk_rates
from fedsplit.probe.repeat import repeated
from fedsplit.probe.speed import Engine, best_threads
from fedsplit.wire.link import JoinLink
from fedsplit.wire.messages import Bye, Probe
from fedsplit_server.gateway import Gateway
from fedsplit_server.keys import load_keys
from fedsplit_server.probes import Probes

PI = find("raspberry_pi_5_8gb")


def test_everything_is_measured_and_named_while_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(Engine, "counts", (1, 2))
    monkeypatch.setattr("fedsplit.probe.speed.ROWS", (1,))
    before, events = torch.get_num_threads(), list[Event]()
    found = probe.measure("box", seconds=0.3, folder=tmp_path, full=True, emit=events.append)
    assert torch.get_num_threads() == before
    assert found.flops_by_threads["float32"].keys() == {"1", "2"}
    assert found.flops["float32"] == found.flops_by_threads["float32"][str(found.threads)]
    assert found.matmul_flops["float32"] > 1e7
    assert found.slowdown >= 1
    assert loads(dumps(found)) == found
    steps = [event for event in events if isinstance(event, Progress)]
    assert [step.what for step in steps[:4]] == [f"float32 on {n} thread{'s' * (n > 1)}" for n in (1, 2, 1, 2)]
    assert {"matrix multiplication", "overhead of a layer", "memory bandwidth", "disk"} < {step.what for step in steps}
    assert all(step.done < step.total for step in steps[:-1])
    assert steps[-1].done == steps[-1].total


def test_without_torch_there_is_one_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "find_spec", lambda name: None)
    found = probe.measure("box", seconds=0.4, folder=tmp_path, full=True)
    assert found.flops_by_threads == {}
    assert found.matmul_flops.keys() == {"float32"}


def test_the_numbers_of_threads_to_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "threads", 3)
    monkeypatch.setattr("fedsplit.devices.here.usable_threads", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert Engine(True, "cpu").counts == (1, 2, 4, 6)
    assert Engine(True, "cuda").counts == Engine(False, "cpu").counts == (3,)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert Engine(True, "cpu").counts == (1, 2, 3)


def test_what_others_disturb_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three repetitions are held up; the fastest quarter is not."""
    now, calls = 0.0, 0

    def work() -> None:
        nonlocal now, calls
        calls += 1
        now += 0.03 if calls % 3 else 0.002

    monkeypatch.setattr("fedsplit.probe.repeat.time.perf_counter", lambda: now)
    taken = repeated(work, 0.5)
    assert taken.seconds == pytest.approx(0.002)
    assert taken.slowdown == pytest.approx(15)


def test_the_fewest_threads_that_are_as_fast() -> None:
    assert best_threads({1: 1e9, 2: 1.95e9, 4: 1.9e9}) == 2
    assert best_threads({1: 1e9, 2: 1.99e9, 4: 2e9}) == 2
    assert best_threads({4: 1e9}) == 4


def test_the_disk_is_measured_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, read = disk_rates(tmp_path, 0.2)
    assert written > 1e5
    assert read > 1e5
    assert list(tmp_path.iterdir()) == []
    assert disk_rates(tmp_path / "nowhere", 0.2) == (0.0, 0.0)
    monkeypatch.setattr("fedsplit.devices.here.free_disk", lambda folder: 2**20)
    assert disk_rates(tmp_path, 0.2) == (0.0, 0.0)


def test_fewer_threads_are_as_fast_as_measured() -> None:
    by_threads = {"float32": {"1": 1e9, "2": 1.8e9, "4": 2e9}}
    device = replace(PI, threads=4, flops={"float32": 2e9}, flops_by_threads=by_threads)
    assert [share_of(device, "float32", n) for n in (0, 1, 2, 3, 4, 9)] == [1, 0.5, 0.9, 0.95, 1, 1]
    assert share_of(device, "bfloat16", 2) == 0.9, "as float32 where it was not measured"
    assert share_of(replace(device, flops_by_threads={}), "float32", 1) == 0.25
    assert share_of(device.corrected, "float32", 2) == 0.9
    begins_at_two = replace(device, flops_by_threads={"float32": {"2": 1e9, "4": 2e9}})
    assert share_of(begins_at_two, "float32", 1) == 0.25
    slower_with_all = replace(device, threads=2, flops_by_threads={"float32": {"1": 1e9, "2": 0.8e9}})
    assert share_of(slower_with_all, "float32", 1) == 1


def test_a_profile_says_what_its_numbers_mean() -> None:
    text = dumps(replace(PI, flops_by_threads={"float32": {"1": 12e9}}, reserve_bytes=500_000_000))
    assert "reserve_bytes = 500000000  # 500 MB: of the free memory, left alone" in text
    assert "up_bps = 12500000.0  # 100 Mbit/s: to the server" in text
    assert "1 = 12000000000.0  # 12 GFLOP/s" in text
    edited = text.replace("reserve_bytes = 500000000", 'reserve_bytes = "1 GB"').replace("12500000.0", '"80 Mbit/s"')
    found = loads(edited)
    assert found.reserve_bytes == 10**9
    assert found.link is not None
    assert found.link.up_bps == 10e6


def test_wrong_units_and_impossible_numbers_are_told_together() -> None:
    text = dumps(replace(PI, flops_by_threads={"float32": {"1": 12e9}}, matmul_flops={"float32": 9e10}))
    for old, new in (
        ("cores = 4", "cores = -4"),
        ("memory_bandwidth_bps = 8500000000.0", "memory_bandwidth_bps = 8.5"),
        ("up_bps = 12500000.0", 'up_bps = "100 Mbit"'),
        ("down_bps = 18750000.0", "down_bps = 0"),
        ("1 = 12000000000.0", 'none = "12 GFLOPS"'),
        ("slowdown = 1.0", "slowdown = 0.5"),
        ("[matmul_flops]", "[matmul_flops]\nfp4 = 1e12"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    with pytest.raises(ConfigError) as caught:
        loads(text)
    assert {problem.path for problem in caught.value.problems} == {
        *("cores", "memory_bandwidth_bps", "link.up_bps", "link.down_bps", "flops_by_threads.float32.none"),
        *("slowdown", "matmul_flops.fp4"),
    }
    assert "is the unit missing" in str(caught.value)


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDSPLIT_PROFILE", str(tmp_path / "own.toml"))
    monkeypatch.setattr(Engine, "counts", (1,))
    monkeypatch.setattr("fedsplit.state.personal.platformdirs.user_state_path", lambda *_, **__: tmp_path / "state")
    return tmp_path / "own.toml"


def fedsplit(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        command(list(words))
    return int(end.value.code or 0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[JoinLink]:
    """Answers probes; says at the end how it went."""
    keys, stop = load_keys(tmp_path / "server"), threading.Event()
    with Gateway("127.0.0.1", 0, keys.pair) as gateway:
        link = keys.link(*gateway.address)
        probes = Probes(link.invite.hex())

        def run() -> None:
            while not stop.is_set():
                incoming = gateway.receive(0.05)
                if incoming is None:
                    continue
                message = incoming.packet.message
                if isinstance(message, Probe):
                    size = incoming.packet.tensors["data"].nbytes
                    gateway.send(incoming.identity, *probes.answer(incoming.identity, message, size, 0.0, busy=False))
                assert isinstance(message, Probe | Bye)

        thread = threading.Thread(target=run)
        thread.start()
        yield link
        stop.set()
        thread.join()


def test_the_command_measures_the_link_and_keeps_what_the_owner_set(
    kept: Path, server: JoinLink, capsys: pytest.CaptureFixture[str]
) -> None:
    save(replace(PI, reserve_bytes=1_000_000, time_factor=2.0), kept)
    assert fedsplit("profile", "--seconds", "0.5", "--link", str(server)) == 0
    first = load(kept)
    assert first.link is not None
    assert first.link.source.startswith(f"measured to {server.endpoint} on ")
    assert (first.reserve_bytes, first.time_factor) == (1_000_000, 1.0)
    capsys.readouterr()
    assert fedsplit("profile", "show") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for word in ("a layer", "a product", "overhead", "set aside", "disk", f"measured to {server.endpoint}"):
        assert word in shown, word
    assert fedsplit("profile", "--seconds", "0.5", "--json") == 0
    assert load(kept).link == first.link, "not measured anew: kept"


def test_a_wrong_link_is_said_before_anything_is_measured(kept: Path) -> None:
    begun = time.monotonic()
    assert fedsplit("profile", "--seconds", "30", "--link", "fedsplit://127.0.0.1:9/") == 2
    assert time.monotonic() - begun < 5
    assert not own_path().is_file()
