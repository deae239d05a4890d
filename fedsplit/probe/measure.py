"""Measure this machine once, in a few seconds: what the planner needs to know, nothing about its owner.

Speed of a real decoder layer per dtype (torch where it is installed, else NumPy), memory bandwidth, free memory within
container limits, disk, cores and threads; and the link to a server through an exchange that the caller provides.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np

from fedsplit.devices import here
from fedsplit.devices.find import own, own_path
from fedsplit.devices.load import foreign, save
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import ConfigError, MissingExtra
from fedsplit.events import Emit, Note, Progress, silent
from fedsplit.probe.layer import Pass, Shape, numpy_pass, torch_pass
from fedsplit.probe.link import Exchange, measure_link, timed
from fedsplit.probe.runtime import runtime_bytes

TINY = Shape(hidden=16, ffn=32, heads=2, rows=1, tokens=4)
ROWS = (1, 2, 4, 8)
COPY_BYTES = 64 * 2**20
SLOW_HALF = 0.25
"""A 16-bit speed below this share of float32's is emulation: worth a word, not worth using."""


@dataclass(frozen=True)
class Engine:
    """What runs the layer: torch on a device, or NumPy."""

    torch: bool
    device: str

    def layer(self, shape: Shape, dtype: str) -> Pass:
        return torch_pass(shape, dtype, self.device) if self.torch else numpy_pass(shape)


def this_device(*, emit: Emit = silent, seconds: float = 5.0, device: str = "cpu") -> DeviceProfile:
    """This machine's profile as kept; measured and kept first where that was never done.

    ``device``: ``cpu``, ``cuda`` or ``cuda:1``, each kept apart. Free memory and disk are looked up now: they change,
    the rest does not. Raises ConfigError for a kept file that is not a profile.
    """
    path = own_path(device)
    kept = own(device) if path.is_file() else _measured_once(path, seconds, device, emit)
    if warning := foreign(kept):
        emit(Note(text=warning, warning=True))
    free = min(_memory(Engine(device != "cpu", device))[1], kept.memory_bytes)
    return msgspec.structs.replace(
        kept, free_memory_bytes=max(free, kept.reserve_bytes), disk_free_bytes=here.free_disk(Path.cwd())
    )


def _measured_once(path: Path, seconds: float, device: str, emit: Emit) -> DeviceProfile:
    """A service may have nowhere to write: then it measures at every start, and says so."""
    emit(Note(text=f"measuring this device once; the result is kept in {path}"))
    found = measure(seconds=seconds, device=device, emit=emit)
    try:
        save(found, path)
    except ConfigError as error:
        emit(Note(text=f"{error}; set FEDSPLIT_PROFILE to a file that can be", warning=True))
    return found


def measure(
    name: str = "",
    *,
    seconds: float = 5.0,
    device: str = "cpu",
    folder: Path | None = None,
    exchange: Exchange | None = None,
    emit: Emit = silent,
) -> DeviceProfile:
    """The profile of this machine, in about ``seconds``.

    ``device``: ``cpu``, ``cuda`` or ``cuda:1``. ``folder``: where a run would keep its files, for the free disk space.
    Raises ConfigError for a GPU that is not there, MissingExtra for one without torch.
    """
    engine = Engine(find_spec("torch") is not None, device)
    if device != "cpu":
        _need_gpu(engine)
    runtime = _runtime(engine)  # before the layers that are timed leave holes in the heap
    total = 4 if exchange is None else 5
    emit(Progress(what="speed in float32", done=0, total=total, unit="parts"))
    flops = {"float32": speed(engine, "float32", seconds * 0.35)}
    emit(Progress(what="speed in bfloat16", done=1, total=total, unit="parts"))
    if engine.torch:
        flops |= _half(engine, flops["float32"], seconds * 0.25, emit)
    emit(Progress(what="overhead of a layer", done=2, total=total, unit="parts"))
    overhead = layer_overhead(engine, seconds * 0.1)
    emit(Progress(what="memory bandwidth", done=3, total=total, unit="parts"))
    bandwidth = memory_bandwidth(engine, seconds * 0.15)
    if exchange is not None:
        emit(Progress(what="link", done=4, total=total, unit="parts"))
    link = measure_link(exchange, seconds * 0.15) if exchange is not None else None
    emit(Progress(what="measured", done=total, total=total, unit="parts"))
    memory, free = _memory(engine)
    return DeviceProfile(
        name=name or platform.node().split(".")[0] or "this-machine", arch=here.architecture(), cores=here.cores(),
        threads=_threads(engine), flops={key: _round(value) for key, value in flops.items()},
        layer_overhead_s=_round(overhead), memory_bandwidth_bps=_round(bandwidth), memory_bytes=memory,
        free_memory_bytes=min(free, memory), runtime_bytes=runtime,
        disk_free_bytes=here.free_disk(folder or Path.cwd()), link=link, measured=date.today().isoformat(),
        source=_source(engine),
    )  # fmt: skip


def speed(engine: Engine, dtype: str, seconds: float) -> float:
    """FLOP/s of a decoder layer, forward and backward: the best of some batch sizes, as many as ``seconds`` allow."""
    best, end = 0.0, time.perf_counter() + seconds
    for rows in ROWS:
        shape = replace(Shape(), rows=rows)
        took = _median(engine.layer(shape, dtype), (end - time.perf_counter()) / 2)
        best = max(best, shape.operations / took)
        if time.perf_counter() + 3 * took > end:
            break
    return best


def layer_overhead(engine: Engine, seconds: float) -> float:
    """Seconds of one pass through a layer that is so small that only its fixed costs count."""
    return _median(engine.layer(TINY, "float32"), seconds) / 2


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

    return 2 * size / _median(copy, seconds)


def _half(engine: Engine, float32: float, seconds: float, emit: Emit) -> dict[str, float]:
    try:
        found = speed(engine, "bfloat16", seconds)
    except (RuntimeError, NotImplementedError) as error:
        emit(Note(text=f"bfloat16 does not run here: {error}", warning=True))
        return {}
    if found < SLOW_HALF * float32:
        emit(Note(text=f"bfloat16 is emulated here: {float32 / found:.0f} times slower than float32"))
    return {"bfloat16": found}


def _median(work: Callable[[], None], seconds: float) -> float:
    """Median seconds of ``work``: once to warm up, then at least once, at most 200 times, for ``seconds``."""
    end = time.perf_counter() + seconds
    work()
    times = [timed(work)]
    while time.perf_counter() < end and len(times) < 200:
        times.append(timed(work))
    return statistics.median(times)


def _need_gpu(engine: Engine) -> None:
    if not engine.torch:
        raise MissingExtra("torch", "torch")
    import torch

    from fedsplit.split.placement import device_of

    device_of(engine.device)
    try:
        torch.zeros(1, device=engine.device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"device {engine.device}: {first}; see what is there with nvidia-smi, or use cpu") from error


def _memory(engine: Engine) -> tuple[int, int]:
    if engine.device == "cpu":
        return here.total_memory(), here.free_memory()
    import torch

    free, total = torch.cuda.mem_get_info(engine.device)
    return int(total), int(free)


def _threads(engine: Engine) -> int:
    if not engine.torch:
        return here.usable_threads()
    import torch

    return torch.get_num_threads()


def _runtime(engine: Engine) -> int:
    """On a GPU the process's own memory is not the GPU's."""
    if engine.device != "cpu":
        return 0
    engine.layer(TINY, "float32")()
    return runtime_bytes(torch=engine.torch)


def _source(engine: Engine) -> str:
    power = {True: ", on battery", False: ", on mains", None: ""}[here.on_battery()]
    return f"measured with {'torch' if engine.torch else 'NumPy'} on {engine.device}{power}"


def _round(value: float) -> float:
    return float(f"{value:.3g}")
