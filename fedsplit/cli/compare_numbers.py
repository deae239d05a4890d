"""The numbers of a comparison's table: means and standard deviations over seeds, and paired differences.

A difference is taken within a seed, where both sides drew the same rows in the same order, and its interval is
Student's ("The probable error of a mean", Biometrika 1908) over the seeds. Few seeds give wide intervals: that is what
few seeds know.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence

from msgspec import Struct

from fedsplit.cli.compare_record import Comparison, Run

T_975 = (
    *(12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139),
    *(2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963),
    *(2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272),
)
"""Student's t, 97.5 %, for 1 to 30 degrees of freedom."""
Z_975 = 1.959964


class Spread(Struct, frozen=True, kw_only=True):
    """Mean and standard deviation (n−1) over ``n`` seeds; the deviation is None for one."""

    n: int
    mean: float
    std: float | None = None


class Summary(Struct, frozen=True, kw_only=True):
    """A row of the table. Numbers are over the seeds; None where no run has it.

    ``reached``: rounds to the target over those of ``reached_by`` runs that met it.
    """

    variant: str
    runs: int
    failed: str = ""
    final: Spread | None = None
    best: Spread | None = None
    test: Spread | None = None
    reached: Spread | None = None
    reached_by: int = 0
    up_bytes: Spread | None = None
    down_bytes: Spread | None = None
    seconds: Spread | None = None
    client_peak_bytes: int | None = None
    server_peak_bytes: int | None = None


class Pair(Struct, frozen=True, kw_only=True):
    """``first`` − ``second`` over ``n`` equal seeds; the 95 % interval of the mean is None for one seed."""

    first: str
    second: str
    n: int
    mean: float
    low: float | None = None
    high: float | None = None


def summaries(found: Comparison) -> list[Summary]:
    """A row for every variant that is shown."""
    return [_summary(name, found) for name in found.shown]


def pairs(found: Comparison) -> list[Pair]:
    """Every two variants that are shown and share a seed: on the test file where there is one, else the last
    evaluation."""
    values = {name: {run.seed: deciding(run, found) for run in found.of(name)} for name in found.shown}
    made = []
    for first, second in itertools.combinations(found.shown, 2):
        both = [(values[first].get(seed), values[second].get(seed)) for seed in found.seeds]
        gaps = [a - b for a, b in both if a is not None and b is not None]
        if gaps:
            made.append(_pair(first, second, gaps))
    return made


def deciding(run: Run, found: Comparison) -> float | None:
    """The number that pairs are made of."""
    return run.test.get(found.metric) if found.test else run.final(found.metric)


def spread(values: Sequence[float | None]) -> Spread | None:
    """Over those that are there; None for none."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return None
    std = statistics.stdev(known) if len(known) > 1 else None
    return Spread(n=len(known), mean=statistics.fmean(known), std=std)


def t_975(freedom: int) -> float:
    """Student's t for a two-sided interval of 95 %, ``freedom`` at least 1."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    # Two terms of its expansion at the normal's quantile: under 0.0001 off from here on.
    z = Z_975
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _pair(first: str, second: str, gaps: Sequence[float]) -> Pair:
    found = Pair(first=first, second=second, n=len(gaps), mean=statistics.fmean(gaps))
    if len(gaps) < 2:
        return found
    half = t_975(len(gaps) - 1) * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return Pair(first=first, second=second, n=len(gaps), mean=found.mean, low=found.mean - half, high=found.mean + half)


def _summary(name: str, found: Comparison) -> Summary:
    done, metric = found.of(name), found.metric
    rounds = [run.reached(metric, found.target) for run in done] if found.target is not None else []
    return Summary(
        variant=name,
        runs=len(done),
        failed=next((run.error for run in found.runs if run.variant == name and run.error), ""),
        final=spread([run.final(metric) for run in done]),
        best=spread([run.best(metric) for run in done]),
        test=spread([run.test.get(metric) for run in done]) if found.test else None,
        reached=spread(rounds),
        reached_by=sum(one is not None for one in rounds),
        up_bytes=spread([_mean(run.up_bytes.values()) for run in done]),
        down_bytes=spread([_mean(run.down_bytes.values()) for run in done]),
        seconds=spread([run.training_s for run in done]),
        client_peak_bytes=max((peak for run in done for peak in run.client_peak_bytes.values()), default=None),
        server_peak_bytes=max((run.server_peak_bytes for run in done if run.server_peak_bytes), default=None),
    )


def _mean(values: Iterable[int]) -> float | None:
    known = list(values)
    return statistics.fmean(known) if known else None
