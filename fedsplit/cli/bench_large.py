"""``fedsplit bench large``: a client with about 1 GB trains a model of 1.2 billion parameters with a server.

Real processes on one machine, the client's part fetched over the link as on a device. The model has Llama 3.2 1B's
shape with random weights, written into a temporary folder (2.5 GB, and as much again for the parts) unless ``--model``
names one. The client's embedding stays in its file and its loss goes over the vocabulary in slabs.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec

from fedsplit.cli.bench_models import write_rows, write_tokenizer
from fedsplit.cli.bench_predict import measured_profile
from fedsplit.cli.bench_runs import Shape, client, watched, words, write_run
from fedsplit.cli.place import Device, check_device
from fedsplit.cli.report import compared
from fedsplit.errors import ConfigError, InternalError, Problem
from fedsplit.events import Event, StepDone
from fedsplit.split.base import Base, open_base
from fedsplit.state.rundir import RunDir

SCRIPT = "benchmarks/write_large_model.py"


def rows(
    model: str = "",
    topologies: str = "u,w",
    batch: int = 1,
    tokens: int = 64,
    steps: int = 3,
    threads: int = 1,
    seconds: float = 10.0,
    dtype: str = "bfloat16",
    device: Device = "cpu",
) -> list[dict[str, object]]:
    """Steps of a ``u`` and a ``w`` client of a large model: peaks of both processes, seconds, bytes; and predictions.

    ``u`` holds the first and the last layer, ``w`` none. The batch is short because this is about memory, and both
    sides share one machine, whose profile is measured first, for ``seconds``.
    """
    check_device(device)
    with tempfile.TemporaryDirectory(prefix="fedsplit-") as scratch, _model(model, Path(scratch)) as folder:
        base = open_base(str(folder))
        shape = Shape(batch=batch, tokens=tokens, steps=steps)
        with measured_profile(Path(scratch), seconds) as profile:
            measure = partial(_measure, base, Path(scratch), profile, shape, threads, dtype, device)
            return [measure(topology) for topology in words(topologies)]


@contextmanager
def _model(model: str, scratch: Path) -> Iterator[Path]:
    if model:
        yield Path(model)
        return
    roots = (Path.cwd(), Path(__file__).parents[2])
    script = next((root / SCRIPT for root in roots if (root / SCRIPT).is_file()), None)
    if script is None:
        found = f"no {SCRIPT} in {Path.cwd()}"
        raise ConfigError([Problem("--model", found, "a clone of fedsplit", "go there, or name a model's folder")])
    folder = scratch / "model"
    # The script stands alone; it needs this fedsplit for its seeds.
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    command = [sys.executable, str(script), str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": paths})
    write_tokenizer(folder)
    yield folder


def _measure(
    base: Base, scratch: Path, profile: Path, shape: Shape, threads: int, dtype: str, device: str, topology: str
) -> dict[str, object]:
    depth = base.num_layers
    cut = (0, depth) if topology == "w" else (1, depth - 1)
    done: list[StepDone] = []

    def heard(event: Event) -> None:
        if isinstance(event, StepDone):
            done.append(event)

    with tempfile.TemporaryDirectory(dir=scratch) as place:
        data = write_rows(Path(place) / "rows.jsonl", "causal-lm", shape.tokens, 2 * shape.batch)
        fixed = client("device", topology, cut, data=data, threads=threads)
        clients = [msgspec.structs.replace(fixed, device=str(profile))]
        run_file = write_run(Path(place), base.folder, "causal-lm", clients, shape, dtype=dtype)
        watches = watched(run_file, heard, device=device)
        with RunDir(Path(place) / "run").journal() as journal:
            [said] = compared(journal)
    if any(event.loss is None or event.loss != event.loss for event in done) or not done:
        raise InternalError("no step of the large model ended with a loss: nothing was measured")
    return {
        "client": topology,
        "cut": f"{cut[0]}-{cut[1]}",
        "batch": shape.batch,
        "tokens": shape.tokens,
        "model_bytes": sum(path.stat().st_size for path in base.checkpoint.files),
        "peak_bytes": watches["device"].usage().peak_bytes,
        "predicted_bytes": round(said.memory_bytes.predicted),
        "server_peak_bytes": watches[""].usage().peak_bytes,
        "seconds": round(statistics.median(event.seconds for event in done), 3),
        "predicted_s": round(said.step_s.predicted, 3),
        "up_bytes": done[-1].up_bytes,
        "down_bytes": done[-1].down_bytes,
    }
