"""``fedsplit bench merge``: what a server does at the end of a round, without ever forming an M x N matrix.

FlexLoRA's redistribution, the sum of all clients' products cut to one rank, from thin factors (QR, SVD of the small
core) and as it is written in the paper: the dense sum and its SVD. Then the same sum over many clients in one pass, in
memory that does not grow with them. Legend: M out, N in, R rank, K clients.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsplit.devices.here import peak_memory
from fedsplit.lora.lowrank import LowRank
from fedsplit.lora.streaming import RunningSum
from fedsplit.method.merge import total
from fedsplit.seeds import generator


def rows(
    size: int = 4096, clients: int = 10, rank: int = 16, repeats: int = 3, streamed: int = 1000, dense: bool = True
) -> list[dict[str, object]]:
    """Seconds to merge ``clients`` updates of ``rank`` for a module of ``size`` x ``size``; float32, as updates come.

    ``dense_seconds``: forming the sum and its SVD, once; ``--no-dense`` leaves it out. ``difference``: of the two
    products, relative. First come sums over a tenth of ``streamed`` clients and over all of them, one client after the
    other: ``peak_bytes`` is the whole process's, ``difference`` the bound that the running sum itself gives.
    """
    found = [_streamed(size, rank, count) for count in (streamed // 10, streamed) if count]
    parts = list(updates(size, rank, clients))
    p_K = [1 / clients] * clients
    seconds, best = _timed(lambda: total(parts, p_K).truncate(rank), repeats)
    row: dict[str, object] = {"clients": clients, "size": size, "rank": rank, "way": "at once"}
    row |= {"seconds": round(seconds, 5)}
    if dense:
        dense_seconds, wanted = _timed(lambda: _dense(parts, p_K, rank), 1)
        difference = float(np.linalg.norm(best.dense() - wanted) / np.linalg.norm(wanted))
        row |= {
            "dense_seconds": round(dense_seconds, 3),
            "times": round(dense_seconds / seconds, 1),
            "difference": float(f"{difference:.2g}"),
        }
    return [*found, row]


def updates(size: int, rank: int, count: int) -> Iterator[LowRank]:
    """Clients that drifted from common factors: shared directions, and some of their own."""
    common = generator("bench", "merge", "common")
    b, a = common.standard_normal((size, rank)), common.standard_normal((rank, size))
    for number in range(count):
        own = generator("bench", "merge", number)
        b_MR = b + 0.1 * own.standard_normal((size, rank))
        a_RN = a + 0.1 * own.standard_normal((rank, size))
        yield LowRank(b_MR.astype(np.float32), a_RN.astype(np.float32))


def _dense(parts: Sequence[LowRank], p_K: Sequence[float], rank: int) -> NDArray[Any]:
    whole = np.zeros(parts[0].shape, np.float32)
    for part, p in zip(parts, p_K, strict=True):
        whole += np.float32(p) * part.dense()
    u, s, vt = np.linalg.svd(whole, full_matrices=False)
    found: NDArray[Any] = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return found


def _streamed(size: int, rank: int, clients: int) -> dict[str, object]:
    running = RunningSum(2 * rank, room=6 * rank)
    spent = 0.0
    for part in updates(size, rank, clients):
        begun = time.perf_counter()
        running.add(part, 1 / clients)
        spent += time.perf_counter() - begun
    found = running.total()
    return {
        "clients": clients,
        "size": size,
        "rank": rank,
        "way": "streamed",
        "seconds": round(spent, 5),
        "difference": float(f"{running.lost / found.norm():.2g}"),
        "peak_bytes": peak_memory(),
    }


def _timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    found, seconds = None, []
    for _ in range(repeats):
        begun = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds), found
