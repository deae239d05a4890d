"""The real planner between rounds: what rounds measured moves a device, and the bits stay those of a run without."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from fedsplit import assets as shipped
from fedsplit.devices.load import save
from fedsplit.devices.profile import Link
from fedsplit.events import Joined, Moved, Note
from fedsplit.state.journal import Journal
from fedsplit.wire.ends import Tensors
from fedsplit.wire.messages import Cost, Message, Update
from tests.run.conftest import Rows, run_file
from tests.run.party import LAPTOP, Party, Tamper, written
from tests.run.processes import Stage, dies_at

Make = Callable[..., Party]

NEAR = Link(up_bps=1e9, down_bps=1e9, latency_s=1e-4)
FAST = structs.replace(LAPTOP, name="fast", flops={"float32": 2e11}, memory_bandwidth_bps=1e12, link=NEAR)
SERVER = structs.replace(FAST, name="server", flops={"float32": 4e11}, memory_bandwidth_bps=1e12, link=None)
SPLIT = dict.fromkeys("ab", 'topology = "u"')
SETTINGS: dict[str, object] = {"train__rounds": 5, "train__steps": 3, "train__batch": 2, "evaluate__clients": False}


def told(seconds: float) -> Tamper:
    """Every step took this long, all of it computing here."""

    def change(message: Message, tensors: Tensors) -> tuple[Message, Tensors]:
        if isinstance(message, Update) and message.cost is not None:
            message = structs.replace(message, cost=Cost(step_s=seconds, device_s=seconds))
        return message, tensors

    return change


def emulated(party: Make, slow_s: float = 1.0, **settings: object) -> Party:
    """``a`` says that its steps take ``slow_s``, ``b`` that they take no time."""
    run = party(SPLIT, start=False, **{**SETTINGS, **settings})
    run.device, run.machine = FAST, SERVER
    run.tamper = {"a": told(slow_s), "b": told(1e-9)}
    return run


def cuts(run: Party, name: str) -> list[tuple[int, int]]:
    """The cuts that a device really asked at, in their order."""
    seen = [packet.message.cut for packet in run.ends[name].sent if hasattr(packet.message, "cut")]
    return list(dict.fromkeys(seen))


@pytest.fixture
def pinned(party: Make) -> Callable[[Party], Party]:
    """The same run with every cut fixed where it began."""

    def make(run: Party) -> Party:
        begun = {name: cuts(run, name)[0] for name in SPLIT}
        return party({name: f'topology = "u"\ncut = {list(cut)}' for name, cut in begun.items()}, **SETTINGS)

    return make


def test_a_device_that_is_slower_than_its_profile_says_gets_less_to_do(
    party: Make, pinned: Callable[[Party], Party]
) -> None:
    run = emulated(party).start().finish()
    [moved] = run.all(Moved)
    assert (moved.client, moved.round) == ("a", 1)
    assert "measured 1 s a step, predicted" in moved.text
    assert "the slowest step from" in moved.text
    first, second = cuts(run, "a")
    assert second[1] - second[0] > first[1] - first[0]
    assert len(cuts(run, "b")) == 1
    assert run.digest == pinned(run).digest
    assert any("planned again before round 2: 1 of 2 devices" in note.text for note in run.all(Note))
    with Journal(run.folder / "run" / "journal.db", read_only=True) as journal:
        plans = [row.round for row in journal.plans() if row.client == "a"]
        assert plans == [0, 1]
        assert any(row.text == moved.text for row in journal.notes())


def test_devices_as_fast_as_their_profiles_stay(party: Make) -> None:
    for settings in ({"plan__replan": False}, {"server__adapters": "shared-sequential"}):
        run = emulated(party, train__rounds=2, **settings).start().finish()
        assert not run.all(Moved)
    still = emulated(party, slow_s=1e-9, train__rounds=2).start().finish()
    assert not still.all(Moved)


@pytest.mark.soak
def test_processes_are_killed_right_after_they_moved(tmp_path: Path, rows: Callable[[str], dict[str, Rows]]) -> None:
    """Profiles so slow that what is measured is beyond any doubt: everybody shall take more layers. The devices have no
    copy of the model: they fetch the weights of the new plan when they are told of it, and for the way back nothing."""
    shutil.copytree(shipped.path("pydoc-llama"), tmp_path / "model")
    settings = {**SETTINGS, "train__rounds": 4, "model__path": str(tmp_path / "model")}
    data = {name: written(tmp_path / f"{name}.jsonl", own) for name, own in rows("ab").items()}
    with Stage(tmp_path, run_file(SPLIT, **settings), data) as stage:
        save(structs.replace(FAST, flops={"float32": 1e7}), stage.profile)
        save(structs.replace(SERVER, flops={"float32": 4e7}), tmp_path / "server.toml")
        machine = ("--profile", str(tmp_path / "server.toml"))
        server = stage.serve(*machine, program=dies_at(Moved, client="a", round=1))
        clients = {name: stage.join(name) for name in SPLIT}
        begun = server.until(Joined, client="a")
        assert isinstance(begun, Joined)
        server.end(expected=-signal.SIGKILL)
        server = stage.serve("--resume", *machine)
        moved = server.until(Moved, client="a", round=2)
        assert isinstance(moved, Moved)
        assert moved.cut[0] > begun.cut[0]
        parts = tmp_path.glob("devices/a/models/*/part-*.safetensors")
        assert len(list(parts)) == 2
        clients["a"].signal(signal.SIGKILL)
        clients["a"].end(expected=-signal.SIGKILL)
        clients["a"] = stage.join("a")
        for process in (*clients.values(), server):
            process.end()
    cut = f'topology = "u"\ncut = {list(begun.cut)}'
    (tmp_path / "still").mkdir()
    with Party(run_file(dict.fromkeys("ab", cut), **settings), rows("ab"), tmp_path / "still") as still:
        assert server.finished.digest == still.start().finish().digest
