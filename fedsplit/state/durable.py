"""Writing so that a crash leaves the old file or the new one, never half of either.

Everything is written aside, flushed to the disk, and only then renamed. ``os.replace`` is the one rename that is
atomic for files on POSIX and on Windows; a folder is only ever renamed to a name that is free, because Windows cannot
replace one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsplit.errors import DataError

ASIDE, DROPPED = ".aside", ".dropped"


def write_file(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, durably. Raises DataError when the disk refuses (full, read-only)."""
    aside = path.with_name(f".{path.name}{ASIDE}")
    try:
        write_new(aside, content)
        aside.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def write_new(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` and wait until it is on the disk. Not atomic: for names nobody reads yet."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def flush_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable. Windows has no such call; its renames are journalled."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private(folder: Path) -> Path:
    """Make ``folder`` with its parents; a new one is readable by its owner only. Raises DataError when refused."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder


def drop_folder(folder: Path) -> None:
    """Delete ``folder``: first its name in one move, then its files, so that nobody ever finds half of it.

    A folder that another process holds open on Windows keeps its name; the next call tries again.
    """
    gone = folder.with_name(f".{folder.name}{DROPPED}")
    shutil.rmtree(gone, ignore_errors=True)
    try:
        folder.replace(gone)
    except OSError:
        return
    shutil.rmtree(gone, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Delete what an earlier process left half written or half deleted. Only the writer of ``folder`` may call it."""
    for entry in folder.iterdir():
        if entry.name.startswith(".") and entry.suffix in (ASIDE, DROPPED):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> DataError:
    """The error for a path the disk refuses."""
    reason = error.strerror or type(error).__name__
    return DataError(f"cannot be written: {reason}; free space or choose another folder, nothing was lost", str(path))


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new folder to fill; it takes the place of ``folder`` once all is written, and is gone where something fails.

    Raises DataError when the disk refuses. What was in ``folder`` is deleted then: ask first whether it may be.
    """
    final = folder.absolute()
    aside = final.with_name(f".{final.name}{ASIDE}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
        _flush_files(aside)
        if final.exists():
            drop_folder(final)
        aside.replace(final)
        flush_folder(final.parent)
    except OSError as error:
        raise unwritable(final, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _flush_files(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
    flush_folder(folder)
