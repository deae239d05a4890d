"""A client's share of a step without torch, one for every line read: what ``fedsplit bench edge`` measures.

    python -m fedsplit.cli.bench_edge_part FOLDER RUN BATCH TOKENS THREADS

FOLDER holds exported graphs, RUN is a run as JSON. The other side is not there: what would come back from it is what
was sent, and the gradient of the tail. Imports no torch: its memory is a device's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedsplit.config.run import RunFile, Task
from fedsplit.data.batches import Batch
from fedsplit.edge.manifest import Manifest
from fedsplit.edge.part import A, B, EdgePart
from fedsplit.lora.adapter import Adapter, ModuleKey
from fedsplit.lora.lowrank import LowRank
from fedsplit.seeds import generator

FIRST_IDS = 500
"""Token ids are drawn below this: every vocabulary has so many."""


def main(folder: str, run: str, batch: int, tokens: int, threads: int) -> None:
    part = EdgePart(Path(folder), msgspec.json.decode(Path(run).read_bytes(), type=RunFile), threads=threads)
    adapter, head = first_factors(part.manifest)
    part.load(adapter, head)
    rows = made_batch(part.task, batch, tokens)

    def step() -> float:
        h_ND = part.forward(0, rows)
        loss, g_ND = part.tail(rows, h_ND, rows.label_tokens)
        part.backward(0, rows, g_ND)
        part.step(1.0, 1.0)
        return loss

    answer(step)


def answer(step: Callable[[], float]) -> None:
    """One step a line."""
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        loss = step()
        print(json.dumps({"seconds": time.perf_counter() - begun, "loss": loss}), flush=True)


def made_batch(task: Task, batch: int, tokens: int) -> Batch:
    """Full rows of random tokens; every one predicts the next, or each row has one of two classes."""
    source = generator(0, "bench edge")
    ids_BT = source.integers(5, FIRST_IDS, (batch, tokens))
    causal = task == "causal-lm"
    return Batch(
        ids_BT=ids_BT, lengths=(tokens,) * batch, starts=(0,) * batch, width=tokens,
        labels=ids_BT if causal else source.integers(0, 2, batch),
        label_tokens=batch * (tokens - 1) if causal else batch,
    )  # fmt: skip


def first_factors(manifest: Manifest) -> tuple[Adapter, dict[str, NDArray[np.float32]]]:
    """Random factors and heads of the shapes that the graphs want."""
    source = generator(1, "bench edge")
    values = {name: source.standard_normal(shape, np.float32) for name, shape in manifest.shapes.items()}
    for value in values.values():
        value *= 0.02
    adapter = {}
    for layer, names in manifest.factors.items():
        for short, name in names.items():
            if short.endswith(A):
                pair = LowRank(values[name.removesuffix(A) + B], values[name])
                adapter[ModuleKey(layer, short.removesuffix(A))] = pair
    inside = {name for names in manifest.factors.values() for name in names.values()}
    return adapter, {name: value for name, value in values.items() if name not in inside}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
