"""``fedsplit compare``: run files or methods side by side over several seeds, run as ``fedsplit simulate`` does it.

A finished run is never repeated: the same command goes on after Ctrl-C, and more seeds add to those that are there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from msgspec.structs import replace
from rich.console import Console

from fedsplit.cli.compare_course import Course, Job
from fedsplit.cli.compare_plot import check_matplotlib, write_plot
from fedsplit.cli.compare_record import CSV, JSON, PICTURE, Comparison, read
from fedsplit.cli.compare_table import print_comparison
from fedsplit.cli.compare_variants import candidates, check_comparable, methods_of, metric_for, seeds_of
from fedsplit.cli.display import Display
from fedsplit.cli.interrupts import if_interrupted, terminated_like_interrupted
from fedsplit.cli.place import Device, check_device
from fedsplit.cli.simulate import run_processes
from fedsplit.errors import ConfigError, FedsplitError, Problem
from fedsplit.events import Emit
from fedsplit.exchange.selection import HIGHER_IS_BETTER

OUT = Path("comparison")
Words = Annotated[list[str] | None, typer.Option("--grid", metavar="SECTION.KEY=V1,V2", help="Tune on validation.")]


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN.TOML… | DIR", help="Run files, or a finished comparison.")],
    seeds: Annotated[str, typer.Option(help="How many, as in 3, or which, as in 0,1,5.")] = "3",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the runs and their numbers.")] = OUT,
    methods: Annotated[
        str | None, typer.Option(help="Each of these methods instead of a run file's, as in lora,flora.")
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="METHOD.KEY=VALUE", help="An option of a method.")
    ] = None,
    grid: Words = None,
    tune_seeds: Annotated[int, typer.Option(min=1, help="Seeds that choose the settings of --grid.")] = 1,
    metric: Annotated[str, typer.Option(help="Compare this one; by default what the runs choose by.")] = "",
    target: Annotated[str, typer.Option(help="Count the rounds to this value, as in 0.8 or accuracy=0.8.")] = "",
    test: Annotated[Path | None, typer.Option(help="Measure chosen checkpoints on this file of rows.")] = None,
    device: Device = "cpu",
    plot: Annotated[bool, typer.Option(help="Draw compare.png.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print compare.json instead of the tables.")] = False,
) -> None:
    """Run every file (or method) with every seed, and show metric, bytes, time and memory side by side.

    Settings of --grid are chosen per method by validation, never on the --test file.
    """
    asked, goal = _target(target, metric)
    if len(runs) == 1 and runs[0].is_dir():
        _show(_again(runs[0], asked, goal), runs[0], json)
        return
    check_device(device)
    if plot:
        check_matplotlib()
    some = candidates(runs, methods_of(methods), options or [], grid or [])
    check_comparable(some, str(test or ""))
    job = Job(
        candidates=some, out=out, metric=metric_for(some, asked), seeds=seeds_of(seeds), tune_seeds=tune_seeds,
        target=goal, test=str(test.resolve()) if test else "", device=device,
    )  # fmt: skip
    found = _made(job, plot)
    _show(found, out, json)
    _refuse_failed(found)


def _made(job: Job, plot: bool) -> Comparison:
    console = Console(stderr=True, highlight=False)
    with ExitStack() as stack:
        watch = _Views(stack, console)
        course = Course(job=job, run=run_processes, watch=watch)
        if job.test:
            # Not at the top: `--help` must not wait for torch.
            from fedsplit.cli.compare_exam import FileExam

            course.examiner = FileExam(Path(job.test), [one.run for one in job.candidates], job.device)
        watch.count = lambda: f"{course.done + 1} of {course.total}"
        stack.enter_context(if_interrupted(lambda: _kept(course)))
        stack.enter_context(terminated_like_interrupted())
        found = course.go()
    if plot:
        write_plot(found, job.out / PICTURE)
    return found


class _Views:
    """A view for each run, with the place of the run among all of them in its title."""

    def __init__(self, stack: ExitStack, console: Console) -> None:
        self._outer, self._console = stack, console
        self._inner = stack.enter_context(ExitStack())
        self.count: Callable[[], str] = lambda: ""

    def __call__(self, title: str) -> Emit:
        self._inner.close()
        title = f"{self.count()}: {title}"
        self._console.print(f"[bold]{title}[/]")
        return self._inner.enter_context(Display(title=title, console=self._console))


def _target(text: str, metric: str) -> tuple[str, float | None]:
    """The metric and the value of ``--target``; either may be left out."""
    name, equals, value = text.rpartition("=")
    try:
        goal = float(value) if text else None
    except ValueError:
        raise ConfigError([Problem("--target", repr(text), "a number, or METRIC=NUMBER")]) from None
    if equals and name not in HIGHER_IS_BETTER:
        raise ConfigError([Problem("--target", repr(text), f"one of {', '.join(HIGHER_IS_BETTER)} before =")])
    if name and metric and name != metric:
        raise ConfigError([Problem("--target", name, f"the metric of --metric, {metric}")])
    return metric or name, goal


def _again(folder: Path, metric: str, target: float | None) -> Comparison:
    """A finished comparison, perhaps by another metric or with another target."""
    found = read(folder)
    known = {name for run in found.runs for point in run.points for name in point.metrics}
    if metric and metric not in known & HIGHER_IS_BETTER.keys():
        expected = ", ".join(sorted(known & HIGHER_IS_BETTER.keys())) or "none: nothing was measured"
        raise ConfigError([Problem("--metric", repr(metric), f"one of {expected}")])
    return replace(found, metric=metric or found.metric, target=found.target if target is None else target)


def _show(found: Comparison, folder: Path, json: bool) -> None:
    if json:
        typer.echo((folder / JSON).read_text("utf-8"), nl=False)
        return
    print_comparison(found)
    typer.echo(f"every run and round: {folder / CSV}; all numbers: {folder / JSON}")
    if (folder / PICTURE).is_file():
        typer.echo(f"the curves: {folder / PICTURE}")


def _kept(course: Course) -> str:
    return f"{course.done} of {course.total} runs are finished and kept in {course.job.out}; the same command goes on"


def _refuse_failed(found: Comparison) -> None:
    """:raises FedsplitError: a run failed; the others are kept and shown."""
    failed = [run for run in found.runs if run.error]
    if failed:
        first = failed[0]
        raise FedsplitError(f"{len(failed)} runs failed; first {first.variant} with seed {first.seed}: {first.error}")
