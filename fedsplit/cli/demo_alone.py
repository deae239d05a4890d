"""The demo's comparison: every device trained by itself, and all results measured on the same unseen passages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedsplit.config.run import RunFile
from fedsplit.data.stdlib import ClientFiles
from fedsplit.events import Emit, RoundStarted, StepDone
from fedsplit.exchange.rate import learning_rate
from fedsplit.exchange.step import At, local_step
from fedsplit.split.base import Base, open_base
from fedsplit.train.exam import Exam
from fedsplit.train.exported import model_folder, of_run
from fedsplit.train.feed import open_feed
from fedsplit.train.part import ClientPart
from fedsplit.train.start import first_state


@dataclass(frozen=True)
class Measured:
    """Accuracy on ``rows`` unseen passages: the untouched model, each device alone, all together."""

    before: float
    alone: dict[str, float]
    together: float
    rows: int


def measure(run: RunFile, files: ClientFiles, folder: Path, rows: int, emit: Emit) -> Measured:
    """Train each device alone with the recipe of ``run``: the same steps, rows and learning rates as together."""
    base = open_base(model_folder(run.model.path))
    exam = Exam(run, base, files.test, rows=rows)
    first = first_state(base, run)
    before, together = exam.of(first)["accuracy"], exam.of(of_run(folder)[1])["accuracy"]
    alone = {}
    for name, path in files.clients.items():
        exam.part.load(first.adapter, first.head)
        _train_alone(exam.part, run, base, name, path, emit)
        alone[name] = exam.now()["accuracy"]
    return Measured(before, alone, together, exam.rows)


def _train_alone(part: ClientPart, run: RunFile, base: Base, name: str, path: Path, emit: Emit) -> None:
    feed, total = open_feed(path, run, base, name), run.train.rounds * run.train.steps
    emit(RoundStarted(client=name, round=0, rounds=1))
    for step, batches in enumerate(feed.train(0, total)):
        at = At(
            run=run.run.name,
            client=name,
            round=0,
            era=0,
            step=step,
            first_step=0,
            base_version=0,
            adapter_version=0,
            cut=(base.num_layers, base.num_layers),
        )
        outcome = local_step(part, batches, learning_rate(run.train, step, total), at, run.run.seed)
        emit(StepDone(client=name, round=0, step=step, steps=total, loss=outcome.loss, seconds=0.0))
