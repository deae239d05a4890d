"""Cut one data set into client files, each with a manifest that says how it came about.

The source is read twice and never held: once for the column the law looks at, once to copy rows. Rows keep their
columns and their order.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from fedsplit.data import laws
from fedsplit.data.records import Record, describe, records
from fedsplit.data.rows import LABELS
from fedsplit.errors import ConfigError, DataError, Problem

Law = Literal["iid", "quantity", "dirichlet", "label", "domain", "field", "natural"]

FIELDS: dict[str, tuple[str, ...]] = {
    "dirichlet": LABELS,
    "label": LABELS,
    "domain": ("domain", "lang", "language", "family", "topic", "category", "source", "region"),
    "field": (),
    "natural": ("client", "client_id", "user", "user_id", "speaker", "author", "writer", "owner", "device"),
}
"""The columns each law looks at when none is named."""


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one client's file came about; ``sha256`` of the file, ``source_sha256`` of what it was cut from.

    ``values`` counts the rows of each value of ``field``.
    """

    client: str
    file: str
    rows: int
    sha256: str
    source: str
    source_sha256: str
    law: str
    seed: int
    clients: int
    field: str = ""
    options: dict[str, float | int] = {}
    values: dict[str, int] = {}
    left_out: int = 0
    """Rows of the source that no client got."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to cut and how. ``field``: the column the law looks at; empty: found by its usual names."""

    law: Law = "dirichlet"
    clients: int = 4
    field: str = ""
    alpha: float = 0.5
    per_client: int = 2
    strangers: float = 0.0
    seed: int = 0

    def check(self) -> None:
        """:raises ConfigError: with every flag that is out of range."""
        problems = []
        if self.law not in get_args(Law):
            problems.append(Problem("--by", self.law, f"one of {', '.join(get_args(Law))}"))
        if self.clients < (0 if self.law == "natural" else 1):
            problems.append(Problem("--clients", str(self.clients), "at least 1"))
        if not self.alpha > 0:
            problems.append(Problem("--alpha", str(self.alpha), "more than 0"))
        if self.per_client < 1:
            problems.append(Problem("--per-client", str(self.per_client), "at least 1"))
        if not 0 <= self.strangers < 1:
            problems.append(Problem("--strangers", str(self.strangers), "at least 0 and less than 1"))
        if problems:
            raise ConfigError(problems)

    @property
    def options(self) -> dict[str, float | int]:
        """The settings this law uses."""
        if self.law in ("dirichlet", "quantity"):
            return {"alpha": self.alpha}
        if self.law in ("label", "domain"):
            return {"per_client": self.per_client, "strangers": self.strangers}
        return {}


def partition(path: str | Path, folder: str | Path, request: Request) -> list[Manifest]:
    """Write ``NAME.jsonl`` (``.npz`` for arrays of images) and ``NAME.manifest.json`` of every client into ``folder``.

    :raises ConfigError: for flags out of range, or a folder that already holds something.
    :raises DataError: if the source is wrong, has no such column, or a client would get no row.
    """
    request.check()
    source, target = Path(path), Path(folder)
    _refuse_occupied(target)
    field, keys = _keys(source, request)
    parts = _parts(keys, request)
    if source.suffix == ".npz":
        files = _write_npz(source, target, parts)
    else:
        files = _write_lines(source, target, parts)
    origin, count = digest(source), len(keys)
    left_out = count - sum(map(len, parts.values()))
    manifests = []
    for name, rows in parts.items():
        values = Counter(keys[int(i)] for i in rows) if field else Counter[str]()
        manifest = Manifest(
            client=name,
            file=files[name].name,
            rows=len(rows),
            sha256=digest(files[name]),
            source=source.name,
            source_sha256=origin,
            law=request.law,
            seed=request.seed,
            clients=len(parts),
            field=field,
            options=request.options,
            values=dict(sorted(values.items())),
            left_out=left_out,
        )
        write_manifest(target, manifest)
        manifests.append(manifest)
    return manifests


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """``CLIENT.manifest.json`` beside the client's file."""
    file = folder / f"{manifest.client}.manifest.json"
    file.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return file


def digest(path: Path) -> str:
    """SHA-256 of a file; of a folder, of its files' names and contents in sorted order."""
    total = hashlib.sha256()
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    for file in files:
        if file != path:
            total.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def _refuse_occupied(target: Path) -> None:
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"the folder {target} is not empty; name a new one with --out")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file; expected a folder, name another with --out")


def _keys(source: Path, request: Request) -> tuple[str, list[str]]:
    """(column, its value in every row as text); the column is empty for laws that look at none."""
    if request.law in ("iid", "quantity"):
        return "", ["" for _ in records(source)]
    field = request.field
    keys = []
    for record in records(source):
        field = field or _field(record, request.law)
        if field not in record.fields:
            found = ", ".join(record.fields) or "none"
            raise DataError(f'found the columns {found}; expected "{field}"', record.file, record.line)
        keys.append(str(record.fields[field]))
    return field, keys


def _field(record: Record, law: str) -> str:
    usual = FIELDS[law]
    found = next((name for name in usual if name in record.fields), "")
    if not found:
        columns = ", ".join(record.fields) or "none"
        expected = f"one of {', '.join(usual)}; name it" if usual else "the name of one of them"
        raise DataError(f"found the columns {columns}; expected {expected} with --field", record.file, record.line)
    return found


def _parts(keys: Sequence[str], request: Request) -> dict[str, NDArray[np.int64]]:
    """Row numbers by client name."""
    n, clients, seed = len(keys), request.clients, request.seed
    if request.law == "natural":
        found = laws.natural(keys, clients)
        names = _file_names(list(found))
        return dict(zip(names, found.values(), strict=True))
    match request.law:
        case "iid":
            parts = laws.iid(n, clients, seed)
        case "quantity":
            parts = laws.quantity(n, clients, request.alpha, seed)
        case "dirichlet":
            parts = laws.dirichlet(keys, clients, request.alpha, seed)
        case "field":
            parts = laws.grouped(keys, clients)
        case _:
            parts = laws.owned(keys, clients, request.per_client, request.strangers, seed)
    empty = [k for k, part in enumerate(parts) if not len(part)]
    if empty:
        raise DataError(f"client {empty[0]} of {clients} would get no row; ask for fewer clients")
    width = len(str(clients - 1))
    return {f"client-{k:0{width}}": part for k, part in enumerate(parts)}


def _file_names(owners: Sequence[str]) -> list[str]:
    """A file name for each owner, unique also where names differ only in case or in odd characters."""
    names: list[str] = []
    for owner in owners:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", owner).strip("-")[:40] or "owner"
        taken = {one.lower() for one in names}
        choices = (f"{stem}-{i}" for i in itertools.count(2))
        names.append(stem if stem.lower() not in taken else next(one for one in choices if one.lower() not in taken))
    return names


def _write_lines(source: Path, target: Path, parts: Mapping[str, NDArray[np.int64]]) -> dict[str, Path]:
    """JSON lines; the path of an image is rewritten relative to its new place."""
    names = list(parts)
    owner = {int(i): k for k, name in enumerate(names) for i in parts[name]}
    target.mkdir(parents=True, exist_ok=True)
    files = {name: target / f"{name}.jsonl" for name in names}
    is_folder = describe(source).startswith("a folder")
    buffers: list[list[bytes]] = [[] for _ in names]
    for i, record in enumerate(records(source)):
        if i in owner:
            fields = _moved(record.fields, target) if is_folder else record.fields
            buffers[owner[i]].append(_line(fields, record))
        if i % 10_000 == 9_999:
            _flush(buffers, files.values())
    _flush(buffers, files.values())
    return files


def _moved(fields: Mapping[str, Any], target: Path) -> dict[str, Any]:
    return {**fields, "image": Path(os.path.relpath(fields["image"], target)).as_posix()}


def _line(fields: Mapping[str, Any], record: Record) -> bytes:
    try:
        return msgspec.json.encode(fields) + b"\n"
    except TypeError as error:
        raise DataError(f"a cell cannot be written as JSON: {error}", record.file, record.line) from None


def _flush(buffers: list[list[bytes]], files: Iterable[Path]) -> None:
    # Files are opened one after the other: a thousand clients would exceed the limit of open files.
    for lines, file in zip(buffers, files, strict=True):
        with file.open("ab") as stream:
            stream.writelines(lines)
        lines.clear()


def _write_npz(source: Path, target: Path, parts: Mapping[str, NDArray[np.int64]]) -> dict[str, Path]:
    target.mkdir(parents=True, exist_ok=True)
    rows = [record.fields for record in records(source)]
    files = {}
    for name, indices in parts.items():
        chosen = [rows[int(i)] for i in indices]
        images = np.stack([one["image"] for one in chosen])
        files[name] = target / f"{name}.npz"
        np.savez_compressed(files[name], images=images, labels=np.array([one["label"] for one in chosen]))
    return files


def write_jsonl(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    with file.open("wb") as stream:
        stream.writelines(msgspec.json.encode(row) + b"\n" for row in rows)
