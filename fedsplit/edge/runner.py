"""Runs a folder's graphs with onnxruntime, and looks token embeddings up in their file.

Weights stay mapped from the disk, each file once for all graphs: packed copies would be faster by a little and take
their size again in memory. They are inputs of the graphs, so layers of one kind share one session.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsplit.edge.manifest import TABLE, Graph, Manifest, Table, Weight
from fedsplit.edge.versions import check_runtime, runtime
from fedsplit.errors import DataError, MissingExtra

Floats = NDArray[np.float32]


class Runner:
    """Graphs by name, each file loaded when it is first asked for. ``threads`` 0: as many as onnxruntime takes.

    Raises DataError: onnxruntime is too old for them. MissingExtra: it is not there.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int = 0) -> None:
        check_runtime(manifest, folder)
        self.folder, self.manifest = folder, manifest
        self._threads = threads
        self._sessions: dict[str, Any] = {}
        self._weights: dict[str, dict[str, NDArray[Any]]] = {}
        self._arrays = Arrays(folder)
        self._table = Lookup(folder / TABLE, manifest.table) if manifest.table is not None else None
        self.head = Lookup(folder / manifest.head_file, manifest.head) if manifest.head is not None else None

    def run(self, name: str, inputs: dict[str, Any]) -> dict[str, NDArray[Any]]:
        """Outputs by name. ``inputs`` may hold more than the graph reads. Raises DataError for a broken graph."""
        graph = self.manifest.graphs[name]
        session = self._sessions.get(graph.file) or self._load(graph)
        if name not in self._weights:
            self._weights[name] = {key: self._arrays.get(weight) for key, weight in graph.weights.items()}
        found = session.run(None, {key: inputs[key] for key in graph.inputs} | self._weights[name])
        return dict(zip(graph.outputs, found, strict=True))

    def embeddings(self, ids_BT: NDArray[np.int64]) -> Floats:
        """Rows of the token embedding, (B, T, D)."""
        assert self._table is not None, "images have no token embedding"
        return self._table.rows(ids_BT)

    def _load(self, graph: Graph) -> Any:
        path = self.folder / graph.file
        try:
            session = open_session(path, self._threads)
        except MissingExtra:
            raise
        except Exception as error:  # onnxruntime has a dozen kinds of errors of its own
            first = str(error).splitlines()[0]
            fix = f"made for ONNX opset {self.manifest.opset}; is onnxruntime recent enough?"
            raise DataError(f"cannot be run: {first} ({fix})", str(path)) from error
        self._sessions[graph.file] = session
        return session


class Arrays:
    """What the files of a folder hold, each mapped once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mapped: dict[str, NDArray[np.uint8]] = {}

    def get(self, weight: Weight) -> NDArray[Any]:
        """Raises DataError for a file that is not there, or too short."""
        path = self._folder / weight.file
        if weight.file not in self._mapped:
            self._mapped[weight.file] = _mapped(path)
        raw = self._mapped[weight.file][weight.offset : weight.offset + weight.nbytes]
        if len(raw) != weight.nbytes:
            need = weight.offset + weight.nbytes
            found = f"found {len(self._mapped[weight.file]):,} bytes, expected at least {need:,}"
            raise DataError(f"{found}; delete the folder to fetch it again", str(path))
        return raw.view(weight.dtype).reshape(weight.shape)


def _mapped(path: Path) -> NDArray[np.uint8]:
    try:
        return np.asarray(np.memmap(path, np.uint8, "r"))
    except (OSError, ValueError) as error:  # not there, or empty
        raise DataError(f"cannot be read: {error}; delete the folder to fetch it again", str(path)) from error


class Lookup:
    """A table of embeddings whose rows are read from its file when they are asked for.

    Read, not mapped: pages of a mapping count as this process's memory until the system wants them back.
    """

    def __init__(self, path: Path, table: Table) -> None:
        found = path.stat().st_size if path.is_file() else 0
        if found != table.rows * table.row_bytes:
            expected = f"{table.rows:,} rows of {table.row_bytes:,} bytes"
            raise DataError(
                f"found {found:,} bytes, expected {expected}; delete the folder to fetch it again", str(path)
            )
        self._path, self._table = path, table

    def rows(self, ids: NDArray[np.int64]) -> Floats:
        """(…, D) in float32. Raises DataError for an id outside the table, or a file that was cut meanwhile."""
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self._table.rows:
            raise DataError(f"found token {int(ids.max())}, the model has {self._table.rows}: another tokenizer?")
        unique, places = np.unique(ids, return_inverse=True)
        found: Floats = self._table.floats(self._read(unique))[places.reshape(-1)]
        return found.reshape(*ids.shape, self._table.width)

    def slabs(self, count: int) -> Iterator[tuple[int, Floats]]:
        """(first row, up to ``count`` rows) from the first to the last."""
        for start in range(0, self._table.rows, count):
            size = min(count, self._table.rows - start)
            raw = np.fromfile(self._path, np.uint8, size * self._table.row_bytes, offset=start * self._table.row_bytes)
            if len(raw) != size * self._table.row_bytes:
                raise DataError(f"ends before row {start + size}; delete the folder to fetch it again", str(self._path))
            yield start, self._table.floats(raw.reshape(size, self._table.row_bytes))

    def _read(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        size = self._table.row_bytes
        raw = np.empty((len(ids), size), np.uint8)
        with self._path.open("rb", buffering=0) as stream:
            for row, place in zip(raw, ids.tolist(), strict=True):
                stream.seek(place * size)
                if stream.readinto(row.data) != size:
                    raise DataError(f"ends before row {place}; delete the folder to fetch it again", str(self._path))
        return raw


def open_session(path: Path, threads: int = 0) -> Any:
    """An onnxruntime session as devices run it. Raises MissingExtra; and what onnxruntime raises on a broken graph.

    All sessions share one pool of memory, grown by what is asked for: what a layer frees the next one uses. Patterns of
    memory, one block for all of a graph's values, would be blocks of different sizes that leave holes.
    """
    onnxruntime = runtime()
    _share_memory()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@cache
def _share_memory() -> None:
    onnxruntime = runtime()
    grown = onnxruntime.OrtArenaCfg({"max_mem": 0, "arena_extend_strategy": 1, "initial_chunk_size_bytes": 1 << 16})
    kind, where = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", kind, 0, where), grown)
