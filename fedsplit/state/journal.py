"""The journal: what happened in a run, row after row, in one SQLite file that any tool can read while it grows.

Append-only: rows are never changed. It is history, not state; a run resumes from its checkpoints alone. Every call is
one transaction, except steps, which are written together (64 of them, one second's worth, or with the next other row),
so kill -9 loses at most a second of steps. Views ``round_summary`` and ``totals`` answer the usual questions in SQL.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from fedsplit.errors import DataError
from fedsplit.state.rows import (
    BytesRow,
    ClientRow,
    MetricRow,
    NoteRow,
    PlanRow,
    RoundRow,
    Row,
    StepRow,
    Totals,
)
from fedsplit.state.tables import INSERT, SCHEMA, SELECT, VERSION

STEPS_TOGETHER = 64
SECONDS_TOGETHER = 1.0
BUSY_S = 10.0

R = TypeVar("R", bound=Row)


class Journal:
    """``journal.db``. Safe to use from several threads. ``read_only`` opens an existing one and refuses to write.

    ``clock`` gives seconds since the epoch. Raises DataError when the file is no journal, is of another version, or
    the disk refuses a row.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time, read_only: bool = False) -> None:
        self.path, self._clock = path, clock
        self._lock = threading.RLock()
        self._steps: list[tuple[Any, ...]] = []
        self._oldest_step = 0.0
        if read_only and not path.is_file():
            raise DataError("found no journal; give the folder of a run that was started", str(path))
        self._db = self._guard(lambda: self._open(read_only))

    def _open(self, read_only: bool) -> sqlite3.Connection:
        target = f"{self.path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        db = sqlite3.connect(target, timeout=BUSY_S, isolation_level=None, check_same_thread=False, uri=True)
        try:
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            if not read_only:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
            if version == 0 and not read_only:
                db.executescript(SCHEMA)
            elif version != VERSION:
                found = f"found journal version {version}, expected {VERSION}"
                raise DataError(f"{found}; read it with the fedsplit that wrote it", str(self.path))
        except BaseException:
            db.close()
            raise
        return db

    # ---- writing ---------------------------------------------------------------------------------------------------

    def round_opened(self, round: int, clients: Iterable[str], era: int = 0) -> None:
        """Round ``round`` begins with ``clients``; ``era`` counts its repetitions after a crash."""
        self._append("rounds_opened", round, era, self._clock(), _json(tuple(clients)))

    def round_closed(
        self,
        round: int,
        *,
        arrived: Iterable[str],
        seconds: float,
        committed: bool,
        late: Iterable[str] = (),
        reason: str = "",
        era: int = 0,
    ) -> None:
        """Round ``round`` ended: merged (``committed``) or discarded for ``reason``."""
        names = _json(tuple(arrived)), _json(tuple(late))
        self._append("rounds_closed", round, era, self._clock(), *names, seconds, committed, reason)

    def step(
        self,
        round: int,
        step: int,
        client: str,
        *,
        loss: float | None,
        seconds: float,
        up_bytes: int = 0,
        down_bytes: int = 0,
        committed: bool = True,
    ) -> None:
        """One optimiser step of ``client``. ``loss`` is None where it is not known; NaN is kept as None, too."""
        now = self._clock()
        with self._lock:
            self._oldest_step = self._oldest_step if self._steps else now
            self._steps.append((now, round, step, client, loss, seconds, up_bytes, down_bytes, committed))
            if len(self._steps) >= STEPS_TOGETHER or now - self._oldest_step >= SECONDS_TOGETHER:
                self.flush()

    def client_joined(
        self, client: str, topology: str = "", cut: tuple[int, int] = (0, 0), public_key: str = ""
    ) -> None:
        """``client`` was admitted (again)."""
        self._append("clients", self._clock(), client, "joined", topology, *cut, public_key, "")

    def client_left(self, client: str, reason: str = "") -> None:
        """``client`` went away."""
        self._append("clients", self._clock(), client, "left", "", 0, 0, "", reason)

    def plan(self, round: int, client: str, plan: msgspec.Struct) -> None:
        """The plan (any Struct, kept as JSON) that ``client`` follows from ``round`` on."""
        self._append("plans", self._clock(), round, client, msgspec.json.encode(plan).decode())

    def metric(
        self, round: int, phase: str, values: Mapping[str, float], *, client: str = "", examples: int = 0
    ) -> None:
        """Numbers measured in ``phase`` (before, round, after) by ``client`` (empty: the server, or all together)."""
        now = self._clock()
        rows = [(now, round, phase, client, name, float(value), examples) for name, value in sorted(values.items())]
        self._append_all("metrics", rows)

    def note(self, text: str, *, warning: bool = False, client: str = "") -> None:
        """One line for the reader."""
        self._append("notes", self._clock(), client, text, warning)

    def bytes(self, client: str, *, up: int, down: int, what: str, round: int = 0) -> None:
        """Bytes outside of steps, e.g. ``what`` = "weights" or "adapter", as ``client`` sees up and down."""
        self._append("bytes", self._clock(), round, client, what, up, down)

    def flush(self) -> None:
        """Write the steps that wait for company."""
        self._append_all("steps", ())

    def close(self) -> None:
        """Flush and close; the write-ahead file is folded in. Twice is harmless."""
        with self._lock:
            try:
                if self._steps:
                    self.flush()
            finally:
                self._db.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _append(self, table: str, *row: Any) -> None:
        self._append_all(table, (row,))

    def _append_all(self, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        with self._lock:
            self._guard(lambda: self._transaction(table, rows))
            self._steps.clear()

    def _transaction(self, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(INSERT["steps"], self._steps)
            self._db.executemany(INSERT[table], rows)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _guard(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except sqlite3.Error as error:
            fix = "free the disk, or move the journal away: checkpoints do not depend on it"
            raise DataError(f"the journal refused: {error}; {fix}", str(self.path)) from error

    # ---- reading ---------------------------------------------------------------------------------------------------

    def rounds(self) -> list[RoundRow]:
        """Every opened round in order, the last era of each; ``closed_s`` is None while it runs or when it was lost."""
        return self._read(RoundRow)

    def steps(self, round: int | None = None, client: str | None = None) -> list[StepRow]:
        """Steps in the order they were made."""
        return [r for r in self._read(StepRow) if round in (None, r.round) and client in (None, r.client)]

    def metrics(self, phase: str | None = None, client: str | None = None) -> list[MetricRow]:
        """Metrics in the order they were measured; NaN comes back as NaN."""
        return [r for r in self._read(MetricRow) if phase in (None, r.phase) and client in (None, r.client)]

    def clients(self) -> list[ClientRow]:
        """Arrivals and departures."""
        return self._read(ClientRow)

    def plans(self) -> list[PlanRow]:
        """Plans in the order they were given out."""
        return self._read(PlanRow)

    def notes(self) -> list[NoteRow]:
        """Notes and warnings."""
        return self._read(NoteRow)

    def transfers(self) -> list[BytesRow]:
        """Bytes outside of steps."""
        return self._read(BytesRow)

    def totals(self) -> list[Totals]:
        """Steps, seconds and bytes (steps and the rest together) of each client."""
        return self._read(Totals)

    def _read(self, kind: type[R]) -> list[R]:
        with self._lock:
            if self._steps:
                self.flush()
            rows = self._guard(lambda: self._db.execute(SELECT[kind]).fetchall())
        return [kind.of(row) for row in rows]


def _json(names: tuple[str, ...]) -> str:
    return msgspec.json.encode(names).decode()
