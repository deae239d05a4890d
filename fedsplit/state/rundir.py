"""The run directory: everything the operator's process needs to go on after a stop, in one folder.

    run.toml           the resolved run file
    manifest.toml      how it came about, and how it ended (manifest.py)
    keys/              the server's key pair and invitations, readable by its owner only
    journal.db         what happened (journal.py)
    checkpoints/NNNN/  the global state after round NNNN (checkpoints.py)
    era                the first era of the newest start, so that the next one begins above it
    lock               held by the one process that serves this run (lock.py)

``RunDir(path)`` touches nothing; ``begin`` makes or reopens the folder.
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedsplit.errors import ConfigError, DataError, Problem
from fedsplit.state import checkpoints
from fedsplit.state.checkpoints import Arrays, Checkpoint
from fedsplit.state.durable import make_private, write_file
from fedsplit.state.journal import Journal
from fedsplit.state.lock import FolderLock

MAY_CHANGE = (
    "run.dir",
    "model.path",  # the weights may have moved; their identity is checked where they are opened
    "server.host",
    "server.port",
    "server.public_host",
    "server.stash_bytes",
    "rounds.deadline_s",
    "rounds.patience_s",
    "train.rounds",
    "evaluate.patience",
)
"""Keys of the run file that a resumed run may set anew: they say where and how long, not what is learnt."""


ERAS_A_START = 1 << 32
"""More attempts than one start ever makes."""


class RunDir:
    """Paths and state of one run. ``path`` need not exist."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser()
        self.run_toml = self.path / "run.toml"
        self.keys = self.path / "keys"
        self.era = self.path / "era"
        self.journal_db = self.path / "journal.db"
        self.checkpoints = self.path / "checkpoints"

    def begin(self, run_toml: str, *, resume: bool = False) -> bool:
        """Make the folder and write ``run_toml``, the resolved run file; True when an earlier run goes on.

        ``resume`` with an empty folder starts afresh, so a service can always pass it. Raises ConfigError when a run
        is there and ``resume`` is not set, or when a key outside MAY_CHANGE differs (all of them at once).
        """
        before = _read(self.run_toml)
        if before is not None and not resume and self.started:
            found = f"a run with {len(checkpoints.rounds(self.checkpoints))} checkpoints"
            raise ConfigError([Problem(str(self.path), found, "a new folder", "add --resume or change run.name")])
        if before is not None and self.started:
            self._check_same(before, run_toml)
        make_private(self.path)
        make_private(self.keys)
        write_file(self.run_toml, run_toml.encode())
        return self.started

    @property
    def started(self) -> bool:
        """Whether a checkpoint was ever written here."""
        return checkpoints.latest(self.checkpoints) is not None

    def next_era(self, now_ns: int | None = None) -> int:
        """The first era of this start: above all that earlier starts gave out, even when the clock was set back.

        Written down before it is used. ``now_ns``: nanoseconds since the epoch; by default the clock's.

        :raises DataError: the file is damaged, or the disk refuses it.
        """
        try:
            last = int(self.era.read_bytes()) if self.era.exists() else 0
        except (OSError, ValueError):
            raise DataError(
                "found no number; delete it, if the clock of this machine is right", str(self.era)
            ) from None
        now_ns = time.time_ns() if now_ns is None else now_ns
        # The clock keeps eras apart where the file was deleted, too.
        era = max(now_ns // 1_000_000 << 12, last + ERAS_A_START)
        write_file(self.era, f"{era}\n".encode())
        return era

    def lock(self) -> FolderLock:
        """Context manager; raises ConfigError when another process serves this run."""
        make_private(self.path)
        return FolderLock(self.path, "run directory", "stop it, or change run.name or run.dir for a second run")

    def journal(self) -> Journal:
        """Open the journal for writing."""
        return Journal(self.journal_db)

    def save(
        self, round: int, arrays: Arrays, meta: Mapping[str, Any], *, keep: int = 3, best: Iterable[int] = ()
    ) -> Path:
        """Checkpoint round ``round``; keeps the last ``keep`` and those of the rounds in ``best``."""
        return checkpoints.save(self.checkpoints, round, arrays, meta, keep=keep, best=best)

    def load(self, round: int | None = None, *, exact: bool = False) -> Checkpoint | None:
        """The newest good checkpoint (up to ``round``), or None in a fresh folder; see ``checkpoints.load``."""
        return checkpoints.load(self.checkpoints, round, exact=exact)

    def _check_same(self, before: str, now: str) -> None:
        old, new = _flat(_parsed(before, self.run_toml)), _flat(_parsed(now, Path("the new run file")))
        fix = "take the old value back, or start a new run with another run.name"
        problems = [
            Problem(key, repr(new.get(key, "nothing")), f"{old.get(key, 'nothing')!r} as when the run began", fix)
            for key in sorted(old.keys() | new.keys())
            if key not in MAY_CHANGE and old.get(key) != new.get(key)
        ]
        if problems:
            raise ConfigError(problems, str(self.run_toml))


def _read(path: Path) -> str | None:
    """The run file of an earlier start; None when there is none."""
    try:
        return path.read_text("utf-8") if path.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"cannot be read: {reason}; restore it, or start a new run", str(path)) from None


def _parsed(text: str, source: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}; restore it, or start a new run", str(source)) from None


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": 1}``; lists of tables are numbered."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            flat |= _flat({str(index): item for index, item in enumerate(value)}, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
