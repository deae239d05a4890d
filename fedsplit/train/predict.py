"""The whole model here with an exported adapter, to be asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsplit.config.run import LoraSection, ModelSection, RunFile, Task
from fedsplit.data.batches import Batch
from fedsplit.exchange.predict import Logits
from fedsplit.plan.types import ClientPlan, Cut, Topology
from fedsplit.split.base import Base
from fedsplit.train.exported import Exported
from fedsplit.train.part import ClientPart


def local_logits(base: Base, exported: Exported, device: str = "cpu") -> Logits:
    """The whole model here, with an exported adapter."""
    card = exported.card
    run = bare_run(card.task, card.labels, exported.rank, sorted({key.path for key in exported.adapter}))
    whole = Cut(base.num_layers, base.num_layers)
    plan = ClientPlan(client="here", topology=Topology.LOCAL, cut=whole, layers=(), batch=1)
    part = ClientPart(base, plan, run, device)
    part.load(exported.adapter, exported.head)

    def logits(batch: Batch) -> NDArray[np.float32]:
        return part.logits(batch, None)

    return logits


def bare_run(task: Task, labels: Sequence[str], rank: int, targets: Sequence[str]) -> RunFile:
    """The few settings that building a model for prediction needs; factors come with their scale inside."""
    model = ModelSection(path="", task=task, labels=tuple(labels))
    return RunFile(model=model, lora=LoraSection(rank=rank, alpha=float(rank), targets=tuple(targets)))
