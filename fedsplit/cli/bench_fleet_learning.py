"""What ``fedsplit bench fleet`` learns: accuracy after every round, of real runs as fast as this machine is.

How much is learned in a round does not depend on how slow a device is, so a curve is learned once, without holding
anybody to a device's speed, and read against the seconds that a round takes under emulation. Every run is a file in the
bench's folder; what is there is not run again, unless it was made at another scale.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import structs

import fedsplit
from fedsplit.cli.bench_fleet_ways import Scale, Way, run_of
from fedsplit.config.run import RunFile
from fedsplit.data.partition import Request, partition
from fedsplit.data.records import records
from fedsplit.devices.fleet import Fleet
from fedsplit.devices.profile import DeviceProfile
from fedsplit.errors import DataError
from fedsplit.events import Emit, Event, RoundClosed
from fedsplit.state import checkpoints
from fedsplit.state.checkpoints import Checkpoint
from fedsplit.train.kept import pack

if TYPE_CHECKING:  # listing the benches must not wait for torch
    from fedsplit.cli.bench_fleet_marks import Marks

Curve = dict[str, Any]
"""``validation`` and ``test``: accuracy after each round, ``test`` None where it was not asked for yet."""
ALPHA = 0.5
"""Of the Dirichlet law by which labels are divided."""
POOLED = "centralised"
ALONE_MARKS = 4
"""How often a client that trains alone is measured."""


class Rows:
    """AG News as the bench needs it: every seed's client files, rows that choose the learning rate, rows to test on."""

    def __init__(self, data: Path, folder: Path, scale: Scale, clients: Sequence[str]) -> None:
        self._source, self._folder, self._scale, self._clients = data / "ag_news", folder / "rows", scale, clients
        if not (self._source / "train.jsonl.gz").is_file():
            raise DataError("no ag_news/train.jsonl.gz there; docs/data.md says where to get the data", str(data))

    def of(self, seed: int) -> Mapping[str, Path]:
        """Each client's file, split with this seed."""
        target = self._folder / f"split-{seed}"
        files = {name: target / f"{name}.jsonl" for name in self._clients}
        if not all(path.is_file() for path in files.values()):
            shutil.rmtree(target, ignore_errors=True)
            request = Request(law="dirichlet", clients=len(files), alpha=ALPHA, seed=seed)
            for part, path in zip(partition(self.train, target, request), files.values(), strict=True):
                (target / part.file).rename(path)
        return files

    @property
    def train(self) -> Path:
        """All clients' rows in one file."""
        return self._cut("train.jsonl.gz", "train", 0, self._scale.train_rows)

    @property
    def validation(self) -> Path:
        """Rows that no client has, for the learning rate."""
        return self._cut("train.jsonl.gz", "validation", self._scale.train_rows, self._scale.validation_rows)

    @property
    def test(self) -> Path:
        return self._cut("test.jsonl.gz", "test", 0, self._scale.test_rows)

    def _cut(self, source: str, name: str, first: int, count: int) -> Path:
        target = self._folder / f"{name}.jsonl"
        if not target.is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
            found = [dict(record.fields) for record in islice(records(self._source / source), first, first + count)]
            if len(found) < count:
                raise DataError(
                    f"found {first + len(found)} rows, expected {first + count}", str(self._source / source)
                )
            target.write_text("".join(f"{json.dumps(row)}\n" for row in found), "utf-8")
        return target


class Kept(NamedTuple):
    """The global state after a round, and what clients have beside it, if they have something."""

    state: Checkpoint
    own: tuple[Checkpoint, ...] = ()


class Learning:
    """Curves, learned where they are not there yet. ``only_finished``: never learn, None instead."""

    def __init__(self, fleet: Fleet, rows: Rows, folder: Path, scale: Scale, *, only_finished: bool = False) -> None:
        self._fleet, self._rows, self._folder = fleet, rows, folder
        self._scale, self._only_finished = scale, only_finished

    def together(self, way: Way, rate: float, seed: int, *, test: bool = False) -> Curve | None:
        """A way's curve, with ``test`` on the test rows, too."""
        name = f"{way.name}-{rate:g}-{seed}"
        return self._kept(name, way.plans, test, lambda: self._run(way, name, rate, seed), lambda: self._tested(name))

    def alone(self, name: str, rate: float, seed: int, *, test: bool = False) -> Curve | None:
        """The curve of one client by itself, or of ``centralised``: all rows in one place."""
        key = f"alone-{name}-{rate:g}-{seed}"
        return self._kept(key, name, test, lambda: self._alone(name, key, rate, seed), lambda: self._tested(key))

    def elsewhere(self, name: str, about: str, learn: Callable[[Path], None]) -> Curve | None:
        """The curve of a run that ``learn`` runs: it leaves the states of its rounds in the folder that it gets."""

        def learned() -> Curve:
            states = self._states(name)
            learn(states)
            return {"validation": [self._marks.validation(state) for state in states_of(states)]}

        return self._kept(name, about, True, learned, lambda: self._tested(name))

    def _kept(
        self, name: str, about: str, test: bool, learn: Callable[[], Curve], tested: Callable[[], list[float]]
    ) -> Curve | None:
        path = self._folder / "learning" / f"{name}.json"
        # Not where the model lies: the folder may be moved.
        made_at = {"scale": asdict(replace(self._scale, model="")), "about": about}
        found: Curve = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        if {key: found.get(key) for key in made_at} != made_at:
            if self._only_finished:
                return None
            begun = time.monotonic()
            found = {**made_at, **learn(), "test": None}
            _write(path, found | {"seconds": round(time.monotonic() - begun, 1)})
        if test and found["test"] is None and not self._only_finished:
            found = found | {"test": tested()}
            _write(path, found)
        return None if test and found["test"] is None else found

    # ---- together: threads -------------------------------------------------------------------------------------------

    def _run(self, way: Way, name: str, rate: float, seed: int) -> Curve:
        states = self._states(name)
        with tempfile.TemporaryDirectory(prefix="fedsplit-fleet-") as scratch:
            rows, folder = self._rows.of(seed), Path(scratch)
            run = run_of(way, self._scale, seed=seed, rate=rate, data=rows)
            run = structs.replace(run, run=structs.replace(run.run, dir=str(folder / "run")))
            saved = folder / "run" / "checkpoints"
            devices = {one.name: self._fleet.devices[one.name] for one in way.clients}

            def emit(event: Event) -> None:
                if isinstance(event, RoundClosed):
                    keep(saved, states)
                    keep_own(folder, devices, states)

            in_threads(run, devices, rows, folder, emit)
            keep(saved, states)
            keep_own(folder, devices, states)
        return {"validation": [self._marks.validation(state) for state in states_of(states)]}

    def _tested(self, name: str) -> list[float]:
        marks = self._marks
        return [marks.test(state) for state in states_of(self._states(name, fresh=False))]

    def _states(self, name: str, *, fresh: bool = True) -> Path:
        """Where the states of a run's rounds are, to be measured later."""
        target = self._folder / "states" / name
        if fresh:
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
        return target

    # ---- alone: in this process --------------------------------------------------------------------------------------

    def _alone(self, name: str, key: str, rate: float, seed: int) -> Curve:
        """The same steps and rows as together; the optimiser lives as long as the training."""
        marks, states, every = self._marks, self._states(key), self._scale.rounds // ALONE_MARKS or 1
        run = marks.run_at(seed, rate)
        rows, steps = self._rows.train if name == POOLED else self._rows.of(seed)[name], run.train.steps
        curve = []
        for done in marks.training(run, rows, name):
            if done % steps == 0 and (name == POOLED or done // steps % every == 0):
                curve.append(marks.now())
                arrays, counters = pack(marks.held(), {})
                checkpoints.save(states, done // steps, arrays, {"state": counters})
        return {"validation": curve}

    @cached_property
    def _marks(self) -> Marks:
        from fedsplit.cli.bench_fleet_marks import Marks

        return Marks(self._rows.validation, self._rows.test, self._scale)


def in_threads(
    run: RunFile, devices: Mapping[str, DeviceProfile], rows: Mapping[str, Path], folder: Path, emit: Emit
) -> None:
    """The run with server and clients as threads over TCP: the product itself, without a start of torch for each.

    :raises FedsplitError: what any of them raised.
    """
    links: queue.Queue[str] = queue.Queue()
    with ThreadPoolExecutor(len(devices) + 1) as threads:
        server = threads.submit(fedsplit.serve, run, ready=links.put, emit=emit)
        server.add_done_callback(lambda _: links.put(""))  # nobody waits for one that failed
        link = links.get()
        clients = [
            threads.submit(
                fedsplit.join, link, rows[name], name=name, profile=device, measure_link=False, state=folder / name
            )
            for name, device in devices.items()
            if link
        ]
        for one in clients:
            one.result()
        server.result()


def keep(saved: Path, states: Path) -> None:
    """Every round's state stays, where the run itself keeps a few."""
    for round in checkpoints.rounds(saved):
        target = states / f"{round:04d}"
        if round and not target.exists():
            states.mkdir(parents=True, exist_ok=True)
            shutil.copytree(saved / target.name, target, copy_function=os.link)


def keep_own(folder: Path, clients: Iterable[str], states: Path) -> None:
    """So does what each client has for itself, where the method leaves it something."""
    for client in clients:
        for run in {path.parents[1] for path in (folder / client).glob("**/manifest.json")}:
            keep(run, states / "own" / client)


def states_of(folder: Path) -> Iterator[Kept]:
    """The states of all rounds, with what clients had for themselves."""
    for round in checkpoints.rounds(folder):
        state = checkpoints.load(folder, round, exact=True)
        assert state is not None
        own = [checkpoints.load(path, round) for path in sorted((folder / "own").glob("*"))]
        yield Kept(state, tuple(one for one in own if one is not None))


def _write(path: Path, found: Curve) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(found, indent=1), "utf-8")
    aside.replace(path)
