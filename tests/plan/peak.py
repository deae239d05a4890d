"""Run as a script: some real steps of one client's part of a model, and its peak memory as JSON.

Arguments: model folder, topology, c1, c2, batch, tokens, ``all`` or ``checkpoint`` (what layers keep) or ``top2`` (no
other layer trains). The server is played by giving everything back as it came: what it computes does not matter for
this process's memory.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time

import peft  # noqa: F401  # imported now so that it does not count as the plan's
import psutil
import torch

from fedsplit.config.run import ModelSection, RunFile, TrainSection
from fedsplit.plan.memory import served
from fedsplit.plan.types import ClientPlan, Cut, LayerPlan, Topology
from fedsplit.probe.layer import torch_pass
from fedsplit.probe.measure import TINY
from fedsplit.split.base import open_base
from fedsplit.split.rows import Rows, pack, unpack
from fedsplit.train.batch import Batch
from fedsplit.train.optim import make
from fedsplit.train.part import ClientPart


class Peak:
    """Largest resident size since it was made, beyond the size then."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._start = self._largest = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self._largest = max(self._largest, self._process.memory_info().rss)

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self._largest - self._start


def step(part: ClientPart, batch: Batch, topology: Topology) -> None:
    if topology is Topology.LOCAL:
        part.loss(batch, batch.label_tokens).backward()
    else:
        h_BTD = part.front(batch.rows)
        g_ND = pack(h_BTD.detach(), batch.rows)
        if topology is not Topology.V:
            y_BTD = unpack(g_ND.clone(), batch.rows).requires_grad_()
            part.tail_loss(batch, y_BTD, batch.label_tokens).backward()
            assert y_BTD.grad is not None
            g_ND = pack(y_BTD.grad, batch.rows)
        if h_BTD.requires_grad:
            h_BTD.backward(unpack(g_ND, batch.rows))
    part.step(1.0, 1.0)


def main(folder: str, topology: Topology, cut: Cut, rows: int, tokens: int, keeps: str) -> None:
    torch.set_num_threads(1)
    torch_pass(TINY, "float32", "cpu")()
    model = ModelSection(path=folder, task="classification", labels=("a", "b", "c"), max_length=tokens)
    run = RunFile(model=model, train=TrainSection(batch=rows))
    base = open_base(folder)
    peak = Peak()
    theirs = served(topology, cut, base.num_layers)
    places = ["server" if layer in theirs else "client" for layer in range(base.num_layers)]
    lowest = base.num_layers - 2 if keeps == "top2" else 0
    layers = tuple(LayerPlan(layer=layer, place=place, trains=layer >= lowest) for layer, place in enumerate(places))
    plan = ClientPlan(
        client="c", topology=topology, cut=cut, layers=layers, batch=rows, checkpoint=keeps == "checkpoint"
    )
    part = ClientPart(base, plan, run)
    for segment in (part.first, part.last) if part.first is not part.last else (part.first,):
        for name, leaf in segment.new_params(0).items():
            layer = re.search(r"\.layers?\.(\d+)\.", name)
            rests = layer is not None and int(layer[1]) < lowest
            (part.frozen if rests else part.params)[name] = leaf.requires_grad_(leaf.requires_grad and not rests)
    part._optimizer = make(run.train, part.params)
    ids = torch.randint(5, 1000, (rows, tokens), generator=torch.Generator().manual_seed(0))
    lengths = tuple(tokens - (row % 3) * (tokens // 8) for row in range(rows))
    labels = torch.arange(rows) % 3
    batch = Batch(rows=Rows(ids, lengths, (0,) * rows, tokens), labels=labels, label_tokens=rows)
    start = time.perf_counter()
    for _ in range(2):
        step(part, batch, topology)
    seconds = (time.perf_counter() - start) / 2
    print(json.dumps({"peak_bytes": peak.stop(), "step_s": seconds}))


if __name__ == "__main__":
    name, topology, c1, c2, rows, tokens, keeps = sys.argv[1:]
    main(name, Topology(topology), Cut(int(c1), int(c2)), int(rows), int(tokens), keeps)
