"""Real processes over encrypted TCP: whatever is killed and started again, the run ends with the same bits.

The bits to reach come from the same run in one process over the link in memory.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fedsplit.config.load import loads
from fedsplit.events import Measured, RoundClosed, RoundStarted, StepDone
from tests.run.conftest import Rows, run_file
from tests.run.party import Party, written
from tests.run.processes import PROGRAM, Process, Stage, dies_at

CLIENTS = {"a": 'topology = "u"\ncut = [1, 3]', "b": 'topology = "w"', "c": 'topology = "local"'}
STEPS = 6
OTHERS = {"a": 'topology = "w"', "b": 'topology = "local"', "c": 'topology = "v"'}
LLAMA: dict[str, object] = {"train__rounds": 3, "train__steps": STEPS, "evaluate__every": 1}
MINILM: dict[str, object] = {
    "model__path": "minilm",
    "model__task": "classification",
    "model__labels": ["short", "long"],
    "train__rounds": 3,
    "train__steps": 2,
}
MakeRows = Callable[[str], dict[str, Rows]]


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory, rows: MakeRows) -> Callable[[str], str]:
    """A run file to the digest of its adapter, computed in this process."""
    known: dict[str, str] = {}

    def digest(text: str) -> str:
        if text not in known:
            names = "".join(section.name for section in loads(text).clients)
            own = {name: one for name, one in rows("abc").items() if name in names}
            with Party(text, own, tmp_path_factory.mktemp("reference")) as party:
                known[text] = party.start().finish().digest
        return known[text]

    return digest


def test_the_server_then_a_client_are_killed_and_started_again(
    stage: Callable[..., Stage], references: Callable[[str], str]
) -> None:
    text = run_file(CLIENTS, **LLAMA)
    run = stage(text)
    server = run.serve(program=dies_at(StepDone, round=1, step=2))
    killed = {"a": dies_at(StepDone, round=2, step=1)}
    clients = {name: run.join(name, program=killed.get(name, PROGRAM)) for name in CLIENTS}
    server.end(expected=-signal.SIGKILL)
    server = run.serve("--resume")
    clients["a"].end(expected=-signal.SIGKILL)
    before = next(event for event in clients["a"].events if isinstance(event, Measured))
    clients["a"] = run.join("a")
    assert ends(server, list(clients.values())) == references(text)
    assert {event.round for event in server.events if isinstance(event, RoundClosed)} == {1, 2}
    assert clients["a"].finished.before == before.metrics


@pytest.mark.soak
def test_everybody_is_interrupted_and_started_again(
    minilm: Path, stage: Callable[..., Stage], references: Callable[[str], str]
) -> None:
    two = {name: CLIENTS[name] for name in "ab"}
    text = run_file(two, **MINILM)
    run = stage(text)
    server = run.serve()
    clients = [run.join(name) for name in two]
    server.until(RoundStarted, round=1)
    for process in (*clients, server):
        process.signal(signal.SIGINT)
    said = [process.end(expected=130) for process in (*clients, server)]
    assert all("interrupted" in line and "goes on from there" in line for line in said), said
    server = run.serve("--resume")
    clients = [run.join(name) for name in two]
    assert ends(server, clients) == references(text)


def test_every_other_kind_of_client_is_killed_and_the_measurement_interrupted(
    stage: Callable[..., Stage], references: Callable[[str], str]
) -> None:
    text = run_file(OTHERS, **LLAMA, data__eval_fraction=0.5)
    run = stage(text)
    server = run.serve(program=dies_at(RoundClosed, signal.SIGINT, round=0))
    killed = {"a": dies_at(StepDone, round=0, step=1), "b": dies_at(StepDone, round=1, step=1)}
    clients = {name: run.join(name, program=killed.get(name, PROGRAM)) for name in OTHERS}
    again(run, clients, "a")
    assert "goes on from there" in server.end(expected=130)
    assert not any(isinstance(event, Measured) and event.round == 1 for event in server.events)
    clients["c"].signal(signal.SIGINT)
    assert "goes on from there" in clients["c"].end(expected=130)
    server = run.serve("--resume")
    clients["c"] = run.join("c", program=dies_at(StepDone, round=2, step=1))
    again(run, clients, "b")
    again(run, clients, "c")
    assert ends(server, list(clients.values())) == references(text)


def again(run: Stage, clients: dict[str, Process], name: str) -> None:
    """Wait until a client is killed, which is in the middle of a round, and start it again."""
    clients[name].end(expected=-signal.SIGKILL)
    clients[name] = run.join(name)


def ends(server: Process, clients: list[Process]) -> str:
    """The digest of the adapter when all end well."""
    for process in (*clients, server):
        process.end()
    for client in clients:
        assert client.finished.after
        assert client.finished.reason == "all rounds done"
    return server.finished.digest


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without asking")
def test_a_terminated_simulation_leaves_no_process_behind(tmp_path: Path, rows: MakeRows) -> None:
    data = {name: written(tmp_path / f"{name}.jsonl", own) for name, own in rows("ab").items()}
    clients = {name: f'topology = "local"\ndata = "{path.as_posix()}"' for name, path in data.items()}
    text = run_file(clients, run__dir=(tmp_path / "run").as_posix(), **LLAMA | {"train__steps": 500})
    (tmp_path / "run.toml").write_text(text, "utf-8")
    process = Process(["simulate", str(tmp_path / "run.toml"), "--json"])
    process.until(StepDone)
    children = psutil.Process(process.child.pid).children(recursive=True)
    assert len(children) == 3
    process.child.terminate()
    assert "goes on from there" in process.end(expected=130)
    assert not psutil.wait_procs(children, timeout=10)[1]
