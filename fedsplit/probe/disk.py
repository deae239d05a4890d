"""How fast files are written and read where a run would keep its own: what a download and a checkpoint wait for."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from fedsplit.devices import here
from fedsplit.probe.link import noise

BLOCK_BYTES = 4 * 2**20
MOST_BYTES = 64 * 2**20
LEAST_FREE_BYTES = 2**30


def disk_rates(folder: Path, seconds: float) -> tuple[float, float]:
    """(written, read) bytes per second to the disk itself, up to 64 MiB; (0, 0) where there is no room or no right to.

    Reading asks the system to forget the file first; where it cannot, the rate is that of its cache.
    """
    if here.free_disk(folder) < LEAST_FREE_BYTES:
        return 0.0, 0.0
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return _rates(file.fileno(), seconds / 2)
    except OSError:
        return 0.0, 0.0


def _rates(file: int, seconds: float) -> tuple[float, float]:
    block, written = noise(BLOCK_BYTES).tobytes(), 0
    start = time.perf_counter()
    while written == 0 or (time.perf_counter() - start < seconds and written < MOST_BYTES):
        written += os.write(file, block)
        os.fsync(file)
    wrote_s = time.perf_counter() - start
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(file, 0, os.SEEK_SET)
    start, read = time.perf_counter(), 0
    while (part := len(os.read(file, BLOCK_BYTES))) and (read == 0 or time.perf_counter() - start < seconds):
        read += part
    return written / wrote_s, read / (time.perf_counter() - start)
