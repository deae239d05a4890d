"""``fedsplit bench mixed``: a run in which one device has no torch, against the same run with torch everywhere.

Two clients share the training of a classifier, over encrypted TCP, every party a process: ``a`` (``u``) computes once
with torch and once with exported graphs, ``b`` (``w``) with torch. All else is equal, and the base model's own dropout
is off, because graphs draw no masks; so what differs is rounding: losses of all steps of both clients, factors and a
metric at the end. Gradients do not leave the processes; they are compared beside it, see ``bench_mixed_parts``.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import structs

from fedsplit.cli.bench_models import FAMILIES, LABELS, model_and_task, write_rows
from fedsplit.cli.bench_runs import Shape, client, words, write_run
from fedsplit.cli.bench_table import Row
from fedsplit.cli.simulate import run_processes
from fedsplit.config.load import dumps, load
from fedsplit.config.run import RunFile
from fedsplit.data.stdlib import AREAS, write_clients
from fedsplit.errors import ConfigError, DataError, InternalError, Problem
from fedsplit.events import Event, StepDone
from fedsplit.lora.adapter import flatten
from fedsplit.plan.types import ClientPlan, Cut, LayerPlan, Topology

if TYPE_CHECKING:  # listing the benches must not wait for torch
    from fedsplit.cli.bench_mixed_parts import Apart
    from fedsplit.method.record import GlobalState
    from fedsplit.split.base import Base

NEWS = ("World", "Sports", "Business", "Sci/Tech")
RATES = {"adamw": 1e-3, "sgd": 0.1}
Losses = dict[tuple[str, int, int], float]
"""By client, round and step."""


@dataclass(frozen=True)
class Files:
    """Rows of both clients, rows that nobody trains on, and their classes."""

    a: Path
    b: Path
    test: Path
    labels: tuple[str, ...]


def rows(
    *,
    data: Path = Path(),
    model: str = "minilm",
    optimizers: str = "adamw,sgd",
    rounds: int = 5,
    steps: int = 10,
    batch: int = 8,
    tokens: int = 64,
    test_rows: int = 1000,
    hidden: int = 384,
    layers: int = 6,
    dropout: bool = False,
) -> Sequence[Row]:
    """Losses, factors, gradients and the final metric of a run with a device without torch against torch everywhere.

    Errors are the largest of all steps, relative. ``gradient_error``: of a step's whole gradient, from equal factors;
    ``…_tensor``: of any tensor, to its largest entry; ``…_own_way``: so, from factors that each side trained itself.
    ``torch_to_float64_tensor``: so, of torch's own rounding. ``data``: a folder with ``ag_news/``; without it
    documentation strings, or random words for the random model ``bert``. ``dropout``: leave the base model's own on,
    which graphs do not have.
    """
    if wrong := [name for name in words(optimizers) if name not in RATES]:
        raise ConfigError([Problem("--optimizers", repr(wrong[0]), f"some of {', '.join(RATES)}")])
    shape = Shape(batch=batch, tokens=tokens, steps=steps, rounds=rounds)
    with tempfile.TemporaryDirectory(prefix="fedsplit-mixed-") as scratch:
        source, _ = model_and_task(model, Path(scratch), hidden=hidden, layers=layers)
        if not dropout:
            source = str(without_dropout(source, Path(scratch) / "model"))
        files = rows_of(Path(scratch), data, model not in FAMILIES, shape, test_rows)
        return [Mixed(Path(scratch), source, files, shape, name).row() for name in words(optimizers)]


def without_dropout(model: str, target: Path) -> Path:
    """A copy of the model that drops nothing while it trains."""
    from fedsplit.split.base import open_base
    from fedsplit.train.exported import model_folder

    shutil.copytree(open_base(model_folder(model)).folder, target)
    config = target / "config.json"
    known = json.loads(config.read_text("utf-8"))
    off = {key: 0.0 for key, value in known.items() if "dropout" in key and isinstance(value, float)}
    config.write_text(json.dumps({**known, **off}), "utf-8")
    return target


def rows_of(folder: Path, data: Path, real: bool, shape: Shape, test_rows: int) -> Files:
    """Raises DataError where ``data`` is named and has no AG News."""
    a, b, test = (folder / f"{name}.jsonl" for name in ("a", "b", "test"))
    if data != Path():
        train = data / "ag_news" / "train.jsonl.gz"
        if not train.is_file():
            raise DataError("no ag_news/train.jsonl.gz there; docs/data.md says where to get the data", str(data))
        enough = shape.rounds * shape.steps * shape.batch + 100
        _copied(train, a, 0, enough)
        _copied(train, b, enough, enough)
        _copied(train.with_name("test.jsonl.gz"), test, 0, test_rows)
        return Files(a, b, test, NEWS)
    if real:
        written = write_clients(folder, ("a", "b"))
        return Files(written.clients["a"], written.clients["b"], written.test, tuple(AREAS))
    for seed, path in enumerate((a, b, test)):
        write_rows(path, "classification", shape.tokens, 8 * shape.batch, seed)
    return Files(a, b, test, LABELS)


def _copied(source: Path, target: Path, first: int, count: int) -> None:
    with gzip.open(source, "rt", encoding="utf-8") as lines, target.open("w", encoding="utf-8") as out:
        out.writelines(islice(lines, first, first + count))


@dataclass(frozen=True)
class Mixed:
    """Both runs with one optimiser."""

    scratch: Path
    model: str
    files: Files
    shape: Shape
    optimizer: str

    def row(self) -> Row:
        """Run both, compare."""
        from fedsplit.cli.bench_mixed_parts import apart

        (losses, state), (others, mixed) = (self._run(backend) for backend in ("torch", "edge"))
        wanted, found = (flatten(one.adapter, one.head) for one in (state, mixed))
        metric, other_metric = self._exam(state, mixed)
        beside = self._gradients()
        return {
            "optimizer": self.optimizer,
            "clients": "a: u, b: w",
            "steps": self.shape.rounds * self.shape.steps,
            "loss_error": max(abs(others[at] / losses[at] - 1) for at in losses),
            "factor_error": max(apart(found[key], wanted[key]) for key in wanted),
            "gradient_error": beside.whole,
            "gradient_error_tensor": beside.same,
            "torch_to_float64_tensor": beside.exact,
            "gradient_error_own_way": beside.own,
            "accuracy_torch": f"{metric:.3f}",
            "accuracy_mixed": f"{other_metric:.3f}",
        }

    def _run(self, backend: str) -> tuple[Losses, GlobalState]:
        """Losses of all steps, and the global factors at the end."""
        from fedsplit.state.rundir import RunDir
        from fedsplit.train.kept import state_of

        run_file, losses = self._written(backend), Losses()

        def emit(event: Event) -> None:
            if isinstance(event, StepDone) and event.loss is not None:
                losses[event.client, event.round, event.step] = event.loss

        run_processes(run_file, emit=emit, join_flags={"a": ("--backend", backend)})
        last = RunDir(run_file.parent / "run").load()
        if last is None or len(losses) != 2 * self.shape.rounds * self.shape.steps:
            raise InternalError(f"{len(losses)} losses of two clients arrived: the runs cannot be compared")
        return losses, state_of(last)

    def _written(self, backend: str) -> Path:
        depth = self._base.num_layers
        folder = self.scratch / f"{self.optimizer}-{backend}"
        folder.mkdir()
        members = [client("a", "u", (1, depth - 1), data=self.files.a), client("b", "w", data=self.files.b)]
        path = write_run(folder, self.model, "classification", members, self.shape)
        run = load(path)
        word: Literal["adamw", "sgd"] = "sgd" if self.optimizer == "sgd" else "adamw"
        changed = structs.replace(
            run,
            run=structs.replace(run.run, name="mixed"),
            model=structs.replace(run.model, labels=self.files.labels),
            train=structs.replace(run.train, optimizer=word, learning_rate=RATES[self.optimizer]),
        )
        path.write_text(dumps(changed), "utf-8")
        return path

    @cached_property
    def _base(self) -> Base:
        from fedsplit.split.base import open_base
        from fedsplit.train.exported import model_folder

        return open_base(model_folder(self.model))

    def _exam(self, *states: GlobalState) -> tuple[float, ...]:
        """The accuracy of each."""
        from fedsplit.train.exam import Exam

        exam = Exam(self._run_file, self._base, self.files.test)
        return tuple(exam.of(state)["accuracy"] for state in states)

    def _gradients(self) -> Apart:
        """Of client ``a``, on the batches of its run."""
        from fedsplit.cli.bench_mixed_parts import gradients
        from fedsplit.split.export.write import export
        from fedsplit.train.feed import open_feed

        run, depth = self._run_file, self._base.num_layers
        layers = tuple(LayerPlan(layer=layer, place="client", rank=run.lora.rank) for layer in (0, depth - 1))
        plan = ClientPlan(client="a", topology=Topology.U, cut=Cut(1, depth - 1), layers=layers, batch=run.train.batch)
        steps = open_feed(self.files.a, run, self._base, "a").train(0, self.shape.rounds * self.shape.steps)
        (folder := self.scratch / f"{self.optimizer}-graphs").mkdir()
        export(self._base, plan, run, folder)
        return gradients(self._base, run, plan, list(steps), folder)

    @property
    def _run_file(self) -> RunFile:
        return load(self.scratch / f"{self.optimizer}-torch" / "run.toml")
