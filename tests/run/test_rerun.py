"""A run says in its directory how it came about, and is repeated from there to the same bits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from fedsplit.cli import rerun
from fedsplit.cli.main import run as command
from fedsplit.cli.rerun import differences, other_plans, repeat
from fedsplit.config.load import loads
from fedsplit.errors import ConfigError
from fedsplit.events import Event, Note
from fedsplit.plan.types import ClientPlan, Cut, Topology
from fedsplit.state import manifest
from fedsplit.state.journal import Journal
from fedsplit.state.rundir import RunDir
from tests.run.conftest import Rows, run_file
from tests.run.party import written
from tests.run.test_own_method import docs_example
from tests.run.threads import run_threads

MakeRows = Callable[[str], dict[str, Rows]]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, rows: MakeRows) -> Path:
    """A finished run directory; the operator has validation rows and a method in a file."""
    folder = tmp_path_factory.mktemp("done")
    data = {name: written(folder / f"secret-{name}.jsonl", own) for name, own in rows("abc").items()}
    clients = {
        "a": f'topology = "u"\ncut = [1, 3]\ndata = "{data["a"].as_posix()}"',
        "b": f'topology = "local"\ndata = "{data["b"].as_posix()}"',
    }
    settings = {"method__name": docs_example(folder), "server_data__path": data["c"].as_posix(), "evaluate__every": 1}
    (folder / "run.toml").write_text(run_file(clients, run__dir="run", **settings), "utf-8")
    run_threads(folder / "run.toml")
    return folder / "run"


def test_the_manifest_says_how_the_result_came_about(done: Path) -> None:
    found = manifest.read(done)
    [start] = found.starts
    assert found.result is not None
    assert len(found.result.digest) == len(found.base) == len(found.files["server_data"]) == 64
    assert found.result.metrics["perplexity"] > 1
    assert start.versions["torch"]
    assert (start.threads, start.device, start.resumed) == (1, "cpu", False)
    assert found.run_file == manifest.without_data(loads((done / "run.toml").read_text("utf-8")))
    clients = manifest.read_simulated(done).clients
    assert clients["a"].sha256 != clients["b"].sha256
    assert clients["a"].profile is not None


def test_the_servers_manifest_names_no_file_of_a_client(done: Path) -> None:
    text = (done / manifest.MANIFEST).read_text("utf-8")
    clients = manifest.read_simulated(done).clients
    for given in clients.values():
        assert Path(given.data).name not in text
        assert given.sha256 not in text


def test_repeated_it_has_the_same_bits(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[Event] = []
    before, after = repeat(done, tmp_path / "again", events.append, simulate=run_threads)
    assert before.result is not None
    assert after.result is not None
    assert before.result.digest == after.result.digest
    assert not differences(before, after)
    assert not any(isinstance(event, Note) and event.warning for event in events)
    monkeypatch.setattr(rerun, "repeat", lambda run, out, emit: (before, after))
    with pytest.raises(SystemExit) as end:
        command(["rerun", str(done)])
    assert end.value.code == 0
    assert f"the same in every bit: {after.result.digest}" in capsys.readouterr().out


def test_the_planner_is_asked_what_it_was_asked(done: Path, tmp_path: Path) -> None:
    class Asked(Exception):
        pass

    def simulate(path: Path, **given: object) -> None:
        written = loads(path.read_text("utf-8"))
        assert [one.threads for one in written.clients] == [0, 0], "as many as were measured, whatever a process had"
        assert given["client_threads"] == {"a": 1, "b": 1}
        raise Asked

    with pytest.raises(Asked):
        repeat(done, tmp_path / "again", simulate=simulate)


def test_a_plan_that_differs_is_named(tmp_path: Path) -> None:
    plan = ClientPlan(client="a", topology=Topology.U, cut=Cut(1, 3), layers=(), batch=4, reasons=("fast",))
    for name, cut, batch in (("then", Cut(1, 3), 4), ("same", Cut(1, 3), 4), ("now", Cut(1, 2), 2)):
        (tmp_path / name).mkdir()
        with Journal(RunDir(tmp_path / name).journal_db) as journal:
            journal.plan(0, "a", replace(plan, cut=cut, batch=batch, reasons=(name,)))
    assert not other_plans(tmp_path / "then", tmp_path / "same")
    [said] = other_plans(tmp_path / "then", tmp_path / "now")
    assert said == "the plan of a was u (1, 3), is u (1, 2) (unequal: cut, batch)"


def test_other_versions_are_named_and_blamed(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = manifest.read(done)
    old = tmp_path / "old"
    old.mkdir()
    torch, digest = now.starts[0].versions["torch"], now.result.digest if now.result else ""
    text = (done / manifest.MANIFEST).read_text("utf-8").replace(torch, "1.0").replace(digest, "0" * 64)
    (old / manifest.MANIFEST).write_text(text, "utf-8")
    before = manifest.read(old)
    assert differences(before, now) == [f"torch was 1.0, is {torch}"]
    monkeypatch.setattr(rerun, "repeat", lambda run, out, emit: (before, now))
    with pytest.raises(SystemExit) as end:
        command(["rerun", str(old)])
    assert end.value.code == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "another adapter" in said
    assert f"What differs: torch was 1.0, is {torch}" in said


@pytest.mark.parametrize("file", [manifest.MANIFEST, manifest.SIMULATED])
def test_another_format_is_refused(done: Path, tmp_path: Path, file: str) -> None:
    copy = shutil.copytree(done, tmp_path / "copy")
    text = (copy / file).read_text("utf-8")
    (copy / file).write_text(text.replace("format = 1", "format = 99", 1), "utf-8")
    with pytest.raises(ConfigError, match=r"format: found 99, expected 1; read it with the fedsplit that wrote it"):
        repeat(copy, tmp_path / "again")


def test_what_cannot_be_repeated_is_refused(done: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found no manifest\.toml"):
        repeat(tmp_path, tmp_path / "again")
    with pytest.raises(ConfigError, match="a folder that is not empty"):
        repeat(done, done)
    copy = shutil.copytree(done, tmp_path / "copy")
    simulated = copy / manifest.SIMULATED
    text = simulated.read_text("utf-8")
    simulated.write_text(text.replace(manifest.read_simulated(done).clients["b"].sha256, "1" * 64), "utf-8")
    own = manifest.read(done).files
    described = (copy / manifest.MANIFEST).read_text("utf-8")
    for sha256 in own.values():
        described = described.replace(sha256, "2" * 64)
    (copy / manifest.MANIFEST).write_text(described, "utf-8")
    with pytest.raises(ConfigError, match=r"clients\.b\.data: found .* with other content") as error:
        repeat(copy, tmp_path / "again")
    assert len(error.value.problems) == 3, "the client's rows, the operator's, and the method"
    simulated.unlink()
    with pytest.raises(ConfigError, match="devices brought their own data"):
        repeat(copy, tmp_path / "again")
    (copy / manifest.MANIFEST).write_text("format = 1\n", "utf-8")
    with pytest.raises(ConfigError, match="cannot be read"):
        repeat(copy, tmp_path / "again")
    assert not (tmp_path / "again").exists()
