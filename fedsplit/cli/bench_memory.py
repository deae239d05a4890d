"""``fedsplit bench memory``: does a long run keep its memory flat? Server and two devices, real processes over TCP.

One device holds only embedding and head (``w``), one the outer layers (``u``), so the server keeps activations of both
between forward and backward. Watching begins at the first step and ends with the last: what is loaded before
belongs to the peak, not to the growth.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import psutil

from fedsplit.cli.simulate import run_processes
from fedsplit.cli.watch import Usage, Watch
from fedsplit.config.load import dumps
from fedsplit.config.run import (
    ClientSection,
    EvaluateSection,
    ModelSection,
    PolicySection,
    RoundsSection,
    RunFile,
    RunSection,
    ServerSection,
    TrainSection,
)
from fedsplit.data.stdlib import AREAS, write_clients
from fedsplit.errors import ConfigError, Problem
from fedsplit.events import Event, StepDone

EVERY_S = 0.1
STEPS_A_ROUND = 50
PROFILE = "laptop_x86_4core"
"""What the devices say of themselves: the plan is fixed, so nothing needs measuring."""


def rows(steps: int = 2000, batch: int = 4, tokens: int = 64, model: str = "minilm") -> list[dict[str, object]]:
    """Memory of a server, a ``w`` and a ``u`` client over many steps: resident at its peak, else private (watch.py).

    ``growth_bytes_a_step`` is the median slope after the first fifth, ``growth`` the last tenth over the first one.
    """
    if steps < STEPS_A_ROUND:
        problem = Problem("--steps", str(steps), f"at least {STEPS_A_ROUND}", "fewer say nothing about growth")
        raise ConfigError([problem])
    with tempfile.TemporaryDirectory(prefix="fedsplit-") as scratch:
        run_file = _write_run(Path(scratch), steps, batch, tokens, model)
        watches = _watched(run_file)
    rounds = steps // STEPS_A_ROUND
    return [_row(name, watch.usage(), rounds * STEPS_A_ROUND) for name, watch in sorted(watches.items())]


def _write_run(folder: Path, steps: int, batch: int, tokens: int, model: str) -> Path:
    data = write_clients(folder / "data", ("w-device", "u-device"))
    clients = (
        ClientSection(
            name="w-device", data=str(data.clients["w-device"]), device=PROFILE, topology="w", batch=batch, threads=1
        ),
        ClientSection(
            name="u-device", data=str(data.clients["u-device"]), device=PROFILE, topology="u", batch=batch, threads=1
        ),
    )
    run = RunFile(
        run=RunSection(name="memory", dir=str(folder / "run")),
        model=ModelSection(path=model, task="classification", labels=AREAS, max_length=tokens),
        train=TrainSection(rounds=steps // STEPS_A_ROUND, steps=STEPS_A_ROUND, batch=batch),
        rounds=RoundsSection(clients=len(clients)),
        server=ServerSection(port=0),
        policy=PolicySection(exposes_tokens=True),
        evaluate=EvaluateSection(every=0, clients=False),
        clients=clients,
    )
    path = folder / "run.toml"
    path.write_text(dumps(run), "utf-8")
    return path


def _watched(run_file: Path) -> Mapping[str, Watch]:
    watches: dict[str, Watch] = {}
    with ExitStack() as stack:

        def emit(event: Event) -> None:
            if not isinstance(event, StepDone):
                return
            if not watches:
                for child in psutil.Process().children():
                    watches[_name(child.cmdline())] = stack.enter_context(Watch(child.pid, EVERY_S))
            for watch in watches.values():
                watch.mark()

        run_processes(run_file, emit=emit)
    return watches


def _name(command: list[str]) -> str:
    return command[command.index("--name") + 1] if "--name" in command else "server"


def _row(name: str, usage: Usage, steps: int) -> dict[str, object]:
    return {
        "process": name,
        "steps": steps,
        "seconds": round(usage.seconds, 1),
        "start_bytes": usage.start_bytes,
        "end_bytes": usage.end_bytes,
        "peak_bytes": usage.peak_bytes,
        "growth_bytes_a_step": round(usage.growth_bytes_per_s * usage.seconds / steps, 1),
        "growth": round(usage.end_bytes / usage.start_bytes, 4) if usage.start_bytes else 0.0,
    }
