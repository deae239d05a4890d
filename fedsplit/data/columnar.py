"""Arrow and Parquet: single files, and folders as Hugging Face datasets writes them. Needs pyarrow, nothing else.

``dataset.save_to_disk`` leaves ``dataset_info.json`` and Arrow streams; a repository from the hub holds Parquet files
named after their split. Where a folder holds several splits, ``FOLDER#SPLIT`` names one.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsplit.errors import DataError, MissingExtra

_SUFFIXES = (".parquet", ".arrow")
_ROWS_AT_ONCE = 1024
_SPLIT = re.compile(r"(?P<split>[A-Za-z0-9_.]+?)(-\d{5}-of-\d{5}.*)?$")


def names_a_dataset(path: Path) -> bool:
    """True for a folder with Arrow or Parquet files, also as ``FOLDER#SPLIT``."""
    folder, _ = _divided(path)
    return folder.is_dir() and bool(_tables(folder))


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file or folder; a batch of at most 1,024 is in memory at a time.

    :raises MissingExtra: without pyarrow.
    :raises DataError: for a damaged file, or a folder of which several splits could be meant.
    """
    for file in _chosen(path):
        reader = _parquet_batches(file) if file.suffix == ".parquet" else _arrow_batches(file)
        try:
            for batch in reader:
                yield from batch.to_pylist()
        except (OSError, ValueError) as error:
            # pyarrow's own errors are subclasses of these two.
            raise DataError(f"the {file.suffix[1:]} file is damaged: {error}", str(file)) from None


def _divided(path: Path) -> tuple[Path, str]:
    if path.exists() or "#" not in path.name:
        return path, ""
    name, _, split = path.name.rpartition("#")
    return path.with_name(name), split


def _tables(folder: Path) -> list[Path]:
    found = [one for depth in ("*", "*/*") for one in folder.glob(depth) if one.suffix in _SUFFIXES]
    # The datasets library leaves its caches beside the data; they hold rows that were already counted.
    return sorted(one for one in found if not one.name.startswith(("cache-", "tmp")))


def _chosen(path: Path) -> list[Path]:
    folder, wanted = _divided(path)
    if folder.is_file():
        return [folder]
    splits: dict[str, list[Path]] = {}
    for file in _tables(folder):
        splits.setdefault(_split(file, folder), []).append(file)
    if wanted in splits:
        return splits[wanted]
    if wanted or len(splits) > 1:
        found = f'no split "{wanted}"' if wanted else f"{len(splits)} splits"
        names = ", ".join(f"{folder.name}#{name}" for name in sorted(splits))
        raise DataError(f"found {found}; expected the name of one: {names}", str(folder))
    return next(iter(splits.values()))


def _split(file: Path, folder: Path) -> str:
    """``train`` for ``train/data-00000-of-00001.arrow`` and for ``data/train-00000-of-00001.parquet``."""
    match = _SPLIT.match(file.stem)
    name = match["split"] if match else file.stem
    return file.parent.name if name == "data" and file.parent != folder else name


def _pyarrow(module: str, file: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtra(f"{file.name}: pyarrow, which reads {file.suffix[1:]} files,", "data") from None


def _parquet_batches(file: Path) -> Iterator[Any]:
    parquet = _pyarrow("pyarrow.parquet", file)
    with parquet.ParquetFile(file) as table:
        yield from table.iter_batches(batch_size=_ROWS_AT_ONCE)


def _arrow_batches(file: Path) -> Iterator[Any]:
    arrow = _pyarrow("pyarrow", file)
    with arrow.memory_map(str(file)) as source:
        try:
            stream = arrow.ipc.open_stream(source)
        except arrow.ArrowInvalid:
            # datasets writes streams, other tools the file format.
            source.seek(0)
            table = arrow.ipc.open_file(source)
            stream = (table.get_batch(i) for i in range(table.num_record_batches))
        yield from stream
