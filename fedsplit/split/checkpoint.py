"""The safetensors files of a folder as one table of tensors, read by byte range.

The files are not mapped as a whole: pages of a mapping count as this process's memory, and mapped tensors start at any
byte, where torch's kernels are slower and round differently (tests/split/test_loader.py measures both). A tensor is
read into fresh, aligned memory in small pieces, so that loading needs the tensor itself and one piece beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedsplit.errors import ConfigError

PIECE_BYTES = 1 << 24
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Dtype names of the safetensors format, and what they are in torch."""

PART_PREFIX = "part-"
"""Files that hold a part of a model (``write``) are named so; they add to whatever else a folder holds."""


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: where its bytes are. ``dtype`` is the format's name, a key of ``DTYPES``."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def read(self, dtype: torch.dtype, device: str | torch.device = "cpu") -> Tensor:
        """The values as ``dtype`` in fresh memory on ``device``."""
        stored = DTYPES[self.dtype]
        target = torch.empty(self.shape, dtype=dtype, device=device)
        if dtype == stored and target.device.type == "cpu":
            self._fill(_bytes_of(target), 0)
            return target
        flat, step = target.view(-1), PIECE_BYTES // stored.itemsize
        piece = torch.empty(min(step, flat.numel()), dtype=stored)
        for start in range(0, flat.numel(), step):
            part = piece[: min(step, flat.numel() - start)]
            self._fill(_bytes_of(part), start * stored.itemsize)
            flat[start : start + part.numel()].copy_(part)
        return target

    def slab(self, first: int, count: int, dtype: torch.dtype) -> Tensor:
        """``count`` rows (of the first dimension) from ``first``, as ``dtype`` on the CPU."""
        stored, width = DTYPES[self.dtype], math.prod(self.shape[1:])
        rows = torch.empty((count, *self.shape[1:]), dtype=stored)
        self._fill(_bytes_of(rows), first * width * stored.itemsize)
        return rows.to(dtype)

    def take(self, rows: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The named rows, in that order, as ``dtype`` on the CPU."""
        stored, width = DTYPES[self.dtype], math.prod(self.shape[1:])
        taken = torch.empty((len(rows), *self.shape[1:]), dtype=stored)
        buffer, size = _bytes_of(taken), width * stored.itemsize
        with self.file.open("rb", buffering=0) as stream:
            for i, row in enumerate(rows):
                stream.seek(self.offset + row * size)
                if stream.readinto(buffer[i * size : (i + 1) * size]) != size:
                    _ended(self.file)
        return taken.to(dtype)

    def sample(self, points: int = 4, size: int = 64) -> bytes:
        """``size`` bytes at ``points`` places from the first to the last; all of a small tensor."""
        if self.nbytes <= points * size:
            return b"".join(self.pieces())
        with self.file.open("rb") as stream:
            taken = []
            for point in range(points):
                stream.seek(self.offset + (self.nbytes - size) * point // (points - 1))
                taken.append(stream.read(size))
        return b"".join(taken)

    def pieces(self) -> Iterator[bytes]:
        """All bytes, at most ``PIECE_BYTES`` at a time."""
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            left = self.nbytes
            while left:
                piece = stream.read(min(left, PIECE_BYTES))
                left -= len(piece)
                yield piece

    def _fill(self, target: memoryview, start: int) -> None:
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.offset + start)
            done = 0
            while done < len(target):
                done += stream.readinto(target[done : done + PIECE_BYTES]) or _ended(self.file)


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a folder by their name in the file, and the files' own metadata."""

    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]
    files: tuple[Path, ...]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of a folder's safetensors files.

    Raises ConfigError when there are none, one is damaged, or one name stands for two different shapes.
    """
    files = _files(folder)
    if not files:
        others = ", ".join(sorted(path.name for path in folder.glob("*.bin"))) or "none"
        raise ConfigError(
            f"{folder}: found no safetensors file (other weights: {others}), expected model.safetensors or its shards; "
            "convert the model with save_pretrained(..., safe_serialization=True)"
        )
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for file in files:
        header, start = _header(file)
        metadata |= {key: str(value) for key, value in header.pop("__metadata__", {}).items()}
        for name, entry in header.items():
            stored = _stored(file, name, entry, start)
            if name in tensors and tensors[name].shape != stored.shape:
                raise ConfigError(
                    f"{file}: tensor {name} has shape {stored.shape}, {tensors[name].file} says {tensors[name].shape}; "
                    "keep the files of one model in the folder"
                )
            tensors.setdefault(name, stored)
    return Checkpoint(tensors, metadata, tuple(files))


def write(tensors: Mapping[str, Stored], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with exactly these tensors, bytes unchanged, piece by piece; appears when complete."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name, stored in sorted(tensors.items()):
        header[name] = {
            "dtype": stored.dtype,
            "shape": list(stored.shape),
            "data_offsets": [offset, offset + stored.nbytes],
        }
        offset += stored.nbytes
    aside = path.with_name(path.name + ".partial")
    with aside.open("wb") as stream:
        stream.write(encode_header(header))
        for _, stored in sorted(tensors.items()):
            for piece in stored.pieces():
                stream.write(piece)
    aside.replace(path)


def encode_header(header: Mapping[str, object]) -> bytes:
    """A safetensors header with its length in front, padded so that the data starts at a multiple of 64 bytes."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text


def _files(folder: Path) -> list[Path]:
    """The files that make up one model. A hub folder may hold the same weights twice under other names."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    shards: Iterable[str] = []
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text("utf-8")).get("weight_map", {}).values()))
    found = [folder / shard for shard in shards if (folder / shard).is_file()]
    if not found and whole.is_file():
        found = [whole]
    found += sorted(folder.glob(f"{PART_PREFIX}*.safetensors"))
    return found or sorted(folder.glob("*.safetensors"))


def _header(file: Path) -> tuple[dict[str, dict[str, object]], int]:
    """The table of tensors, and where their bytes begin."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, 100_000_000):
            raise ConfigError(f"{file}: not a safetensors file, or cut short ({size} bytes); download it again")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise ConfigError(f"{file}: the header is not JSON ({error}); download the file again") from None
    if not isinstance(header, dict):
        raise ConfigError(f"{file}: the header is no table of tensors; download the file again")
    return header, 8 + length


def _stored(file: Path, name: str, entry: Mapping[str, object], start: int) -> Stored:
    try:
        dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])  # type: ignore[attr-defined]
        begin, end = (int(n) for n in entry["data_offsets"])  # type: ignore[attr-defined]
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{file}: the entry of tensor {name} is damaged; download the file again") from None
    if dtype not in DTYPES:
        raise ConfigError(f"{file}: tensor {name} has dtype {dtype}, expected one of {', '.join(DTYPES)}")
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize or start + end > file.stat().st_size:
        raise ConfigError(f"{file}: tensor {name} is cut short; download the file again")
    return Stored(file, dtype, shape, start + begin, end - begin)


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data


def _ended(file: Path) -> int:
    raise ConfigError(f"{file}: ended early; download it again")
