"""``fedsplit report``: prediction beside measurement, from the journal of real runs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from fedsplit.cli.main import make_app
from fedsplit.cli.report import compared, print_report
from fedsplit.cli.verbs import VERBS
from fedsplit.events import RoundCost, StepDone
from fedsplit.plan.types import ClientPlan, Cut, Estimate, Topology
from fedsplit.state.journal import Journal
from fedsplit.wire.messages import Cost, Message, Update
from tests.run.party import Party

ESTIMATE = Estimate(memory_bytes=400_000_000, disk_bytes=0, step_s=0.5, up_bytes=1000, down_bytes=2000)


def plan(name: str, estimate: Estimate | None = ESTIMATE) -> ClientPlan:
    return ClientPlan(client=name, topology=Topology.U, cut=Cut(1, 3), layers=(), batch=4, estimate=estimate)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(tmp_path / "journal.db", clock=lambda: 0.0)
    made.plan(0, "pi", plan("pi", None))
    made.plan(0, "pi", plan("pi"))
    made.plan(0, "laptop", plan("laptop"))
    for round, seconds in enumerate((1.0, 0.75, 9.0)):
        cost = {"step_s": seconds, "device_s": 0.5, "up_bytes": 1100 + round, "down_bytes": 2000, "peak_bytes": 5e8}
        made.metric(round, "cost", cost, client="pi")
    for seconds in (0.2, 0.1, 0.4):
        made.step(0, 0, "laptop", loss=None, seconds=seconds)
    return made


def test_what_the_client_said_counts_before_what_the_server_saw(journal: Journal) -> None:
    laptop, pi = compared(journal)
    assert (pi.client, pi.plan) == ("pi", "u (1, 3)")
    assert (pi.step_s.actual, pi.step_s.ratio) == (1.0, 2.0)
    assert (pi.up_bytes.actual, pi.memory_bytes.ratio, pi.device_s) == (1101, 1.25, 0.5)
    assert (laptop.step_s.actual, laptop.steps) == (0.2, 3)
    assert laptop.memory_bytes.actual is None
    assert laptop.up_bytes.ratio is None


def fedsplit(*args: str, code: int = 0, verb: tuple[str, ...] = ("report",)) -> str:
    shown = CliRunner(env={"COLUMNS": "140"}).invoke(make_app(VERBS), [*verb, *args])
    assert shown.exit_code == code, shown.stderr
    return shown.output


def test_table_and_json(journal: Journal, tmp_path: Path) -> None:
    journal.close()
    table = fedsplit(str(tmp_path))
    assert "500 ms → 1.00 s" in table
    assert "× 2.00" in table
    assert "400 MB → ?" in table
    rows = json.loads(fedsplit(str(tmp_path), "--json"))
    assert [row["client"] for row in rows] == ["laptop", "pi"]
    assert rows[1]["memory_bytes"] == {"predicted": 400_000_000, "actual": 500_000_000}
    assert fedsplit(str(tmp_path), verb=("plan", "report")) == table


@pytest.mark.parametrize("columns", [140, 80, 60])
def test_no_number_is_cut(journal: Journal, columns: int) -> None:
    console = Console(width=columns, record=True, file=io.StringIO())
    print_report(compared(journal), console)
    shown = console.export_text()
    assert "…" not in shown
    for number in ("500 ms", "→ 1.00 s", "× 2.00", "→ 1.1 kB", "→ 2 kB", "→ 500 MB", "→ ?"):
        assert number in shown, number


def test_folders_without_a_run(tmp_path: Path) -> None:
    assert "no journal" in fedsplit(str(tmp_path), code=6)
    Journal(tmp_path / "journal.db").close()
    assert "no client has joined" in " ".join(fedsplit(str(tmp_path), code=6).split())


def test_a_real_run_reports_what_its_clients_measured(party: Callable[..., Party]) -> None:
    run = party({"a": 'topology = "u"\ncut = [1, 3]', "c": 'topology = "local"'})
    with Journal(run.folder / "run" / "journal.db", read_only=True) as journal:
        rows = {row.client: row for row in compared(journal)}
    steps = {name: [e for e in run.all(StepDone) if e.client == name and e.up_bytes] for name in "ac"}
    for row in rows.values():
        assert row.step_s.actual is not None
        assert 0 < row.device_s <= row.step_s.actual
        assert row.memory_bytes.actual is not None
        assert row.memory_bytes.actual > 50e6
    assert rows["c"].up_bytes.actual == 0
    assert rows["a"].up_bytes.actual == pytest.approx(sum(e.up_bytes for e in steps["a"]) / len(steps["a"]), abs=1)
    assert len(run.all(RoundCost)) == 4


def test_a_cost_that_cannot_be_is_left_out(party: Callable[..., Party]) -> None:
    def lie(message: Message, tensors: object) -> tuple[Message, object]:
        if isinstance(message, Update):
            message = msgspec.structs.replace(message, cost=Cost(step_s=float("nan"), device_s=-1.0))
        return message, tensors

    honest = party({"c": 'topology = "local"'})
    run = party({"c": 'topology = "local"'}, start=False)
    run.tamper["c"] = lie
    run.start().finish()
    assert run.digest == honest.digest
    assert not run.all(RoundCost)
