"""The exam of ``fedsplit bench fleet``: one model in this process, measured on two files, and trained where one client
or all rows in one place are what is asked for."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from msgspec import structs

from fedsplit.cli.bench_fleet_learning import Kept
from fedsplit.cli.bench_fleet_ways import Scale, plain_run
from fedsplit.config.run import RunFile
from fedsplit.exchange.rate import learning_rate
from fedsplit.exchange.step import At, local_step
from fedsplit.lora.adapter import Adapter, unflatten
from fedsplit.method.record import GlobalState
from fedsplit.split.base import open_base
from fedsplit.state.checkpoints import Checkpoint
from fedsplit.state.personal import BESIDE
from fedsplit.train.exam import Exam
from fedsplit.train.exported import model_folder
from fedsplit.train.feed import open_feed
from fedsplit.train.kept import state_of
from fedsplit.train.start import first_state


class Marks:
    """Accuracy on ``validation`` and on ``test`` rows."""

    def __init__(self, validation: Path, test: Path, scale: Scale) -> None:
        self._run = plain_run(scale)
        self._base = open_base(model_folder(self._run.model.path))
        self._validation, self._test = (Exam(self._run, self._base, path) for path in (validation, test))
        self._part = self._validation.part

    def validation(self, kept: Kept) -> float:
        return accuracy(self._validation, kept)

    def test(self, kept: Kept) -> float:
        return accuracy(self._test, kept)

    def now(self) -> float:
        """Of the model as it was trained here, on the validation rows."""
        return self._validation.now()["accuracy"]

    def held(self) -> GlobalState:
        """What was trained here."""
        return GlobalState.first(*self._part.read())

    def run_at(self, seed: int, rate: float) -> RunFile:
        run = self._run
        train = structs.replace(run.train, learning_rate=rate)
        return structs.replace(run, run=structs.replace(run.run, seed=seed), train=train)

    def training(self, run: RunFile, rows: Path, client: str) -> Iterator[int]:
        """Train on ``rows`` from the start as ``run`` says; yields the steps that are done."""
        first = first_state(self._base, run)
        self._part.train = run.train  # its optimiser begins anew with what is loaded, at this rate
        self._part.load(first.adapter, first.head)
        total, whole = run.train.rounds * run.train.steps, self._base.num_layers
        for step, batches in enumerate(open_feed(rows, run, self._base, client).train(0, total)):
            at = At(
                run=run.run.name, client=client, round=0, era=0, step=step, first_step=0, base_version=0,
                adapter_version=0, cut=(whole, whole),
            )  # fmt: skip
            local_step(self._part, batches, learning_rate(run.train, step, total), at, run.run.seed)
            yield step + 1


class Marking(Protocol):
    """Something that measures a state; an ``Exam`` does."""

    def of(self, state: GlobalState) -> dict[str, float]: ...


def accuracy(exam: Marking, kept: Kept) -> float:
    """Of the global model; where clients have layers of their own, the mean of their models'."""
    state = state_of(kept.state)
    models = [replace(state, adapter={**state.adapter, **own}) for own in map(_layers, kept.own) if own]
    return statistics.mean(exam.of(model)["accuracy"] for model in models or [state])


def _layers(own: Checkpoint) -> Adapter:
    """The factors among what a client has for itself."""
    names = own.meta.get("own", own.arrays)
    return unflatten({name: own.arrays[name] for name in names if not name.startswith(("head/", *BESIDE))})[0]
