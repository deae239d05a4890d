"""``fedsplit bench memory``: what a client saves that leaves layers to the server. Real processes over TCP.

Three clients train in one run on rows of the same length: one holds the whole model (``local``), one the outer layers
(``u``), one only embedding and head (``w``). Their peaks are the kernel's own. Beside the difference stands what the
body's layers take where they are: weights, what autograd keeps of one batch, factors with gradients and moments.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedsplit.cli.bench_models import LABELS, model_and_task, write_rows
from fedsplit.cli.bench_runs import Shape, client, watched, words, write_run
from fedsplit.cli.place import Device, check_device
from fedsplit.config.run import LoraSection, Task
from fedsplit.split.base import open_base
from fedsplit.split.rows import Rows
from fedsplit.split.segment import Dropout, Span, build
from fedsplit.split.stash import GraphMeter


@dataclass(frozen=True, kw_only=True)
class Body:
    """Bytes of the layers that a client leaves to the server; ``states`` are factors, gradients and AdamW's moments."""

    weights: int
    activations: int
    states: int

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.states


def rows(
    models: str = "minilm,llama",
    topologies: str = "u,w",
    batch: int = 16,
    tokens: int = 64,
    steps: int = 6,
    hidden: int = 384,
    layers: int = 6,
    device: Device = "cpu",
) -> list[dict[str, object]]:
    """Peak resident memory of a client that holds all and of others, and what the layers they leave out take.

    ``below_local_bytes`` is what they save, ``body_bytes`` what they should at least save: weights, activations and
    optimiser state of the layers at the server. ``models``: names or folders; ``llama``, ``bert``: random ones.
    """
    check_device(device)
    found: list[dict[str, object]] = []
    shape = Shape(batch=batch, tokens=tokens, steps=steps)
    for model in words(models):
        with tempfile.TemporaryDirectory(prefix="fedsplit-") as scratch:
            source, task = model_and_task(model, Path(scratch), hidden=hidden, layers=layers)
            measured = _measure(source, task, Path(scratch), words(topologies), shape, device)
            found += [{"model": model, **row} for row in measured]
    return found


def _measure(
    source: str, task: Task, folder: Path, topologies: Sequence[str], shape: Shape, device: str
) -> Iterator[dict[str, object]]:
    depth = open_base(source).num_layers
    cuts = {"local": (depth, depth)}
    cuts |= {topology: (0, depth) if topology == "w" else (1, depth - 1) for topology in topologies}
    data = write_rows(folder / "rows.jsonl", task, shape.tokens, 4 * shape.batch)
    clients = [client(name, name, cut, data=data) for name, cut in cuts.items()]
    watches = watched(write_run(folder, source, task, clients, shape), device=device)
    peaks = {name: watches[name].usage().peak_bytes for name in cuts}
    for name, cut in cuts.items():
        body = body_bytes(source, task, cut, shape.batch, shape.tokens)
        yield {
            "client": name,
            "cut": f"{cut[0]}-{cut[1]}",
            "peak_bytes": peaks[name],
            "below_local_bytes": peaks["local"] - peaks[name],
            "body_bytes": body.total,
            "weights_bytes": body.weights,
            "activations_bytes": body.activations,
            "optimizer_bytes": body.states,
        }


def body_bytes(source: str, task: Task, cut: tuple[int, int], batch: int, tokens: int) -> Body:
    """Measured by building these layers here and running them forward once, with what autograd saves counted."""
    base = open_base(source)
    if cut[0] == cut[1]:
        return Body(weights=0, activations=0, states=0)
    span = Span(*cut, embeds=False, heads=False)
    segment = build(base, span, task=task, num_labels=len(LABELS), lora=LoraSection())
    params = segment.new_params(0)
    batch_rows = Rows(None, (tokens,) * batch, (0,) * batch, tokens)
    h_BTD = torch.from_numpy(np.zeros((batch, tokens, base.hidden_size), np.float32)).requires_grad_(cut[0] > 0)
    frozen = {value.untyped_storage().data_ptr() for value in (*segment.parameters(), *params.values())}
    with GraphMeter(frozen) as meter:
        out_BTD = segment.run(batch_rows, h_BTD, params, dropout=Dropout((0, "bench")))
    del out_BTD
    # A value, a gradient and two moments in float32.
    states = sum(4 * 4 * value.numel() for value in params.values())
    return Body(weights=segment.parameter_bytes, activations=meter.nbytes, states=states)
