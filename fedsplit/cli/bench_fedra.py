"""``fedsplit bench fedra``: memory and time of a step against the layers held, and against those held that train.

One process a row, in turns on the same cores; peaks are the kernel's own. ``planned`` is what the planner says of the
shallower model on this machine, with what the program takes now: the kept profile's number may be older than what is
installed, and past runs have corrected it. A row that holds all layers and trains the upper ones only shows what
freezing saves: time and activations, since nothing goes back below the lowest that trains, but no weights.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import msgspec

from fedsplit.cli.bench_edge import WARM
from fedsplit.cli.bench_models import LABELS, model_and_task
from fedsplit.cli.bench_runs import words
from fedsplit.cli.bench_turns import Turns, on_cores
from fedsplit.config.run import ModelSection, RunFile, TrainSection
from fedsplit.devices.profile import DeviceProfile
from fedsplit.emulate.ceiling import peak_of
from fedsplit.errors import ConfigError, Problem
from fedsplit.plan.card import card
from fedsplit.plan.memory import client_memory
from fedsplit.plan.model import ModelCard
from fedsplit.plan.rooms import compact
from fedsplit.plan.timing import step_times
from fedsplit.plan.types import ABSENT, ClientPlan, Cut, LayerPlan, Topology
from fedsplit.plan.work import as_planned, work_of
from fedsplit.probe.measure import this_device
from fedsplit.split.base import open_base


def rows(
    model: str = "llama",
    held: str = "12,9,6,3,1",
    trained: str = "3",
    batch: int = 8,
    tokens: int = 64,
    steps: int = 8,
    threads: int = 1,
    hidden: int = 384,
    layers: int = 12,
) -> list[dict[str, object]]:
    """Peak memory and seconds a step of a device that holds ``held`` layers, and all but trains the last ``trained``.

    ``model``: a name or folder; ``llama``, ``bert``: random ones of ``layers`` layers.
    """
    with on_cores(threads), tempfile.TemporaryDirectory(prefix="fedsplit-") as scratch:
        folder = Path(scratch)
        source, task = model_and_task(model, folder, hidden=hidden, layers=layers)
        base = open_base(source)
        section = {"path": source, "task": task, "labels": LABELS if task == "classification" else ()}
        chosen = msgspec.convert(section | {"max_length": tokens}, ModelSection)
        run = RunFile(model=chosen, train=TrainSection(batch=batch))
        depth = base.num_layers
        plans = [plan_of(depth, some, some) for some in numbers("--held", held, depth)]
        plans += [plan_of(depth, depth, some) for some in numbers("--trained", trained, depth)]
        known = card(base.config.to_dict(), task, len(run.model.labels))
        measured = _measured(folder, source, run, plans, (batch, tokens, threads), steps)
        device = msgspec.structs.replace(this_device(), runtime_bytes=program_bytes())
        return [
            {"model": model, "layers": depth, **one, **_planned(known, run, plan, device, threads)}
            for plan, one in zip(plans, measured, strict=True)
        ]


def program_bytes() -> int:
    """What a torch client takes before any weight, asked in a process of its own: this one has more in memory."""
    ask = "from fedsplit.probe.runtime import runtime_bytes; print(runtime_bytes(torch=True))"
    return int(subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True).stdout)


def numbers(option: str, text: str, most: int) -> list[int]:
    """Raises ConfigError for anything that is no number of layers from 1 to ``most``."""
    if wrong := [word for word in words(text) if not (word.isdigit() and 1 <= int(word) <= most)]:
        raise ConfigError([Problem(option, repr(wrong[0]), f"numbers from 1 to {most}, with commas between them")])
    return [int(word) for word in words(text)]


def plan_of(depth: int, held: int, trained: int) -> ClientPlan:
    """The first ``held`` layers are here, the last ``trained`` of them train."""
    layers = tuple(
        LayerPlan(layer=i, place="client" if i < held else ABSENT, trains=held - trained <= i < held)
        for i in range(depth)
    )
    return ClientPlan(client="device", topology=Topology.LOCAL, cut=Cut(depth, depth), layers=layers, batch=1)


def _measured(
    folder: Path, source: str, run: RunFile, plans: list[ClientPlan], shape: tuple[int, int, int], steps: int
) -> list[dict[str, object]]:
    (folder / "run.json").write_bytes(msgspec.json.encode(run))
    with ExitStack() as stack:
        sides: list[Turns] = []
        for number, plan in enumerate(plans):
            path = folder / f"{number}.json"
            path.write_bytes(msgspec.json.encode(plan))
            given = [source, str(folder / "run.json"), str(path), *map(str, shape)]
            sides.append(stack.enter_context(Turns("fedsplit.cli.bench_edge_torch", given, shape[2], {})))
            sides[-1].ready()
        seconds = [[side.step()["seconds"] for side in sides] for _ in range(steps)][WARM:]
        peaks = [peak_of(side.pid) for side in sides]
    return [
        {
            "held": sum(layer.place == "client" for layer in plan.layers),
            "train": sum(layer.trains for layer in plan.layers),
            "peak_bytes": peak,
            "seconds": round(statistics.median(taken), 5),
            "time_ratio": round(statistics.median(one / first for one, first in zip(taken, whole, strict=True)), 4),
        }
        for plan, peak, taken, whole in (
            (plans[i], peaks[i], [step[i] for step in seconds], [step[0] for step in seconds])
            for i in range(len(plans))
        )
    ]


def _planned(
    known: ModelCard, run: RunFile, plan: ClientPlan, device: DeviceProfile, threads: int
) -> dict[str, object]:
    shallow, here = compact(known, plan)
    work = as_planned(work_of(shallow, run), here)
    memory = client_memory(work, here.topology, here.cut).with_holes(work, device)
    seconds = step_times(work, here.topology, here.cut, device, device, threads=threads).total
    return {"planned_bytes": memory.total, "planned_seconds": round(seconds, 5)}
