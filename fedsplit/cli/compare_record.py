"""What ``fedsplit compare`` knows of its runs, as ``compare.json`` keeps it: values only, nothing is run or drawn here.

The number that is compared is called the metric throughout. Where runs measure it says ``measured_on``; every number of
a run is on rows that chose its checkpoint, except ``test``.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct, field

from fedsplit.errors import ConfigError, Problem
from fedsplit.exchange.selection import better
from fedsplit.state.durable import write_file

JSON, CSV, PICTURE = "compare.json", "compare.csv", "compare.png"
FORMAT = 1


class Variant(Struct, frozen=True, kw_only=True):
    """One thing that is compared. ``group``: what it is a setting of, where settings are tuned; else its own name."""

    name: str
    source: str
    method: str
    group: str
    settings: dict[str, object] = field(default_factory=dict)


class Point(Struct, frozen=True, kw_only=True):
    """A run after ``round`` rounds (0: before). Bytes are of training, a client's mean, since the run began."""

    round: int
    metrics: dict[str, float | None]
    up_bytes: float
    down_bytes: float
    seconds: float


class Run(Struct, frozen=True, kw_only=True):
    """One variant with one seed. ``error``: why it failed. ``test``: metrics of the chosen checkpoint on the test file.

    ``up_bytes`` and ``down_bytes``: of training, by client; peaks are bytes of whole processes, None where unknown.
    """

    variant: str
    seed: int
    folder: str = ""
    error: str = ""
    digest: str = ""
    reason: str = ""
    points: tuple[Point, ...] = ()
    test: dict[str, float | None] = field(default_factory=dict)
    test_sha256: str = ""
    up_bytes: dict[str, int] = field(default_factory=dict)
    down_bytes: dict[str, int] = field(default_factory=dict)
    seconds: float | None = None
    client_peak_bytes: dict[str, int] = field(default_factory=dict)
    server_peak_bytes: int | None = None

    @property
    def done(self) -> bool:
        return not self.error and bool(self.digest)

    @property
    def training_s(self) -> float | None:
        """From the first round's begin to the last evaluation; ``seconds`` counts the wait for clients, too."""
        return self.points[-1].seconds if self.points else None

    def final(self, metric: str) -> float | None:
        """Of the last evaluation that has it."""
        found = [point.metrics[metric] for point in self.points if point.metrics.get(metric) is not None]
        return found[-1] if found else None

    def best(self, metric: str) -> float | None:
        """Of all evaluations after training began."""
        best = math.nan
        for point in self.points:
            value = point.metrics.get(metric)
            if point.round and value is not None and better(metric, value, best):
                best = value
        return None if math.isnan(best) else best

    def reached(self, metric: str, target: float) -> int | None:
        """The first round after which ``target`` was met; None: never."""
        for point in self.points:
            value = point.metrics.get(metric)
            if value is not None and (value == target or better(metric, value, target)):
                return point.round
        return None


class Comparison(Struct, frozen=True, kw_only=True):
    """All of it. ``chosen``: names of the variants that stand in the table; the others are settings that lost.

    ``tuned_on``: seeds whose validation chose the settings; empty where nothing was tuned.
    """

    format: int = FORMAT
    command: str
    metric: str
    measured_on: str
    target: float | None = None
    test: str = ""
    seeds: tuple[int, ...]
    tuned_on: tuple[int, ...] = ()
    variants: tuple[Variant, ...]
    chosen: tuple[str, ...] = ()
    runs: tuple[Run, ...] = ()
    notes: tuple[str, ...] = ()
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def of(self, variant: str) -> list[Run]:
        """Its finished runs, in the order of the seeds."""
        return sorted((run for run in self.runs if run.variant == variant and run.done), key=lambda run: run.seed)

    @property
    def seed_holds_back(self) -> bool:
        """Whether another seed measures on other rows."""
        return "hold back" in self.measured_on and not self.test

    @property
    def shown(self) -> list[str]:
        """Names of the variants to show: the chosen ones, all while nothing is chosen yet."""
        return list(self.chosen) or [one.name for one in self.variants]


def read(folder: Path) -> Comparison:
    """``compare.json`` of a folder.

    :raises ConfigError: there is none, or it cannot be read.
    """
    path = folder / JSON
    try:
        return msgspec.json.decode(path.read_bytes(), type=Comparison)
    except FileNotFoundError:
        fix = "give run files, or the folder that fedsplit compare wrote"
        raise ConfigError([Problem(str(folder), f"no {JSON}", "a folder with a comparison", fix)]) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError([Problem(str(path), f"{error}", "the file as fedsplit compare wrote it")]) from None


def write(folder: Path, found: Comparison, summary: Mapping[str, object]) -> None:
    """``compare.json`` (with ``summary``, for other programs) and ``compare.csv``. Raises DataError."""
    content = {**msgspec.to_builtins(found), "summary": summary}
    write_file(folder / JSON, msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    write_file(folder / CSV, as_csv(found).encode())


def as_csv(found: Comparison) -> str:
    """A row a run and evaluated round, with every metric that any run has."""
    names = sorted({name for run in found.runs for point in run.points for name in point.metrics})
    variants = {one.name: one for one in found.variants}
    settings = sorted({key for one in found.variants for key in one.settings})
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    head = ["variant", "source", "method", *settings, "chosen", "seed", "round"]
    rows.writerow([*head, "up_bytes", "down_bytes", "seconds", *names])
    for run in sorted(found.runs, key=lambda run: (list(variants).index(run.variant), run.seed)):
        one = variants[run.variant]
        own = [one.name, one.source, one.method, *(one.settings.get(key, "") for key in settings)]
        for point in run.points:
            numbers = (round(point.up_bytes), round(point.down_bytes), round(point.seconds, 3))
            values = (point.metrics.get(name) for name in names)
            at = (one.name in found.shown, run.seed, point.round)
            rows.writerow([*own, *at, *numbers, *("" if value is None else value for value in values)])
    return out.getvalue()
