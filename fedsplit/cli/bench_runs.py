"""Runs that benches measure: a fixed plan for every client, no evaluation, real processes that are watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from fedsplit.cli.bench_models import LABELS
from fedsplit.cli.simulate import run_processes
from fedsplit.cli.watch import Watch
from fedsplit.config.load import dumps
from fedsplit.config.run import (
    ClientSection,
    EvaluateSection,
    ModelSection,
    PlanSection,
    PolicySection,
    RoundsSection,
    RunFile,
    RunSection,
    ServerSection,
    Task,
    TrainSection,
)
from fedsplit.events import Emit, Event, StepDone, silent

PROFILE = "laptop_x86_4core"
"""What the devices say of themselves: the plan is fixed, so nothing needs measuring."""
EVERY_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How much is trained: ``steps`` of ``batch`` rows of ``tokens`` tokens in each round."""

    batch: int
    tokens: int
    steps: int
    rounds: int = 1


def write_run(
    folder: Path,
    model: str | Path,
    task: Task,
    clients: Sequence[ClientSection],
    shape: Shape,
    *,
    dtype: str = "float32",
) -> Path:
    """Write ``run.toml`` of a run of exactly these clients; its state goes to ``folder/run``."""
    topologies = {client.topology for client in clients}
    labels = LABELS if task == "classification" else ()
    section = {"path": str(model), "task": task, "max_length": shape.tokens, "labels": labels, "dtype": dtype}
    run = RunFile(
        run=RunSection(name=folder.name, dir=str(folder / "run")),
        model=msgspec.convert(section, ModelSection),
        train=TrainSection(rounds=shape.rounds, steps=shape.steps, batch=shape.batch),
        rounds=RoundsSection(clients=len(clients), deadline_s=3600.0),
        server=ServerSection(port=0),
        # Medians are measured here, so that a median is what must be predicted.
        plan=PlanSection(robust=False),
        policy=PolicySection(exposes_tokens="w" in topologies, shares_labels="v" in topologies),
        evaluate=EvaluateSection(every=0, clients=False),
        clients=tuple(clients),
    )
    path = folder / "run.toml"
    path.write_text(dumps(run), "utf-8")
    return path


def client(
    name: str, topology: str, cut: tuple[int, int] | None = None, *, data: str | Path = "", threads: int = 1
) -> ClientSection:
    """A client whose plan is fixed. ``cut`` None: what the planner takes for this topology."""
    fixed = {"name": name, "topology": topology, "cut": cut, "data": str(data), "device": PROFILE, "threads": threads}
    return msgspec.convert(fixed, ClientSection)


def words(text: str) -> list[str]:
    """The parts of an option that takes several with commas between them."""
    return [word.strip() for word in text.split(",") if word.strip()]


def watched(run_file: Path, heard: Emit = silent, *, device: str = "cpu") -> Mapping[str, Watch]:
    """Run to the end with the memory of every process watched from the first step to the last; the server is ``""``.

    ``heard`` gets the events, too. ``device``: where the server's body runs.
    """
    watches: dict[str, Watch] = {}
    with ExitStack() as stack:

        def emit(event: Event) -> None:
            heard(event)
            if not isinstance(event, StepDone):
                return
            if not watches:
                for child in psutil.Process().children():
                    watches[_name(child.cmdline())] = stack.enter_context(Watch(child.pid, EVERY_S))
            for watch in watches.values():
                watch.mark()

        run_processes(run_file, emit=emit, device=device)
    return watches


def _name(command: list[str]) -> str:
    return command[command.index("--name") + 1] if "--name" in command else ""
