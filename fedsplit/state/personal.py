"""What a device keeps for itself: its keys and, per run, whatever must survive a power cut.

    keys/                    the device's key pair
    models/<base>/           what was fetched of base models, for all runs
    runs/<name>-<hash>/      one per (run, server, client): who it is in info.json, the base model that
                             it uses in model, the lock, rounds as checkpoints

A client writes its state of a round *before* it uploads the update of that round. Then, whenever it dies, either the
server has no update (and the round is repeated from the state before) or both sides have the same one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import platformdirs
from msgspec import Struct

from fedsplit.errors import DataError
from fedsplit.state import checkpoints
from fedsplit.state.checkpoints import Arrays, Checkpoint
from fedsplit.state.durable import drop_folder, make_private, sweep, write_file
from fedsplit.state.lock import FolderLock

BESIDE = ("fisher/", "difficulty")
"""How the names begin of what a client knows of its rows and neurons, beside its factors."""
KEEP = 3
"""Rounds kept: server and client meet at the last common one, and the server may be a round or two behind."""


class RunInfo(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which run a folder belongs to. ``server`` is the server's public key or address."""

    run: str
    server: str = ""
    client: str = ""


class Kept(NamedTuple):
    """What the device keeps of one run: which, where, and the bytes of its files."""

    info: RunInfo
    path: Path
    size_bytes: int


class Personal:
    """The device's state directory; by default where the platform keeps user state."""

    def __init__(self, folder: Path | str | None = None) -> None:
        given = Path(folder).expanduser() if folder else platformdirs.user_state_path("fedsplit", appauthor=False)
        self.path = make_private(given)
        self.keys = make_private(given / "keys")

    def run(self, run: str, *, server: str = "", client: str = "") -> ClientRun:
        """The state of one run, made when it is new. Names may be anything: they never become paths as they are."""
        info = RunInfo(run=run, server=server, client=client)
        folder = make_private(self.path / "runs" / folder_name(info))
        if not (folder / "info.json").exists():
            write_file(folder / "info.json", msgspec.json.encode(info))
        return ClientRun(folder, info)

    def runs(self) -> tuple[RunInfo, ...]:
        """All runs that this device keeps state of, by name."""
        found = [
            _info(path) for path in (self.path / "runs").glob("*/info.json") if not path.parent.name.startswith(".")
        ]
        return tuple(sorted(found, key=lambda info: (info.run, info.server, info.client)))

    def kept(self) -> list[Kept]:
        """What ``forget`` would delete, of all runs, by name."""
        found = []
        for info in self.runs():
            path = self.path / "runs" / folder_name(info)
            size = sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())
            found.append(Kept(info, path, size))
        return found

    def forget(self, run: str) -> int:
        """Delete everything this device keeps of ``run`` (from any server, of any client); returns how many folders.

        Raises ConfigError when a process is in that run now, DataError when a folder cannot be deleted.
        """
        chosen = [info for info in self.runs() if info.run == run]
        used = {model for info in chosen if (model := self._folder(info).model)}
        for info in chosen:
            folder = self.path / "runs" / folder_name(info)
            with ClientRun(folder, info).lock():
                pass
            drop_folder(folder)
            if folder.exists():
                raise DataError("cannot be deleted: a file in it is open; close it and try again", str(folder))
        if chosen:
            sweep(self.path / "runs")
            self._drop_models(used)
        return len(chosen)

    def _drop_models(self, used: set[str]) -> None:
        """Fetched parts of base models that no run is left for. One that does not say what it uses may use any."""
        left = [self._folder(info).model for info in self.runs()]
        for name in used - set(left) if "" not in left else ():
            drop_folder(self.path / "models" / name)

    def _folder(self, info: RunInfo) -> ClientRun:
        return ClientRun(self.path / "runs" / folder_name(info), info)


class ClientRun:
    """One client's state in one run, round by round."""

    def __init__(self, folder: Path, info: RunInfo) -> None:
        self.path, self.info = folder, info

    def lock(self) -> FolderLock:
        """Context manager; raises ConfigError when another process on this device is the same client of this run."""
        return FolderLock(self.path, "client of a run", "stop it, or join under another --name")

    def uses(self, model: str) -> None:
        """Note which fetched base model this run needs (``model_name``). Written only where that is news."""
        if model != self.model:
            write_file(self.path / "model", model.encode())

    @property
    def model(self) -> str:
        """What ``uses`` noted; empty where nothing was."""
        try:
            found = (self.path / "model").read_text("ascii")
        except (OSError, UnicodeDecodeError):
            return ""
        return found if re.fullmatch(r"[0-9a-f]+", found) else ""

    def save(
        self, round: int, arrays: Arrays, meta: Mapping[str, Any] | None = None, *, best: Iterable[int] = ()
    ) -> None:
        """Keep the state after ``round`` (what is the client's own); returns when it is on the disk. Of older rounds
        the last few stay, and ``best``."""
        checkpoints.save(self.path, round, arrays, meta, keep=KEEP, best=best)

    def load(self, round: int | None = None, *, exact: bool = False) -> Checkpoint | None:
        """The newest good state (up to ``round``), or None; see ``checkpoints.load``."""
        return checkpoints.load(self.path, round, exact=exact)

    def rounds(self) -> tuple[int, ...]:
        """The rounds there is state of."""
        return checkpoints.rounds(self.path)

    def back_to(self, round: int) -> None:
        """Delete the state of later rounds: the server never merged them."""
        for later in self.rounds():
            if later > round:
                drop_folder(self.path / f"{later:04d}")


def model_name(base: str) -> str:
    """The folder of a base model's fetched parts, by its identity."""
    return base[:16]


def folder_name(info: RunInfo) -> str:
    """A readable, safe and unique folder name: a run's name comes from a server that may not mean well."""
    slug = re.sub(r"[^a-z0-9]+", "-", info.run.lower())[:40].strip("-") or "run"
    key = hashlib.blake2b(msgspec.json.encode(info), digest_size=6).hexdigest()
    return f"{slug}-{key}"


def _info(path: Path) -> RunInfo:
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunInfo)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(f"cannot be read: {error}; delete this folder to forget its run", str(path)) from None
