"""``fedsplit bench bytes``: what a codec saves on the socket, and what training loses by it.

One client in topology ``u`` beside a server, real processes over encrypted TCP: bytes of a step as the client's socket
counted them, headers, Prepare and Commit included, beside those of the tensors by the planner's formula. With
``--quality`` the two tasks of ``fedsplit bench quality`` are trained once with each codec, the same steps from the same
seed, and measured on the test file; of the four clients there one is local.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from msgspec import structs

from fedsplit.cli import bench_quality
from fedsplit.cli.bench_models import model_and_task, write_rows
from fedsplit.cli.bench_runs import Shape, client, words, write_run
from fedsplit.cli.bench_table import Row
from fedsplit.cli.report import compared
from fedsplit.cli.simulate import run_processes
from fedsplit.config.load import dumps, load
from fedsplit.config.run import Task
from fedsplit.errors import ConfigError, InternalError, Problem
from fedsplit.split.base import open_base
from fedsplit.state.rundir import RunDir
from fedsplit.wire.codecs import BITS

ALL = "int4+int4"
"""``int4`` with gradients in ``int4`` as well, not in ``int8``."""


@dataclass(frozen=True)
class Choice:
    """One row: a codec of ``wire.codecs``, and ``wire.gradient_bits``."""

    name: str

    @property
    def text(self) -> str:
        """The section of a run file."""
        codec, _, gradients = self.name.partition("+")
        return f'\n[wire]\ncodecs = ["{codec}"]\ngradient_bits = {4 if gradients else 8}\n'


def rows(
    *,
    model: str = "minilm",
    batch: int = 16,
    tokens: int = 64,
    steps: int = 3,
    codecs: str = f"raw,bf16,int8,int4,{ALL}",
    quality: bool = False,
    data: Path = Path("data"),
    task: str = "all",
    rounds: int = 0,
    seed: int = 0,
) -> Sequence[Row]:
    """Bytes of a step with each codec: counted on the socket, by formula, and as a share of raw.

    ``codecs``: raw first; 'int4+int4' has gradients in int4, too. ``quality``: instead, what training reaches with
    each, on real data in the folder ``data``; ``task``: e2e, ag_news or all; ``rounds``: fewer, to try it out.
    """
    choices = [_choice(name) for name in words(codecs)]
    if not choices or choices[0].name != "raw":
        raise ConfigError([Problem("--codecs", repr(codecs), "raw first: the others are compared with it")])
    if quality:
        return [row for one in bench_quality.chosen(task, data) for row in _quality(one, choices, data, rounds, seed)]
    return list(_counted(choices, model, Shape(batch=batch, tokens=tokens, steps=steps)))


def _choice(name: str) -> Choice:
    if name not in BITS and name != ALL:
        raise ConfigError([Problem("--codecs", repr(name), f"some of {', '.join([*BITS, ALL])}")])
    return Choice(name)


def _counted(choices: Sequence[Choice], model: str, shape: Shape) -> Iterator[Row]:
    first = 0.0
    with tempfile.TemporaryDirectory(prefix="fedsplit-") as scratch:
        source, kind = model_and_task(model, Path(scratch))
        for choice in choices:
            moved, formula = _step(Path(tempfile.mkdtemp(dir=scratch)), source, kind, choice, shape)
            first = first or moved
            yield {
                "codec": choice.name,
                "step_bytes": round(moved),
                "formula_bytes": round(formula),
                "header_bytes": round(moved - formula),
                "of_raw": round(moved / first, 4),
            }


def _step(place: Path, source: str, task: Task, choice: Choice, shape: Shape) -> tuple[float, float]:
    """(counted, by formula) bytes of a step, up and down together."""
    data = write_rows(place / "rows.jsonl", task, shape.tokens, 2 * shape.batch)
    last = open_base(source).num_layers - 1
    path = write_run(place, source, task, [client("device", "u", (1, last), data=data)], shape)
    with_codec(path, choice)
    run_processes(path)
    with RunDir(place / "run").journal() as journal:
        done = compared(journal)
    if len(done) != 1 or not done[0].up_bytes.actual or not done[0].down_bytes.actual:
        raise InternalError("the run did not say what its steps moved: nothing was measured")
    up, down = done[0].up_bytes, done[0].down_bytes
    assert up.actual is not None
    assert down.actual is not None
    return up.actual + down.actual, up.predicted + down.predicted


def with_codec(path: Path, choice: Choice) -> None:
    """Write the codec into a run file."""
    run = load(path)
    codec, _, gradients = choice.name.partition("+")
    wire = structs.replace(run.wire, codecs=(codec,), gradient_bits=4 if gradients else 8)
    path.write_text(dumps(structs.replace(run, wire=wire)), "utf-8")


def _quality(task: bench_quality.Task, choices: Sequence[Choice], data: Path, rounds: int, seed: int) -> Iterator[Row]:
    """``lost``: points of accuracy, or per cent of perplexity, worse than raw; negative: better."""
    first: float | None = None
    for choice in choices:
        one = replace(task, settings=task.settings + choice.text, rounds=rounds or task.rounds)
        row = bench_quality.measured(one, data, seed, 0, "cpu")
        after = float(str(row["after"]))
        first = after if first is None else first
        lost = 100 * (first - after) if task.metric == "accuracy" else 100 * (after / first - 1)
        yield {
            "task": task.name,
            "codec": choice.name,
            "steps": row["steps"],
            "metric": task.metric,
            "before": row["before"],
            "after": after,
            "lost": round(lost, 2),
            "up_bytes": row["up_bytes"],
            "seconds": row["seconds"],
        }
