"""The course of a comparison: which runs are made in which order, what is chosen, and what is kept after each of them.

Settings of a grid are chosen by validation alone: every setting runs with the tuning seeds, the best mean of the runs'
own best validation wins, and only winners run with the other seeds and are measured on the test file.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace

from fedsplit.cli.compare_numbers import pairs, summaries
from fedsplit.cli.compare_record import Comparison, Run, read, write
from fedsplit.cli.compare_runs import Place, Runner, Watch, check_free, complete, place
from fedsplit.cli.compare_variants import Candidate, measured_on
from fedsplit.errors import ConfigError
from fedsplit.exchange.selection import better
from fedsplit.state.durable import make_private
from fedsplit.state.lock import FolderLock
from fedsplit.state.manifest import command, machine, versions


class Examiner(Protocol):
    """Measures the chosen checkpoint of a run on the test file."""

    sha256: str

    def of(self, folder: Path) -> dict[str, float | None]:
        """Its metrics. Raises ConfigError where the run has no one model to measure."""
        ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """What was asked for. ``tune_seeds``: how many of ``seeds`` choose the settings of a grid."""

    candidates: Sequence[Candidate]
    out: Path
    metric: str
    seeds: tuple[int, ...]
    tune_seeds: int = 1
    target: float | None = None
    test: str = ""
    device: str = "cpu"


@dataclass(kw_only=True)
class Course:
    """``go`` makes what is missing. ``seen`` gets the comparison after each run, after it was written to disk."""

    job: Job
    run: Runner
    watch: Watch
    examiner: Examiner | None = None
    seen: Callable[[Comparison], None] = lambda found: None
    _runs: dict[tuple[str, int], Run] = field(default_factory=dict)
    _earlier: dict[str, Run] = field(default_factory=dict)
    _notes: dict[str, None] = field(default_factory=dict)
    _chosen: list[str] = field(default_factory=list)

    def go(self) -> Comparison:
        """The whole comparison; a run that fails is recorded, and its variant goes no further.

        :raises ConfigError: the folder holds another comparison, or another process works in it.
        """
        job = self.job
        make_private(job.out)
        with FolderLock(job.out, "comparison", "wait for it, or give another --out"):
            check_free(place(one, seed, job.out) for one in job.candidates for seed in job.seeds)
            self._recall()
            for one in self._first():
                self._make(one)
            self._choose()
            for one in self._second():
                self._make(one)
                self._examine(one)
            self._keep()
        return self.comparison()

    def comparison(self) -> Comparison:
        """All that is known so far."""
        job, first = self.job, self.job.candidates[0]
        return Comparison(
            command=command(),
            metric=job.metric,
            measured_on=measured_on(first.run),
            target=job.target,
            test=job.test,
            seeds=job.seeds,
            tuned_on=self._tuning if self._tuned else (),
            variants=tuple(one.variant for one in job.candidates),
            chosen=tuple(self._chosen),
            runs=tuple(self._runs.values()),
            notes=tuple(self._notes),
            machine=f"{machine().processor}, {machine().cores} cores, {machine().system}",
            versions=versions(),
        )

    @property
    def total(self) -> int:
        """Runs of the whole comparison."""
        losers = len(self.job.candidates) - len(self._groups)
        return len(self._groups) * len(self.job.seeds) + losers * len(self._tuning)

    @property
    def done(self) -> int:
        return sum(run.done for run in self._runs.values())

    @property
    def _groups(self) -> dict[str, list[Candidate]]:
        found: dict[str, list[Candidate]] = {}
        for one in self.job.candidates:
            found.setdefault(one.variant.group, []).append(one)
        return found

    @property
    def _tuned(self) -> bool:
        return any(len(some) > 1 for some in self._groups.values())

    @property
    def _tuning(self) -> tuple[int, ...]:
        return self.job.seeds[: self.job.tune_seeds]

    def _first(self) -> Iterator[Place]:
        """What the choice of settings needs."""
        for seed in self._tuning:
            for some in self._groups.values():
                yield from (place(one, seed, self.job.out) for one in some if len(some) > 1)

    def _second(self) -> Iterator[Place]:
        """Seed by seed, so that a comparison that is stopped has pairs."""
        for seed in self.job.seeds:
            yield from (place(one, seed, self.job.out) for one in self._winners)

    @property
    def _winners(self) -> list[Candidate]:
        return [one for one in self.job.candidates if one.variant.name in self._chosen]

    def _make(self, one: Place) -> None:
        name = one.candidate.variant.name
        failed = any(run.error for (whose, _), run in self._runs.items() if whose == name)
        if failed or (name, one.seed) in self._runs:
            return
        self._runs[name, one.seed] = complete(one, self.run, self.watch, self.job.device)
        self._keep()

    def _choose(self) -> None:
        self._chosen = [self._best(some).variant.name for some in self._groups.values()]
        if self._tuned:
            seeds, where = ", ".join(map(str, self._tuning)), measured_on(self.job.candidates[0].run)
            text = f"settings were chosen by {self.job.metric} on {where} (seeds {seeds})"
            flatters = (
                "" if self.job.test else "; there, numbers flatter what they chose: --test FILE measures elsewhere"
            )
            self._notes[text + flatters] = None
        self._keep()

    def _validation(self, candidate: Candidate) -> float:
        """The mean over the tuning seeds; NaN unless every one has a number."""
        runs = [self._runs.get((candidate.variant.name, seed)) for seed in self._tuning]
        values = [run.best(self.job.metric) if run is not None and run.done else None for run in runs]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known and len(known) == len(values) else float("nan")

    def _best(self, some: Sequence[Candidate]) -> Candidate:
        """The first of equals, and of none that has a number."""
        chosen = some[0]
        for one in some[1:]:
            if better(self.job.metric, self._validation(one), self._validation(chosen)):
                chosen = one
        return chosen

    def _examine(self, one: Place) -> None:
        key = (one.candidate.variant.name, one.seed)
        run = self._runs.get(key)
        if self.examiner is None or run is None or not run.done:
            return
        known = self._earlier.get(run.digest)
        if known is not None and known.test_sha256 == self.examiner.sha256:
            test = known.test
        else:
            try:
                test = self.examiner.of(one.folder)
            except ConfigError as error:
                self._notes[f"{key[0]} is not measured on the test file ({_why(error)}): compare it without --test"] = (
                    None
                )
                return
        self._runs[key] = replace(run, test=test, test_sha256=self.examiner.sha256)
        self._keep()

    def _recall(self) -> None:
        """What was measured on the test file before, by the digest of what was measured."""
        if (self.job.out / "compare.json").is_file():
            self._earlier = {run.digest: run for run in read(self.job.out).runs if run.test}

    def _keep(self) -> None:
        found = self.comparison()
        write(self.job.out, found, {"variants": summaries(found), "pairs": pairs(found)})
        self.seen(found)


def _why(error: ConfigError) -> str:
    """Why a run has no one model, the same for every seed of a variant."""
    if not error.problems:
        return str(error)
    [first, *_] = error.problems
    return "every group has an adapter of its own" if first.path == "--group" else first.found
