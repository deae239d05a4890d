"""``fedsplit bench predict``: what the planner says of a step and of a client's memory, beside what happens.

Every row is a run of its own with one client: two real processes over TCP, the client's own measurements as they come
with its update. The profile of both is measured here first, on one thread, and the link is this machine's loopback
through the whole wire stack: nothing is fitted to the runs that follow.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fedsplit.cli import bench_wire
from fedsplit.cli.bench_models import model_and_task, write_rows
from fedsplit.cli.bench_runs import Shape, client, words, write_run
from fedsplit.cli.report import Compared, Pair, compared
from fedsplit.cli.simulate import run_processes
from fedsplit.config.run import Task
from fedsplit.devices.find import OWN
from fedsplit.devices.load import load, save
from fedsplit.devices.profile import Link
from fedsplit.errors import ConfigError, InternalError, Problem
from fedsplit.split.base import open_base
from fedsplit.state.rundir import RunDir

SMALL, LARGE = 1_000, 2_000_000
"""Bytes of the two payloads that tell latency from rate."""


@dataclass(frozen=True)
class Case:
    """A client's fixed plan."""

    topology: str
    cut: tuple[int, int]


def rows(
    models: str = "minilm,llama", shapes: str = "8x64,16x96", steps: int = 6, seconds: float = 10.0
) -> list[dict[str, object]]:
    """Predicted and measured seconds of a step and peak memory of a client, for topologies, cuts and shapes.

    ``models``: names or folders; ``llama``, ``bert``: random ones with 6 layers. ``shapes``: BATCHxTOKENS. ``steps``:
    of each run, whose median counts. ``seconds``: of measuring the profile. The last row has the median errors.
    """
    sizes = [_shape(text, steps) for text in words(shapes)]
    found: list[dict[str, object]] = []
    with (
        tempfile.TemporaryDirectory(prefix="fedsplit-") as scratch,
        measured_profile(Path(scratch), seconds) as profile,
    ):
        for model in words(models):
            source, task = model_and_task(model, Path(scratch))
            for shape in sizes:
                for case in _cases(open_base(source).num_layers):
                    place = Path(tempfile.mkdtemp(dir=scratch))
                    found.append(_row(model, case, shape, _run(place, source, task, case, shape, profile)))
    return [*found, _median(found)]


def _shape(text: str, steps: int) -> Shape:
    batch, _, tokens = text.partition("x")
    if not (batch.isdecimal() and tokens.isdecimal()):
        raise ConfigError([Problem("--shapes", repr(text), "BATCHxTOKENS, such as 8x64")])
    return Shape(batch=int(batch), tokens=int(tokens), steps=steps)


def _cases(depth: int) -> Iterator[Case]:
    yield Case("local", (depth, depth))
    yield Case("u", (1, depth - 1))
    yield Case("u", (depth // 2, depth - 1))
    yield Case("v", (1, depth))
    yield Case("v", (depth // 2, depth))
    yield Case("w", (0, depth))


@contextmanager
def measured_profile(folder: Path, seconds: float) -> Iterator[Path]:
    """This machine's profile on one thread, which both processes take for their own while the context lasts."""
    path, before = folder / "device.toml", {name: os.environ.get(name) for name in (OWN, "OMP_NUM_THREADS")}
    os.environ |= {OWN: str(path), "OMP_NUM_THREADS": "1"}
    try:
        command = [sys.executable, "-m", "fedsplit", "profile", "--seconds", str(seconds), "--out", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        save(msgspec.structs.replace(load(path), link=_loopback()), path)
        yield path
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _loopback() -> Link:
    """Half of a small exchange is the latency; what a large one takes longer is half up, half down."""
    small, large = (float(row["seconds"]) for row in bench_wire.rows(sizes=f"{SMALL},{LARGE}", steps=20))
    rate = 2 * (LARGE - SMALL) / max(large - small, 1e-6)
    return Link(up_bps=rate, down_bps=rate, latency_s=small / 2)


def _run(place: Path, source: str, task: Task, case: Case, shape: Shape, profile: Path) -> Compared:
    data = write_rows(place / "rows.jsonl", task, shape.tokens, 2 * shape.batch)
    fixed = msgspec.structs.replace(client("device", case.topology, case.cut, data=data), device=str(profile))
    run_processes(write_run(place, source, task, [fixed], shape))
    with RunDir(place / "run").journal() as journal:
        done = compared(journal)
    if len(done) != 1 or not done[0].step_s.actual or not done[0].memory_bytes.actual:
        raise InternalError(f"the run of {case} did not say what its steps took: nothing was measured")
    return done[0]


def _row(model: str, case: Case, shape: Shape, done: Compared) -> dict[str, object]:
    return {
        "model": model,
        "topology": case.topology,
        "cut": f"{case.cut[0]}-{case.cut[1]}",
        "batch": shape.batch,
        "tokens": shape.tokens,
        "predicted_s": float(f"{done.step_s.predicted:.4g}"),
        "measured_s": float(f"{done.step_s.actual or 0:.4g}"),
        "step_error": _error(done.step_s),
        "predicted_bytes": round(done.memory_bytes.predicted),
        "peak_bytes": round(done.memory_bytes.actual or 0),
        "memory_error": _error(done.memory_bytes),
    }


def _error(pair: Pair) -> float:
    """How far the prediction is off, as a share of what was measured; negative where it was too low."""
    assert pair.actual is not None
    return round(pair.predicted / pair.actual - 1, 3)


def _median(found: Sequence[dict[str, object]]) -> dict[str, object]:
    """Medians of the errors' sizes."""
    sizes = {name: [abs(float(str(row[name]))) for row in found] for name in ("step_error", "memory_error")}
    return {"model": f"median of {len(found)}"} | {name: statistics.median(each) for name, each in sizes.items()}
