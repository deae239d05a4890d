"""Fetching what the plan needs: in chunks, resumable, checked against its hash, kept by content.

Runs on a connection of its own, so that gradients never wait behind weights.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fedsplit.devices.here import free_disk
from fedsplit.devices.units import size
from fedsplit.errors import Closed, DataError, RemoteProtocolError, Timeout
from fedsplit.events import Emit, Progress
from fedsplit.state.durable import make_private, unwritable
from fedsplit.wire import Packet
from fedsplit.wire.ends import ClientEnd
from fedsplit.wire.messages import Asset, Chunk, Fetch, Refuse

CHUNK_BYTES = 1 << 20
AHEAD = 4
"""Chunks asked for before the first has come: keeps a slow link busy."""
PATIENCE_S = 120.0
REPEAT_S = 30.0
"""What has not come after this long is asked for again."""


def fetch_all(end: ClientEnd, assets: Sequence[Asset], folder: Path, *, client: str, run: str, emit: Emit) -> Path:
    """A folder that holds every asset under its own name; files that are there and intact are not fetched again.

    One that a folder beside has already, as two plans share their embedding, is taken from there.

    :raises DataError: the bytes do not hash to what was offered, twice; or the disk has no room, or refuses them.
    :raises Timeout: the server stopped answering.
    """
    make_private(folder)
    _refuse_full_disk(missing_bytes(assets, folder), folder)
    for asset in assets:
        path = folder / Path(asset.name).name
        try:
            _complete(end, asset, path, client=client, run=run, emit=emit)
        except OSError as error:
            raise unwritable(path, error) from error
    return folder


def missing_bytes(assets: Sequence[Asset], folder: Path) -> int:
    """What ``fetch_all`` has to move, judged by the sizes of the files that are there."""
    found = 0
    for asset in assets:
        path = folder / Path(asset.name).name
        sizes = [one.stat().st_size for one in (path, path.with_name(path.name + ".part")) if one.exists()]
        found += asset.nbytes - min(asset.nbytes, max(sizes, default=0))
    return found


def _complete(end: ClientEnd, asset: Asset, path: Path, *, client: str, run: str, emit: Emit) -> None:
    if _intact(asset, path) or _taken_from_beside(asset, path):
        return
    part = path.with_name(path.name + ".part")
    for _ in range(2):
        _fetch(end, asset, part, client=client, run=run, emit=emit)
        if _sha256(part) == asset.sha256:
            part.replace(path)
            return
        part.unlink()
    raise DataError(f"{asset.name} arrived damaged twice (its SHA-256 is not the one that was offered)")


def _fetch(end: ClientEnd, asset: Asset, part: Path, *, client: str, run: str, emit: Emit) -> None:
    """Append to ``part`` from where an earlier attempt stopped."""
    done = part.stat().st_size if part.exists() else 0
    if done > asset.nbytes:
        part.unlink()
        done = 0
    asked, silent_s = done, 0.0
    with part.open("ab") as file:
        while done < asset.nbytes:
            while asked < asset.nbytes and asked < done + AHEAD * CHUNK_BYTES:
                with suppress(Closed):  # ``receive`` waits for the way back
                    end.send(Fetch(run=run, client=client, asset=asset.name, offset=asked, size=CHUNK_BYTES))
                asked += CHUNK_BYTES
            data = _chunk(end, asset, done)
            if data is None:
                silent_s += REPEAT_S
                if silent_s >= PATIENCE_S:
                    fix = "join again, the download goes on where it stopped"
                    raise Timeout(f"no bytes of {asset.name} for {silent_s:.0f} s; {fix}")
                asked = done
                continue
            silent_s = 0.0
            file.write(data)
            done += len(data)
            emit(Progress(client=client, what=asset.name, done=done, total=asset.nbytes))


def _chunk(end: ClientEnd, asset: Asset, offset: int) -> bytes | None:
    """The chunk at ``offset``; None when it was lost on the way and the rest must be asked for again."""
    for _ in range(int(REPEAT_S)):
        try:
            packet = end.receive(1.0)
        except RemoteProtocolError:
            return None
        if end.reconnected:
            end.reconnected = False
            return None
        if packet is not None and (data := _data(packet, asset, offset)) is not None:
            return data
    return None


def _data(packet: Packet, asset: Asset, offset: int) -> bytes | None:
    match packet.message:
        case Chunk(asset=name, offset=at) if name == asset.name and at == offset:
            return packet.tensors["data"].data.tobytes()
        case Refuse(code="protocol"):
            return None
        case Refuse() as refuse:
            raise DataError(f"{asset.name}: {refuse.reason}")
        case _:
            return None


def _intact(asset: Asset, path: Path) -> bool:
    return path.exists() and path.stat().st_size == asset.nbytes and _sha256(path) == asset.sha256


def _taken_from_beside(asset: Asset, path: Path) -> bool:
    """A second name for a file of another folder, or a copy where the disk knows no second names."""
    aside = path.with_name(f"{path.name}.beside")
    for other in sorted(path.parent.parent.glob(f"*/{path.name}")):
        if other.parent != path.parent and _intact(asset, other):
            aside.unlink(missing_ok=True)
            try:
                aside.hardlink_to(other)
            except OSError:
                shutil.copyfile(other, aside)
            aside.replace(path)
            return True
    return False


def _refuse_full_disk(need_bytes: int, folder: Path) -> None:
    if need_bytes > (have := free_disk(folder)):
        text = f"{size(need_bytes)} are to be fetched, {size(have)} are free"
        raise DataError(f"{text}: free space or choose another folder with --state", str(folder))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
