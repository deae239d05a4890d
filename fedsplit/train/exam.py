"""The whole model in one place, measured on a file of rows: the operator's validation set, a benchmark's test set."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from fedsplit.config.run import RunFile
from fedsplit.exchange.evaluate import evaluate, nowhere
from fedsplit.method.record import GlobalState
from fedsplit.plan.types import ClientPlan, Cut, Topology
from fedsplit.split.base import Base
from fedsplit.train.feed import open_feed
from fedsplit.train.part import ClientPart


class Exam:
    """Rows of ``path`` (all, or the first ``rows``) and a model to try states on. ``part`` may be trained in between.

    :raises DataError: the file is wrong.
    """

    def __init__(self, run: RunFile, base: Base, path: str | Path, *, rows: int = 0, device: str = "cpu") -> None:
        whole = Cut(base.num_layers, base.num_layers)
        plan = ClientPlan(client="@exam", topology=Topology.LOCAL, cut=whole, layers=(), batch=run.train.batch)
        self.part = ClientPart(base, plan, run, device)
        self._classes = len(run.model.labels)
        feed = open_feed(path, run, base, "@exam", fraction=1.0)
        self._batches = list(islice(feed.test(), -(-rows // run.evaluate.batch) if rows else None))

    @property
    def rows(self) -> int:
        return sum(len(batch) for batch in self._batches)

    def of(self, state: GlobalState) -> dict[str, float]:
        """The metrics of a global state."""
        self.part.load(state.adapter, state.head, patch=state.patch)
        return self.now()

    def now(self) -> dict[str, float]:
        """The metrics of what ``part`` holds."""
        return evaluate(self.part, self._batches, self._classes, nowhere)[0]
