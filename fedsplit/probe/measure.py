"""Measure this machine once: what the planner needs to know, nothing about its owner.

Speed of a real decoder layer per dtype (torch where it is installed, else NumPy), memory bandwidth, free memory within
container limits, disk, cores and threads; and the link to a server by a measurement that the caller provides. In
full also every number of threads, plain multiplication and the disk: ``fedsplit profile`` does that.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import msgspec

from fedsplit.devices import here
from fedsplit.devices.find import own, own_path
from fedsplit.devices.load import foreign, save
from fedsplit.devices.profile import DeviceProfile, Link
from fedsplit.errors import ConfigError, MissingExtra
from fedsplit.events import Emit, Note, Progress, silent
from fedsplit.probe.disk import disk_rates
from fedsplit.probe.runtime import runtime_bytes
from fedsplit.probe.speed import (
    TINY,
    Engine,
    Speed,
    best_threads,
    layer_overhead,
    layer_speed,
    matmul_speed,
    memory_bandwidth,
    speed,
)

__all__ = ["TINY", "Engine", "layer_overhead", "measure", "memory_bandwidth", "speed", "this_device"]

OTHERS = 0.3
"""Of this machine's cores: what other programs may take before a measurement is doubtful."""
SLOW_HALF = 0.25
"""A 16-bit speed below this share of float32's is emulation: worth a word, not worth using."""
ToServer = Callable[[float], Link]
"""Measures the way to a server in about that many seconds (``fedsplit.probe.link.measure_link`` over an exchange)."""

PRODUCTS = ("float32", "bfloat16", "int8")


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
    emit(Note(text=f"measuring this device once, briefly (`fedsplit profile`: in full); the result is kept in {path}"))
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
    link: ToServer | None = None,
    full: bool = False,
    emit: Emit = silent,
) -> DeviceProfile:
    """The profile of this machine, in about ``seconds``; ``full``: with every number of threads, products and the disk.

    ``device``: ``cpu``, ``cuda`` or ``cuda:1``. ``folder``: where a run would keep its files, for the disk. ``link``:
    measures the way to a server.
    Raises ConfigError for a GPU that is not there, MissingExtra for one without torch, and what ``link`` raises.
    """
    engine = Engine(find_spec("torch") is not None, device)
    if device != "cpu":
        _need_gpu(engine)
    runtime = _runtime(engine)  # before the layers that are timed leave holes in the heap
    folder = folder or Path.cwd()
    if full and (others := here.others()) > OTHERS:
        text = f"other programs take {others:.0%} of this machine: measure again when it is quiet"
        emit(Note(text=text, warning=True))
    # First: a server that is not there is heard of at once.
    survey = Survey(engine, seconds, full, link is not None, emit)
    way = survey.link(link) if link is not None else None
    threads, flops = survey.speeds()
    with engine.limited(threads):
        products = survey.products() if full else {}
        overhead, bandwidth = survey.overhead(), survey.bandwidth()
    written, read = survey.disk(folder) if full else (0.0, 0.0)
    survey.end()
    memory, free = _memory(engine)
    return DeviceProfile(
        name=name or platform.node().split(".")[0] or "this-machine", arch=here.architecture(), cores=here.cores(),
        threads=threads, flops={dtype: _round(found[threads].flops) for dtype, found in flops.items()},
        flops_by_threads=_by_threads(flops), matmul_flops={key: _round(value) for key, value in products.items()},
        layer_overhead_s=_round(overhead), memory_bandwidth_bps=_round(bandwidth), memory_bytes=memory,
        free_memory_bytes=min(free, memory), runtime_bytes=runtime, edge=not engine.torch,
        disk_free_bytes=here.free_disk(folder),
        disk_write_bps=_round(written), disk_read_bps=_round(read), link=way,
        slowdown=_round(flops["float32"][threads].slowdown), measured=date.today().isoformat(), source=_source(engine),
    )  # fmt: skip


@dataclass
class Survey:
    """The measurements one after the other, each with its share of ``seconds``, and a word of progress before each."""

    engine: Engine
    seconds: float
    full: bool
    linked: bool
    emit: Emit
    done: int = 0
    total: int = field(init=False)

    def __post_init__(self) -> None:
        counts = self.engine.counts if self.full else (self.engine.threads,)
        self.counts = counts
        self.total = self.linked + len(counts) * (len(self.dtypes) + self.full) + 2 + 2 * self.full

    @property
    def dtypes(self) -> tuple[str, ...]:
        """NumPy has no bfloat16."""
        return ("float32", "bfloat16") if self.engine.torch else ("float32",)

    def link(self, to: ToServer) -> Link:
        self._begin("link")
        return to(0.17 * self.seconds)

    def speeds(self) -> tuple[int, dict[str, dict[int, Speed]]]:
        """(threads to use, dtype → threads → speed of a layer)."""
        share = self.seconds * (0.3 if self.full else 0.35) / len(self.counts)
        visits = 2 if self.full else 1  # what disturbs one number of threads for a second must not decide
        found = {"float32": {count: self._layer("float32", count, share / visits) for count in self.counts}}
        for count in self.counts * (visits - 1):
            again = self._layer("float32", count, share / visits)
            found["float32"][count] = max(found["float32"][count], again, key=lambda one: one.flops)
        best = best_threads({count: one.flops for count, one in found["float32"].items()})
        if "bfloat16" in self.dtypes:
            half = self._halves(best, found["float32"][best].flops, 0.25 * self.seconds / len(self.counts))
            found |= {"bfloat16": half} if half else {}
        return best, found

    def products(self) -> dict[str, float]:
        """Operations per second of plain multiplications, where they run at all."""
        self._begin("matrix multiplication")
        found: dict[str, float] = {}
        for dtype in PRODUCTS if self.engine.torch else PRODUCTS[:1]:
            try:
                found[dtype] = matmul_speed(self.engine, dtype, 0.03 * self.seconds)
            except (RuntimeError, NotImplementedError, AttributeError):
                continue  # no such kernel in this torch, or on this machine
        return found

    def overhead(self) -> float:
        self._begin("overhead of a layer")
        return layer_overhead(self.engine, 0.07 * self.seconds)

    def bandwidth(self) -> float:
        self._begin("memory bandwidth")
        return memory_bandwidth(self.engine, 0.1 * self.seconds)

    def disk(self, folder: Path) -> tuple[float, float]:
        self._begin("disk")
        return disk_rates(folder, 0.06 * self.seconds)

    def end(self) -> None:
        self.emit(Progress(what="measured", done=self.total, total=self.total, unit="parts"))

    def _layer(self, dtype: str, count: int, seconds: float) -> Speed:
        self._begin(f"{dtype}{self._on(count)}")
        with self.engine.limited(count):
            return layer_speed(self.engine, dtype, seconds)

    def _halves(self, best: int, float32: float, seconds: float) -> dict[int, Speed]:
        """bfloat16 by threads; with ``best`` only where it is emulated; nothing where it does not run."""
        others = [count for count in self.counts if count != best]
        try:
            found = {best: self._layer("bfloat16", best, seconds)}
        except (RuntimeError, NotImplementedError) as error:
            self.emit(Note(text=f"bfloat16 does not run here: {error}", warning=True))
            found = {}
        if found and found[best].flops >= SLOW_HALF * float32:
            found |= {count: self._layer("bfloat16", count, seconds) for count in others}
        elif found:
            slower = float32 / found[best].flops
            self.emit(Note(text=f"bfloat16 is emulated here: {slower:.0f} times slower than float32"))
        self.done = self.linked + (2 + self.full) * len(self.counts)
        return dict(sorted(found.items()))

    def _on(self, count: int) -> str:
        return f" on {count} thread{'s' if count > 1 else ''}" if len(self.counts) > 1 else ""

    def _begin(self, what: str) -> None:
        self.emit(Progress(what=what, done=self.done, total=self.total, unit="parts"))
        self.done += 1


def _by_threads(flops: dict[str, dict[int, Speed]]) -> dict[str, dict[str, float]]:
    """As kept in a profile; nothing where there was no choice."""
    return {
        dtype: {str(count): _round(one.flops) for count, one in found.items()}
        for dtype, found in flops.items()
        if len(found) > 1
    }


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
