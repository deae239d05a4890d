"""A disk that refuses while a model is fetched: a clear error with the path, and the download goes on afterwards."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fedsplit.errors import DataError
from fedsplit.events import silent
from fedsplit.state.lock import FolderLock
from fedsplit.testing.loopback import Loopback
from fedsplit.wire import Packet, WireTensor
from fedsplit.wire.ends import Tensors
from fedsplit.wire.messages import Asset, Chunk, Fetch, Message
from fedsplit_client import download
from fedsplit_client.download import CHUNK_BYTES, fetch_all

CONTENT = np.random.default_rng(0).integers(0, 256, 3 * CHUNK_BYTES + 17, dtype=np.uint8)
ASSET = Asset(name="layers.safetensors", nbytes=CONTENT.nbytes, sha256=hashlib.sha256(CONTENT).hexdigest())


class Shelf:
    """A ``ClientEnd`` whose other side answers every Fetch at once with the bytes asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.reconnected = False
        self._ready: list[Packet] = []

    def send(self, message: Message, tensors: Tensors | None = None) -> int:
        assert isinstance(message, Fetch)
        self.asked.append(message.offset)
        data = CONTENT[message.offset : message.offset + message.size]
        chunk = Chunk(asset=message.asset, offset=message.offset)
        self._ready.append(Packet(chunk, {"data": WireTensor.of(data)}))
        return 0

    def receive(self, timeout_s: float) -> Packet | None:
        return self._ready.pop(0) if self._ready else None

    def __getattr__(self, name: str) -> object:
        return getattr(Loopback().dealer(), name)


@contextmanager
def no_file_above(nbytes: int) -> Iterator[None]:
    """As a full disk: writing beyond this size fails, for root as well."""
    if sys.platform == "win32":
        pytest.skip("needs RLIMIT_FSIZE")
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """With nothing beside it: other tests fetch the same file."""
    own = tmp_path / "own"
    own.mkdir()
    return own


def fetch(end: Shelf, folder: Path) -> Path:
    return fetch_all(end, [ASSET], folder, client="a", run="r", emit=silent)  # type: ignore[arg-type]


def test_a_full_disk_is_said_and_the_download_goes_on(tmp_path: Path) -> None:
    with no_file_above(2 * CHUNK_BYTES), pytest.raises(DataError, match="cannot be written: File too large") as error:
        fetch(Shelf(), tmp_path)
    assert str(tmp_path / ASSET.name) in str(error.value)
    assert "free space or choose another folder" in str(error.value)
    assert error.value.exit_code == 6
    end = Shelf()
    fetch(end, tmp_path)
    assert end.asked[0] == 2 * CHUNK_BYTES, "what had arrived is not fetched again"
    assert (tmp_path / ASSET.name).read_bytes() == CONTENT.tobytes()


def test_a_disk_without_room_is_said_before_anything_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "free_disk", lambda folder: CONTENT.nbytes - 1)
    end = Shelf()
    with pytest.raises(DataError, match=r"3\.15 MB are to be fetched, 3\.15 MB are free") as error:
        fetch(end, tmp_path)
    assert end.asked == []
    assert "--state" in str(error.value)


def test_what_a_folder_beside_has_is_not_fetched_twice(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    fetch(Shelf(), one)
    end = Shelf()
    fetch(end, two)
    assert end.asked == []
    assert (two / ASSET.name).read_bytes() == CONTENT.tobytes()
    for folder in (one, two):
        (folder / ASSET.name).write_bytes(bytes(CONTENT.nbytes))
    fetch(end, three)
    assert end.asked, "what is damaged there is of no use"
    assert (three / ASSET.name).read_bytes() == CONTENT.tobytes()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="cannot be written") as error:
        fetch(Shelf(), tmp_path / "models" / "x")
    assert str(tmp_path / "models") in str(error.value)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / f"{ASSET.name}.part").mkdir()
    with pytest.raises(DataError, match=r"layers\.safetensors: cannot be written"):
        fetch(Shelf(), tmp_path)


def test_a_lock_on_a_full_disk_is_given_free(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path, "run directory", "stop it")
    with no_file_above(0), pytest.raises(DataError, match="lock: cannot be written: File too large"):
        lock.__enter__()
    with FolderLock(tmp_path, "run directory", "stop it") as again:
        assert again is not lock
