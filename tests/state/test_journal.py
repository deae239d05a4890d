"""The journal keeps every row, may be read while it grows, and survives its writer."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from fedsplit.errors import DataError
from fedsplit.plan.types import ClientPlan, Cut, Topology
from fedsplit.state.journal import Journal
from fedsplit.state.tables import COLUMNS


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_kind_of_row(tmp_path: Path) -> None:
    plan = ClientPlan(client="pi", topology=Topology.W, cut=Cut(0, 6), layers=(), batch=4)
    with Journal(tmp_path / "journal.db", clock=Clock()) as journal:
        journal.client_joined("pi", "w", (0, 6), "KEY")
        journal.plan(0, "pi", plan)
        journal.bytes("pi", up=10, down=2000, what="weights")
        journal.round_opened(0, ["pi", "laptop"])
        journal.step(0, 0, "pi", loss=None, seconds=0.5, up_bytes=7, down_bytes=8)
        journal.step(0, 1, "pi", loss=2.5, seconds=0.5, up_bytes=7, down_bytes=8, committed=False)
        journal.metric(0, "round", {"loss": 2.5, "accuracy": 0.5}, client="pi", examples=9)
        journal.round_closed(0, arrived=["pi"], late=["laptop"], seconds=3.0, committed=True)
        journal.note("3 texts were cut", warning=True, client="pi")
        journal.client_left("laptop", "went silent")
    with Journal(tmp_path / "journal.db", read_only=True) as journal:
        (round,) = journal.rounds()
        assert (round.round, round.clients, round.arrived, round.late) == (0, ("pi", "laptop"), ("pi",), ("laptop",))
        assert (round.seconds, round.committed, round.opened_s, round.closed_s) == (3.0, True, 100.0, 100.0)
        assert [(s.step, s.loss, s.committed) for s in journal.steps()] == [(0, None, True), (1, 2.5, False)]
        assert [(m.name, m.value, m.examples) for m in journal.metrics("round", "pi")] == [
            ("accuracy", 0.5, 9),
            ("loss", 2.5, 9),
        ]
        assert [(c.client, c.what, c.reason) for c in journal.clients()] == [
            ("pi", "joined", ""),
            ("laptop", "left", "went silent"),
        ]
        assert msgspec.json.decode(journal.plans()[0].plan, type=ClientPlan) == plan
        assert [(n.text, n.warning) for n in journal.notes()] == [("3 texts were cut", True)]
        (total,) = journal.totals()
        assert (total.steps, total.seconds, total.up_bytes, total.down_bytes) == (2, 1.0, 24, 2016)
        assert journal.transfers()[0].what == "weights"


def test_all_tables_are_written_by_the_test_above() -> None:
    assert set(COLUMNS) == {
        "rounds_opened", "rounds_closed", "steps", "metrics", "clients", "plans", "notes", "bytes",
    }  # fmt: skip


def test_an_open_round_and_a_repeated_one(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.db") as journal:
        journal.round_opened(0, ["pi"], era=0)
        journal.round_opened(0, ["pi", "pc"], era=1)
        journal.round_closed(0, arrived=["pi", "pc"], seconds=1.0, committed=True, era=1)
        journal.round_opened(1, ["pi"])
        first, second = journal.rounds()
    assert (first.era, first.clients, first.committed) == (1, ("pi", "pc"), True)
    assert (second.closed_s, second.seconds, second.committed) == (None, None, False)


def test_nan_is_kept(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.db") as journal:
        journal.metric(0, "round", {"loss": math.nan, "perplexity": math.inf})
        assert [str(m.value) for m in journal.metrics()] == ["nan", "inf"]


def test_steps_are_written_together(tmp_path: Path) -> None:
    clock = Clock()

    def seen() -> int:
        with Journal(tmp_path / "journal.db", read_only=True) as reader:
            return len(reader.steps())

    with Journal(tmp_path / "journal.db", clock=clock) as journal:
        for step in range(63):
            journal.step(0, step, "pi", loss=1.0, seconds=0.1)
        assert seen() == 0
        journal.step(0, 63, "pi", loss=1.0, seconds=0.1)
        assert seen() == 64
        journal.step(0, 64, "pi", loss=1.0, seconds=0.1)
        clock.now += 1.0
        journal.step(0, 65, "pi", loss=1.0, seconds=0.1)
        assert seen() == 66, "a second has passed"
        journal.step(0, 66, "pi", loss=1.0, seconds=0.1)
        journal.note("x")
        assert seen() == 67, "another row takes the steps along, so the order in the file is the order in time"
        journal.step(0, 67, "pi", loss=1.0, seconds=0.1)
    assert seen() == 68


def test_plain_sqlite_reads_it(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.db") as journal:
        journal.round_opened(0, ["pi"])
        other = sqlite3.connect(tmp_path / "journal.db")
        assert other.execute("SELECT round, committed FROM round_summary").fetchall() == [(0, 0)]
        other.close()


def test_threads(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.db") as journal:

        def work(client: str) -> None:
            for step in range(100):
                journal.step(0, step, client, loss=1.0, seconds=0.1, up_bytes=1)
                journal.note("x") if step % 20 == 0 else None

        threads = [threading.Thread(target=work, args=(f"c{i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [(t.client, t.steps) for t in journal.totals()] == [(f"c{i}", 100) for i in range(4)]
        assert len(journal.notes()) == 20


def test_reopened_after_kill(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from fedsplit.state.journal import Journal\n"
        "j = Journal(Path(sys.argv[1])); j.round_opened(0, ['pi']); j.note('kept')\n"
        "j.step(0, 0, 'pi', loss=1.0, seconds=1.0); os.kill(os.getpid(), 9)"
    )
    if sys.platform == "win32":
        pytest.skip("Windows has no SIGKILL")
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", code, str(tmp_path / "journal.db")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, timeout=240, check=False)
    assert done.returncode == -signal.SIGKILL
    with Journal(tmp_path / "journal.db") as journal:
        assert [n.text for n in journal.notes()] == ["kept"]
        assert journal.rounds()[0].closed_s is None
        journal.round_opened(0, ["pi"], era=1)
        assert journal.rounds()[0].era == 1


def test_not_a_journal(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"no database" * 1000)
    with pytest.raises(DataError, match=r"journal.db: the journal refused: file is not a database"):
        Journal(tmp_path / "journal.db")
    with pytest.raises(DataError, match="found no journal"):
        Journal(tmp_path / "absent.db", read_only=True)
    assert not (tmp_path / "absent.db").exists()


def test_another_version(tmp_path: Path) -> None:
    Journal(tmp_path / "journal.db").close()
    other = sqlite3.connect(tmp_path / "journal.db")
    other.execute("PRAGMA user_version = 7")
    other.close()
    with pytest.raises(DataError, match="found journal version 7, expected 1"):
        Journal(tmp_path / "journal.db")


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    Journal(tmp_path / "journal.db").close()
    with Journal(tmp_path / "journal.db", read_only=True) as journal, pytest.raises(DataError, match="readonly"):
        journal.note("x")
