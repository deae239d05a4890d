"""``fedsplit bench growth``: does a long run keep its memory flat? Server and two devices, real processes over TCP.

One device holds only embedding and head (``w``), one the outer layers (``u``), so the server keeps activations of both
between forward and backward. Watching begins at the first step and ends with the last: what is loaded before
belongs to the peak, not to the growth.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from fedsplit.cli.bench_models import model_and_task, write_rows
from fedsplit.cli.bench_runs import Shape, client, watched, words, write_run
from fedsplit.cli.place import Device, check_device
from fedsplit.cli.watch import Usage
from fedsplit.errors import ConfigError, Problem

STEPS_A_ROUND = 50


def rows(
    steps: int = 2000,
    batch: int = 4,
    tokens: int = 64,
    model: str = "minilm",
    topologies: str = "u,w",
    hidden: int = 384,
    layers: int = 6,
    device: Device = "cpu",
) -> list[dict[str, object]]:
    """Memory of a server and its clients over many steps: resident at its peak, else private (watch.py).

    ``growth_bytes_per_1000_steps`` is the median slope after the first fifth, ``growth`` the last tenth over the first
    one. ``model``: a folder or name for classification, or ``llama`` or ``bert`` for a random one of ``hidden`` and
    ``layers``.
    """
    if steps < STEPS_A_ROUND:
        problem = Problem("--steps", str(steps), f"at least {STEPS_A_ROUND}", "fewer say nothing about growth")
        raise ConfigError([problem])
    check_device(device)
    rounds = steps // STEPS_A_ROUND
    with tempfile.TemporaryDirectory(prefix="fedsplit-") as scratch:
        folder = Path(scratch)
        source, task = model_and_task(model, folder, hidden=hidden, layers=layers)
        data = write_rows(folder / "rows.jsonl", task, tokens, 16 * batch)
        clients = [client(f"{topology}-device", topology, data=data) for topology in words(topologies)]
        shape = Shape(batch=batch, tokens=tokens, steps=STEPS_A_ROUND, rounds=rounds)
        run_file = write_run(folder, source, task, clients, shape)
        watches = watched(run_file, device=device)
    done = rounds * STEPS_A_ROUND
    return [_row(name or "server", watch.usage(), done) for name, watch in sorted(watches.items())]


def _row(name: str, usage: Usage, steps: int) -> dict[str, object]:
    return {
        "process": name,
        "steps": steps,
        "seconds": round(usage.seconds, 1),
        "start_bytes": usage.start_bytes,
        "end_bytes": usage.end_bytes,
        "peak_bytes": usage.peak_bytes,
        "growth_bytes_per_1000_steps": round(usage.growth_bytes_per_s * usage.seconds / steps * 1000),
        "growth": round(usage.end_bytes / usage.start_bytes, 4) if usage.start_bytes else 0.0,
    }
