"""Checkpoints: named arrays and a few facts of one round, whole or not there at all.

``folder/NNNN/`` holds ``arrays-<hash>.safetensors`` and ``manifest.json``. The manifest names every file with its
SHA-256 and carries a digest of itself; it is written last, so a checkpoint exists when its manifest does. A new round
is built in a folder aside and renamed; saving a round again adds the new file beside the old one and swaps the
manifest. Hence kill -9 or a power cut at any moment leaves the state before or the state after.

One process writes a folder (``RunDir.lock``); any number may read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
from msgspec import Struct
from numpy.typing import NDArray

from fedsplit.errors import DataError, InternalError
from fedsplit.state.durable import ASIDE, drop_folder, flush_folder, sweep, unwritable, write_file, write_new

FORMAT = 1
MANIFEST = "manifest.json"
DTYPES = frozenset(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"])

Arrays = Mapping[str, NDArray[Any]]


class FileEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a checkpoint."""

    sha256: str
    nbytes: int


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``digest`` is the SHA-256 of the canonical JSON of everything else."""

    format: int
    round: int
    files: dict[str, FileEntry]
    meta: dict[str, Any]
    digest: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """What ``load`` returns. ``arrays`` are writable copies; ``warnings`` says which newer rounds were damaged."""

    round: int
    arrays: dict[str, NDArray[Any]]
    meta: dict[str, Any]
    warnings: tuple[str, ...] = field(default=())


def save(
    folder: Path,
    round: int,
    arrays: Arrays,
    meta: Mapping[str, Any] | None = None,
    *,
    keep: int = 0,
    best: Iterable[int] = (),
) -> Path:
    """Write round ``round``, return its folder; with ``keep`` > 0 delete all but the last ``keep`` and ``best``.

    ``arrays`` of any real dtype (bfloat16 has no NumPy type: widen it). ``meta`` must be JSON; tuples come back as
    lists, NaN and infinities as None. Saving the same content twice gives the same bytes. Raises DataError when the
    disk refuses; the earlier checkpoints are untouched then.
    """
    content = safetensors.numpy.save({name: _plain(name, array) for name, array in arrays.items()})
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"arrays-{sha256[:12]}.safetensors"
    entry = FileEntry(sha256=sha256, nbytes=len(content))
    manifest = _sealed(Manifest(format=FORMAT, round=round, files={name: entry}, meta=dict(meta or {})))
    final = folder / f"{round:04d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        _write(final, name, content, msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=1))
    except OSError as error:
        raise unwritable(final, error) from error
    if keep:
        prune(folder, keep, best)
    return final


def _write(final: Path, name: str, content: bytes, manifest: bytes) -> None:
    if final.is_dir():
        write_file(final / name, content)
        write_file(final / MANIFEST, manifest)
        for stale in final.glob("arrays-*.safetensors"):
            if stale.name != name:
                stale.unlink()
        return
    aside = final.with_name(f".{final.name}{ASIDE}")
    aside.mkdir()
    write_new(aside / name, content)
    write_new(aside / MANIFEST, manifest)
    flush_folder(aside)
    aside.replace(final)
    flush_folder(final.parent)


def rounds(folder: Path) -> tuple[int, ...]:
    """The rounds that have a checkpoint, ascending; not verified. A missing folder has none."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(int(path.parent.name) for path in folder.glob(f"*/{MANIFEST}") if path.parent.name.isdecimal()))


def latest(folder: Path) -> int | None:
    """The newest round that has a checkpoint, or None; not verified (``load`` does that)."""
    found = rounds(folder)
    return found[-1] if found else None


def load(folder: Path, round: int | None = None, *, exact: bool = False) -> Checkpoint | None:
    """The verified checkpoint of ``round`` (default: the newest), or the newest good one before it.

    None when there is no checkpoint at all. A damaged one is passed over with a line in ``warnings``; when every
    candidate is damaged, or ``exact`` is set and this one is, DataError says what is wrong with each.
    """
    candidates = [r for r in reversed(rounds(folder)) if round is None or r <= round]
    if exact:
        candidates = [r for r in candidates if round is None or r == round][:1]
    warnings: list[str] = []
    for candidate in candidates:
        try:
            arrays, meta = _read(folder / f"{candidate:04d}", candidate)
        except DataError as error:
            warnings.append(str(error))
            continue
        used = tuple(f"{warning}; going on from round {candidate}" for warning in warnings)
        return Checkpoint(candidate, arrays, meta, used)
    if warnings:
        raise DataError("no good checkpoint is left:\n  " + "\n  ".join(warnings), str(folder))
    return None


def prune(folder: Path, keep: int, best: Iterable[int] = ()) -> None:
    """Delete all checkpoints but the newest ``keep`` and those of the rounds in ``best``."""
    found = rounds(folder)
    for round in set(found[: max(0, len(found) - keep)]) - set(best):
        drop_folder(folder / f"{round:04d}")


def _plain(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """C order and little-endian: what safetensors writes is the raw memory."""
    if array.dtype.str[1:] not in DTYPES:
        raise InternalError(f"array {name!r} has dtype {array.dtype}, a checkpoint holds real numbers only")
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _sealed(manifest: Manifest) -> Manifest:
    blank = msgspec.structs.replace(manifest, digest="")
    digest = hashlib.sha256(msgspec.json.encode(blank, order="sorted")).hexdigest()
    return msgspec.structs.replace(blank, digest=digest)


def _read(folder: Path, round: int) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    manifest = _manifest(folder, round)
    arrays: dict[str, NDArray[Any]] = {}
    for name, entry in manifest.files.items():
        content = _bytes(folder / name)
        if len(content) != entry.nbytes or hashlib.sha256(content).hexdigest() != entry.sha256:
            found = f"damaged: found {len(content)} bytes that do not hash to"
            raise DataError(f"{found} the {entry.nbytes} the manifest names", str(folder / name))
        arrays.update((key, value.copy()) for key, value in safetensors.numpy.load(content).items())
    return arrays, manifest.meta


def _manifest(folder: Path, round: int) -> Manifest:
    path = folder / MANIFEST
    try:
        manifest = msgspec.json.decode(_bytes(path), type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"damaged: {error}", str(path)) from None
    if manifest.format != FORMAT:
        fix = "use the version of fedsplit that wrote it"
        raise DataError(f"found format {manifest.format}, expected {FORMAT}; {fix}", str(path))
    if manifest != _sealed(manifest) or manifest.round != round or any(Path(n).name != n for n in manifest.files):
        raise DataError("damaged: its own digest, round or file names do not fit", str(path))
    return manifest


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", str(path)) from None
