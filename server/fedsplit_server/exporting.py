"""A process that exports one plan's graphs into the folder of kept graphs: ``python -m fedsplit_server.exporting``.

Its order comes on stdin. Files are written aside and moved into place at once, under a lock, so that a killed export
leaves nothing half and two servers do not do the same work. What is there already is read and compared with its hashes
first. Imports nothing heavy until something has to be exported.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from fedsplit.config.run import RunFile
from fedsplit.errors import ConfigError, FedsplitError
from fedsplit.plan.types import ClientPlan
from fedsplit.state.durable import drop_folder, make_private, unwritable, write_file
from fedsplit.state.lock import FolderLock
from fedsplit.wire.messages import Asset

LISTING = "listing.json"
"""Names, sizes and hashes of the files beside it; its time says when they were last wanted."""
LOOK_S = 0.5
NICE = 10
"""Running steps go first."""


class Order(Struct, frozen=True, kw_only=True):
    """What is to be exported: the graphs of ``plan`` into ``folder``, which no other plan shares.

    ``traces``: the folder of traced graphs; ``model``: of the base model. ``held``: names beside ``folder`` that stay,
    whatever ``keep_bytes`` says.
    """

    folder: str
    traces: str
    model: str
    plan: ClientPlan
    run: RunFile
    keep_bytes: int
    held: tuple[str, ...] = ()


def carry_out(order: Order) -> None:
    """Leave ``order.folder`` complete. Raises FedsplitError, and DataError where the disk refuses."""
    place = Path(order.folder)
    aside = make_private(place.parent / f".{place.name}.aside")
    with _turn(aside):
        if not intact(place):
            drop_folder(place)
            _clear(aside)
            try:
                _export(order, aside)
                _list(aside)
                _move(aside, place)
            except OSError as error:
                raise unwritable(place, error) from error
            finally:
                _clear(aside)
        os.utime(place / LISTING)
    evict(place.parent, order.keep_bytes, {place.name, *order.held})


def listed(folder: Path) -> tuple[Asset, ...]:
    """What ``folder`` holds; nothing where its listing cannot be read."""
    try:
        return msgspec.json.decode((folder / LISTING).read_bytes(), type=tuple[Asset, ...])
    except (OSError, msgspec.MsgspecError):
        return ()


def intact(folder: Path) -> bool:
    """Whether every listed file is there, byte for byte."""
    assets = listed(folder)
    try:
        return bool(assets) and all(_sha256(folder / asset.name) == asset.sha256 for asset in assets)
    except OSError:
        return False


def evict(folder: Path, keep_bytes: int, held: set[str]) -> list[str]:
    """Delete exports, those wanted longest ago first, until ``keep_bytes`` hold the rest; their names."""
    found = sorted((path.stat().st_mtime, path.parent) for path in folder.glob(f"[!.]*/{LISTING}"))
    total = sum(asset.nbytes for _, place in found for asset in listed(place))
    gone = []
    for _, place in found:
        if total > keep_bytes and place.name not in held:
            total -= sum(asset.nbytes for asset in listed(place))
            drop_folder(place)
            gone.append(place.name)
    return gone


class _turn:  # reads as a phrase where it is used
    """Holds the lock of ``folder``; waits while another server exports the same."""

    def __init__(self, folder: Path) -> None:
        self._lock = FolderLock(folder, "export", "wait")

    def __enter__(self) -> None:
        while True:
            try:
                self._lock.__enter__()
            except ConfigError:
                time.sleep(LOOK_S)
            else:
                return

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _export(order: Order, folder: Path) -> None:
    from fedsplit.split.base import open_base
    from fedsplit.split.export.write import export

    export(open_base(order.model), order.plan, order.run, folder / "new", traces=Path(order.traces))


def _list(aside: Path) -> None:
    files = sorted(path for path in (aside / "new").iterdir() if path.is_file())
    assets = tuple(Asset(path.name, path.stat().st_size, _sha256(path)) for path in files)
    for asset in assets:
        _share(asset, aside / "new" / asset.name)
    write_file(aside / "new" / LISTING, msgspec.json.encode(assets))


def _share(asset: Asset, path: Path) -> None:
    """What another plan's folder has byte for byte, as all have the embedding of a model, is on the disk once."""
    for other in sorted(path.parents[2].glob(f"[!.]*/{path.name}")):
        if any((one.name, one.sha256) == (asset.name, asset.sha256) for one in listed(other.parent)):
            second = path.with_name(f".{path.name}")
            try:
                if _sha256(other) != asset.sha256:
                    continue
                second.hardlink_to(other)
                second.replace(path)
            except OSError:  # a disk without second names, or a folder that is being deleted
                second.unlink(missing_ok=True)
            return


def _move(aside: Path, place: Path) -> None:
    (aside / "new").replace(place)


def _clear(aside: Path) -> None:
    shutil.rmtree(aside / "new", ignore_errors=True)
    (aside / "new").mkdir()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """Returns the exit code; the last line on stderr says what went wrong."""
    if hasattr(os, "nice"):
        os.nice(NICE)
    try:
        carry_out(msgspec.json.decode(sys.stdin.buffer.read(), type=Order))
    except FedsplitError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
