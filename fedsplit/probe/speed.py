"""Arithmetic and memory of this machine: a decoder layer and a matrix multiplication per dtype and number of threads.

The layer's speed is what plans count on. Plain multiplication is kept beside it: where it is many times faster, the
layer is held up by something else (memory, short matrices), and a larger model will run faster than is planned.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from fedsplit.devices import here
from fedsplit.probe.layer import Pass, Shape, numpy_pass, torch_pass
from fedsplit.probe.repeat import repeated

TINY = Shape(hidden=16, ffn=32, heads=2, rows=1, tokens=4)
ROWS = (1, 2, 4, 8)
COPY_BYTES = 64 * 2**20
SIDE = 512
"""Rows and columns of the matrices that are multiplied."""
SAME = 0.98
"""A number of threads this close to the best is as good: the smaller one is taken, it leaves cores to others."""


@dataclass(frozen=True)
class Engine:
    """What runs the layer: torch on a device, or NumPy."""

    torch: bool
    device: str

    def layer(self, shape: Shape, dtype: str) -> Pass:
        return torch_pass(shape, dtype, self.device) if self.torch else numpy_pass(shape)

    @property
    def threads(self) -> int:
        """Threads that it computes with now."""
        if not self.torch:
            return here.usable_threads()
        import torch

        return torch.get_num_threads()

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of threads to try: 1, 2, 4, … and all, or as many as the owner allows by ``OMP_NUM_THREADS``.

        NumPy's cannot be changed in a running process.
        """
        if not self.torch or self.device != "cpu":
            return (self.threads,)
        most = self.threads if os.environ.get("OMP_NUM_THREADS") else max(here.usable_threads(), self.threads)
        return tuple(sorted({*(2**power for power in range(most.bit_length())), most}))

    @contextmanager
    def limited(self, threads: int) -> Iterator[None]:
        """Compute with this many threads."""
        if not self.torch or threads == self.threads:
            yield
            return
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@dataclass(frozen=True)
class Speed:
    """FLOP/s, and how far the slowest tenth of the repetitions was off."""

    flops: float
    slowdown: float = 1.0


def layer_speed(engine: Engine, dtype: str, seconds: float) -> Speed:
    """Of a decoder layer, forward and backward: the best of some batch sizes, as many as ``seconds`` allow."""
    best, end = Speed(0.0), time.perf_counter() + seconds
    for rows in ROWS:
        shape = replace(Shape(), rows=rows)
        taken = repeated(engine.layer(shape, dtype), (end - time.perf_counter()) / 2)
        best = max(best, Speed(shape.operations / taken.seconds, taken.slowdown), key=lambda one: one.flops)
        if time.perf_counter() + 3 * taken.seconds > end:
            break
    return best


def speed(engine: Engine, dtype: str, seconds: float) -> float:
    """FLOP/s of ``layer_speed``."""
    return layer_speed(engine, dtype, seconds).flops


def matmul_speed(engine: Engine, dtype: str, seconds: float) -> float:
    """Operations per second of a plain multiplication; ``int8`` sums up in 32 bits. Raises what the engine raises."""
    return 2.0 * SIDE**3 / repeated(_matmul(engine, dtype), seconds).seconds


def _matmul(engine: Engine, dtype: str) -> Pass:
    noise = np.random.Generator(np.random.Philox(0)).standard_normal((SIDE, SIDE)).astype(np.float32)
    if not engine.torch:

        def plain() -> None:
            np.matmul(noise, noise)

        return plain
    import torch

    whole = torch.from_numpy(noise).to(engine.device)
    x = (16 * whole).to(torch.int8) if dtype == "int8" else whole.to(getattr(torch, dtype))

    def multiply() -> None:
        torch._int_mm(x, x) if dtype == "int8" else torch.mm(x, x)
        if engine.device != "cpu":
            torch.cuda.synchronize(engine.device)

    return multiply


def layer_overhead(engine: Engine, seconds: float) -> float:
    """Seconds of one pass through a layer that is so small that only its fixed costs count."""
    return repeated(engine.layer(TINY, "float32"), seconds).seconds / 2


def memory_bandwidth(engine: Engine, seconds: float) -> float:
    """Bytes per second read and written while copying much more than a cache holds."""
    size = int(min(COPY_BYTES, max(2**20, here.free_memory() // 8)))
    if engine.torch:
        import torch

        source = torch.ones(size // 4, device=engine.device)
        target = torch.empty_like(source)

        def copy() -> None:
            target.copy_(source)
            if engine.device != "cpu":
                torch.cuda.synchronize(engine.device)
    else:
        block = np.ones(size // 4, np.float32)
        other = np.empty_like(block)

        def copy() -> None:
            np.copyto(other, block)

    return 2 * size / repeated(copy, seconds).seconds


def best_threads(flops: dict[int, float]) -> int:
    """The number of threads to use: the fewest that are as fast as the fastest."""
    most = max(flops.values())
    return min(count for count, value in flops.items() if value >= SAME * most)
