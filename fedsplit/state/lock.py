"""One process a folder. The operating system holds the lock, so it is gone the moment its owner dies, anyhow."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from fedsplit.errors import ConfigError, Problem
from fedsplit.state.durable import unwritable

# Windows locks bytes against reading as well: lock one far behind the text, so that others can read who we are.
FAR_AWAY = 1 << 20


class FolderLock:
    """Context manager: holds ``folder/lock``, or raises ConfigError that names the process which does.

    ``what`` says what the folder is for ("run directory"), ``fix`` what its owner can do.
    """

    def __init__(self, folder: Path, what: str, fix: str) -> None:
        self.path = folder / "lock"
        self.what, self.fix = what, fix
        self._stream: BinaryIO | None = None

    def __enter__(self) -> FolderLock:
        try:
            stream = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)
        except OSError as error:
            raise unwritable(self.path, error) from error
        try:
            _lock(stream)
        except OSError:
            owner = _owner(stream)
            stream.close()
            found = f"in use by {owner}"
            raise ConfigError([Problem(str(self.path.parent), found, f"one process a {self.what}", self.fix)]) from None
        self._stream = stream
        try:
            stream.truncate(0)
            stream.write(f"process {os.getpid()}\n".encode())
        except OSError as error:
            self.release()
            raise unwritable(self.path, error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def release(self) -> None:
        """Give the folder free; twice is harmless. The file stays: deleting it would race with the next owner."""
        if self._stream is not None:
            _unlock(self._stream)
            self._stream.close()
            self._stream = None


def is_locked(folder: Path) -> bool:
    """Whether a process holds the folder's lock now."""
    try:
        stream = (folder / "lock").open("r+b", buffering=0)
    except OSError:
        return False
    with stream:
        try:
            _lock(stream)
        except OSError:
            return True
        _unlock(stream)
        return False


def _owner(stream: BinaryIO) -> str:
    try:
        return stream.read(64).decode(errors="replace").strip() or "another process"
    except OSError:
        return "another process"


if sys.platform == "win32":
    import msvcrt

    def _lock(stream: BinaryIO) -> None:
        stream.seek(FAR_AWAY)
        msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        stream.seek(0)

    def _unlock(stream: BinaryIO) -> None:
        stream.seek(FAR_AWAY)
        msvcrt.locking(stream.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(stream: BinaryIO) -> None:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(stream: BinaryIO) -> None:
        fcntl.flock(stream, fcntl.LOCK_UN)
