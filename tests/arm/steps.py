"""``python steps.py FOLDER OUT STEPS``: training steps of an exported part, with nothing that a device does not have.

FOLDER: ``graphs``, ``run.toml``, ``start.safetensors``. OUT: adapter and head afterwards, and the loss of each step.
What a server would compute between front and tail is left out: hidden states go straight on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from fedsplit.config.load import load
from fedsplit.data.batches import Batch
from fedsplit.edge.part import EdgePart
from fedsplit.lora.adapter import flatten, unflatten
from fedsplit.seeds import generator

VOCABULARY = 53


def batches(task: str, step: int) -> list[Batch]:
    """Two micro-batches of rows of unequal length."""
    source, found = generator(step, "arm"), []
    for lengths in ((6, 3), (4, 5)):
        ids = np.zeros((2, max(lengths)), np.int64)
        for b, length in enumerate(lengths):
            ids[b, :length] = source.integers(3, VOCABULARY, length)
        places = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
        labels = np.where(places, ids, -100) if task == "causal-lm" else source.integers(0, 3, 2)
        count = sum(lengths) - 2 if task == "causal-lm" else 2
        found.append(
            Batch(ids_BT=ids, lengths=lengths, starts=(0, 0), width=max(lengths), labels=labels, label_tokens=count)
        )
    return found


def train(folder: Path, steps: int) -> dict[str, np.ndarray]:
    """What ``steps`` steps make of the factors, by flat name; ``loss``: (steps,)."""
    part = EdgePart(folder / "graphs", load(folder / "run.toml"), threads=1)
    part.load(*unflatten(load_file(folder / "start.safetensors")))
    losses = []
    for step in range(steps):
        both, loss = batches(part.task, step), 0.0
        tokens = sum(one.label_tokens for one in both)
        for index, one in enumerate(both):
            share, g_ND = part.tail(one, part.forward(index, one), tokens)
            part.backward(index, one, g_ND)
            loss += share
        part.step(1.0, 1.0)
        losses.append(loss)
    return {**flatten(*part.read()), "loss": np.array(losses, np.float32)}


if __name__ == "__main__":
    source, target, count = sys.argv[1:]
    save_file(train(Path(source), int(count)), target)
