"""Whole runs held to devices: the same bits as without, and a device that is too small is named."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from fedsplit.cli.simulate import Crew, run_processes
from fedsplit.devices.load import save
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.emulate.device import held
from fedsplit.emulate.emulation import Emulation
from fedsplit.errors import OutOfMemory
from fedsplit.events import Event, Note, StepDone, silent
from fedsplit.state import manifest
from tests.conftest import OWN
from tests.run.party import Party
from tests.waiting import LIMIT_S

DEVICE = DeviceProfile(
    name="slow-board", arch="", cores=1, threads=1, flops={"float32": 5e9}, memory_bandwidth_bps=1e10,
    memory_bytes=4 << 30, free_memory_bytes=2 << 30, link=Link(up_bps=2e6, down_bps=4e6, latency_s=0.01),
)  # fmt: skip
SHARE = 5 / 25
"""Of one of the test machine's eight threads, which have 200 GFLOP/s together."""
RUN = """
[run]
name = "held"
dir = "{folder}/run"
[model]
path = "pydoc-llama"
max_length = 32
[train]
rounds = 1
steps = 3
batch = 4
[evaluate]
every = 0
clients = false
[rounds]
clients = 1
[[clients]]
name = "a"
topology = "u"
cut = [2, 5]
threads = 1
data = "{folder}/rows.jsonl"
device = "{folder}/board.toml"
"""
ROWS = [{"text": f"The {number}th row of this client says that row {number + 1} comes next."} for number in range(30)]


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    save(DEVICE, tmp_path / "board.toml")
    found = RUN.format(folder=tmp_path.as_posix())
    (tmp_path / "run.toml").write_text(found)
    return found


def test_an_emulated_run_ends_with_the_same_bits_and_takes_the_devices_time(text: str, tmp_path: Path) -> None:
    events: list[Event] = []
    done = run_processes(tmp_path / "run.toml", emit=events.append, emulate=True)
    assert done.server is not None
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any(f"a is held to slow-board: 1 thread at {SHARE:.0%}" in note for note in notes)
    steps = [event for event in events if isinstance(event, StepDone)]
    link = DEVICE.link
    assert link is not None
    for step in steps[1:]:
        wire = step.up_bytes / link.up_bps + step.down_bytes / link.down_bps + 6 * link.latency_s
        assert step.seconds > 0.85 * wire
    torch.set_num_threads(1)
    (tmp_path / "alone").mkdir()
    with Party(text, {"a": ROWS}, tmp_path / "alone") as party:
        assert party.start().finish().digest == done.server.digest
    found, clients = manifest.finished(done.folder), manifest.read_simulated(done.folder)
    assert found is not None
    assert found.result is not None
    assert found.result.digest == done.server.digest
    assert clients.emulated
    assert clients.clients["a"].profile == DEVICE


def test_a_client_above_its_ceiling_is_killed_and_named(tmp_path: Path) -> None:
    small = held("a", replace(DEVICE, free_memory_bytes=50_000_000), OWN)
    begun = time.monotonic()
    with Emulation({"a": small}) as emulation, Crew(silent, emulation) as crew:
        crew.start("a", ["join", "fedsplit://127.0.0.1:9/?unencrypted", "--data", os.devnull, "--yes"])
        with pytest.raises(OutOfMemory, match=r"client a, held to slow-board, needs \d+ MB, a plan may fill") as error:
            crew.wait()
    assert error.value.exit_code == 7
    assert error.value.need_bytes > error.value.have_bytes == 45_000_000
    assert time.monotonic() - begun < LIMIT_S
