"""What the server says of itself to the planner: measured once, kept, or given; and that plans depend on it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fedsplit.config.load import loads
from fedsplit.devices.find import own_path
from fedsplit.devices.load import load, save
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import PlanError, Timeout
from fedsplit.events import Event, Note
from fedsplit.plan.types import Estimate
from fedsplit.wire.messages import DataSummary
from fedsplit_server import host as hosts
from fedsplit_server import serve as server
from fedsplit_server.host import Parts
from fedsplit_server.planning import Planning
from tests.conftest import OWN
from tests.run.conftest import run_file
from tests.run.party import LAPTOP, base_of

ALONE = {"rounds__clients": 1, "rounds__patience_s": 0.05}


def served(folder: Path, monkeypatch: pytest.MonkeyPatch, profile: DeviceProfile | None = None) -> tuple[Parts, str]:
    """(what ``serve`` hands to its host, everything it said), with no client coming."""
    handed: list[Parts] = []
    real = hosts.Host.__init__

    def spy(self: hosts.Host, parts: Parts, *others: object) -> None:
        handed.append(parts)
        real(self, parts, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(hosts.Host, "__init__", spy)
    events: list[Event] = []
    run = loads(run_file({}, run__dir=str(folder), server__port=0, **ALONE))
    with pytest.raises(Timeout):
        server.serve(run, profile=profile, emit=events.append)
    return handed[0], " ".join(event.text for event in events if isinstance(event, Note))


def test_serve_measures_once_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSPLIT_PROFILE", str(tmp_path / "own.toml"))
    first, said = served(tmp_path / "one", monkeypatch)
    assert first.server is not None
    assert first.server.flops == load(own_path()).flops
    assert f"the result is kept in {own_path()}" in said
    again, said = served(tmp_path / "two", monkeypatch)
    assert again.server is not None
    assert again.server.flops == first.server.flops
    assert "measuring" not in said


def test_a_machine_with_nowhere_to_keep_it_measures_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    monkeypatch.setenv("FEDSPLIT_PROFILE", str(tmp_path / "file" / "own.toml"))
    parts, said = served(tmp_path / "run", monkeypatch)
    assert parts.server is not None
    assert "cannot be written" in said
    assert "set FEDSPLIT_PROFILE" in said


def test_a_given_profile_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSPLIT_PROFILE", str(tmp_path / "own.toml"))
    parts, said = served(tmp_path / "run", monkeypatch, profile=LAPTOP)
    assert "plans take this machine for laptop: 20 GFLOP/s in float32, 4.29 GB free" in said
    assert parts.server == LAPTOP
    assert not own_path().exists()


def test_every_graphics_card_is_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSPLIT_PROFILE", str(save(OWN, tmp_path / "own.toml")))
    paths = {own_path(device) for device in ("cpu", "cuda", "cuda:1")}
    assert paths == {tmp_path / "own.toml", tmp_path / "own-cuda.toml", tmp_path / "own-cuda-1.toml"}


def test_plans_depend_on_the_server() -> None:
    run, base = loads(run_file({"a": 'topology = "w"'})), base_of("pydoc-llama")

    def estimate(own: DeviceProfile) -> Estimate:
        plan = Planning(run, base, own)("a", LAPTOP, DataSummary(train_examples=10), "")
        assert plan.estimate is not None
        return plan.estimate

    slow, fast = (estimate(msgspec.structs.replace(OWN, flops={"float32": flops})) for flops in (1e8, 1e12))
    assert slow.server_step_s > 100 * fast.server_step_s
    with pytest.raises(PlanError, match="memory of the server"):
        estimate(msgspec.structs.replace(OWN, memory_bytes=401_000_000, free_memory_bytes=401_000_000))
