"""``fedsplit bench emulated``: is the cut that the planner chooses the fastest one, on devices that are not here?

Small fleets of emulated devices with different shortages. Every device trains alone with an emulated server, with every
cut that it may have (which is a complete grid), and the planned cut's measured step is compared with the fastest one's.
The planned cut and the fastest others are measured again, longer, before they are compared: the fastest of many noisy
numbers is always too fast.

Speeds are shares of one core here, so the fleets are the same anywhere. What the planner is told of that core is
measured as ``fedsplit profile`` does, without the time that other programs had it.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from msgspec.structs import replace

from fedsplit import assets
from fedsplit.cli import bench_runs
from fedsplit.cli.bench_cuts import NAME, Cuts, Training
from fedsplit.cli.bench_models import model_and_task, write_rows
from fedsplit.cli.bench_runs import client, words, write_run
from fedsplit.cli.plan import model_card
from fedsplit.config.load import load
from fedsplit.config.run import RunFile
from fedsplit.devices.here import architecture
from fedsplit.devices.profile import SAFETY, DeviceProfile, Link
from fedsplit.errors import ConfigError, Problem
from fedsplit.plan.model import ModelCard
from fedsplit.plan.options import Option, describe
from fedsplit.plan.question import Question, options_of, questions
from fedsplit.plan.solve import solve
from fedsplit.plan.types import Cut, Topology
from fedsplit.probe.layer import Shape, torch_pass
from fedsplit.probe.speed import COPY_BYTES, ROWS, TINY

Measure = Callable[[DeviceProfile, float, Option, int], list[float]]
SERVER_SHARE = 0.5
"""Of one core: the server's. Less than a whole one, so that it gets its share beside other programs."""
AGAIN = 2
"""Cuts beside the planned one that are measured a second time."""
PLENTY = 2**36


@dataclass(frozen=True, kw_only=True)
class Device:
    """``share`` of one core here; ``memory``: how far its memory reaches from the smallest plan to the largest one."""

    share: float
    mbit: float
    latency_s: float
    memory: float = 0.0

    def __str__(self) -> str:
        room = f", {self.memory:.0%} of the memory" if self.memory else ""
        return f"{self.share:.0%} of a core, {self.mbit:g} Mbit/s{room}"


FLEETS = {
    "slow link": (
        Device(share=0.4, mbit=4, latency_s=0.02),
        Device(share=0.15, mbit=12, latency_s=0.01),
    ),
    "weak processor": (
        Device(share=0.08, mbit=50, latency_s=0.003),
        Device(share=0.15, mbit=25, latency_s=0.005),
    ),
    "little memory": (
        Device(share=0.3, mbit=20, latency_s=0.005, memory=0.6),
        Device(share=0.3, mbit=80, latency_s=0.003, memory=0.3),
    ),
}


def rows(
    models: str = "minilm",
    fleets: str = "slow link,weak processor,little memory",
    shape: str = "4x24",
    steps: int = 2,
    data: str = "",
    details: str = "",
) -> list[dict[str, object]]:
    """The planned cut's measured step against the fastest of all allowed cuts; ``over`` is 0 where they are the same.

    ``models``: names or folders; ``llama``, ``bert``: random ones with 6 layers. ``steps``: of each cut, twice as many
    where it counts. ``data``: rows to train on instead of made-up ones. ``details``: a file for every number.
    """
    for name in words(fleets):
        if name not in FLEETS:
            raise ConfigError([Problem("--fleets", repr(name), f"some of {', '.join(FLEETS)}")])
    batch, tokens = _shape(shape)
    core = this_core()
    found, everything = [], []
    with tempfile.TemporaryDirectory(prefix="fedsplit-") as scratch:
        for model in words(models):
            training = _training(model, Path(scratch), batch, tokens, data)
            with Cuts(training, Path(scratch), held_to(core, SERVER_SHARE, "server"), SERVER_SHARE) as cuts:
                for fleet, device in _devices(words(fleets)):
                    case = Case.of(training, device, core, Path(scratch))
                    row, measured = case.compared(cuts.seconds, steps)
                    found.append({"model": model, "fleet": fleet, "device": str(device), **row})
                    everything.append(found[-1] | {"cuts": measured})
    if details:
        Path(details).write_text(json.dumps(everything, indent=1), "utf-8")
    return found


def _shape(text: str) -> tuple[int, int]:
    batch, _, tokens = text.partition("x")
    if not (batch.isdecimal() and tokens.isdecimal() and int(batch) > 0 and int(tokens) > 0):
        raise ConfigError([Problem("--shape", repr(text), "BATCHxTOKENS such as 4x24")])
    return int(batch), int(tokens)


def _devices(fleets: Sequence[str]) -> Iterator[tuple[str, Device]]:
    return ((fleet, device) for fleet in fleets for device in FLEETS[fleet])


def _training(model: str, scratch: Path, batch: int, tokens: int, data: str) -> Training:
    source, task = model_and_task(model, scratch)
    folder = assets.path(model) if model in assets.NAMES else Path(source)
    made = Path(data) if data else write_rows(scratch / f"{folder.name}.jsonl", task, tokens, 4 * batch)
    return Training(folder=folder, model=str(folder), task=task, data=made, batch=batch, tokens=tokens)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One device with one model: the plan, and all that could have been planned."""

    device: Device
    profile: DeviceProfile
    planned: tuple[Topology, Cut]
    options: Sequence[Option]

    @staticmethod
    def of(training: Training, device: Device, core: DeviceProfile, scratch: Path) -> Case:
        server = held_to(core, SERVER_SHARE, "server")
        link = Link(up_bps=device.mbit * 1e6 / 8, down_bps=device.mbit * 1e6 / 8, latency_s=device.latency_s)
        profile = held_to(core, device.share, NAME, link)
        run, card = _asked(training, scratch)
        if device.memory:
            sizes = [one.memory.total for one in _options(card, run, profile, server)]
            budget = min(sizes) + device.memory * (max(sizes) - min(sizes))
            profile = held_to(core, device.share, NAME, link, int(budget / SAFETY) + 1)
        plan = solve(card, {NAME: profile}, run, server=server).clients[0]
        options = [one for one in _options(card, run, profile, server) if one.fits]
        return Case(device=device, profile=profile, planned=(plan.topology, plan.cut), options=options)

    def compared(self, steps_of: Measure, steps: int) -> tuple[dict[str, object], list[dict[str, object]]]:
        """(the row, every cut's numbers). ``steps_of`` gives the seconds of that many steps with a cut."""
        known = {name(one): one for one in self.options}
        once = {one: steps_of(self.profile, self.device.share, known[one], steps) for one in known}
        chosen = describe(*self.planned)
        others = sorted((one for one in once if one != chosen), key=lambda one: typical(once[one]))
        again = {
            one: steps_of(self.profile, self.device.share, known[one], 2 * steps) for one in [chosen, *others[:AGAIN]]
        }
        best = min(again, key=lambda one: (typical(again[one]), one != chosen))
        planned_s, best_s = typical(again[chosen]), typical(again[best])
        off = [abs(known[one].times.total / typical(once[one]) - 1) for one in once]
        row = {
            "cuts": len(once),
            "planned": chosen,
            "predicted_s": float(f"{known[chosen].times.total:.4g}"),
            "measured_s": float(f"{planned_s:.4g}"),
            "best": best,
            "best_s": float(f"{best_s:.4g}"),
            "over": round(planned_s / best_s - 1, 3),
            "median_error": round(statistics.median(off), 3),
        }
        return row, [numbers(known[one], once[one], again.get(one, [])) for one in once]


def numbers(option: Option, once: list[float], again: list[float]) -> dict[str, object]:
    """Everything about one cut, for whoever looks for the term that is off."""
    return {
        "cut": name(option),
        "micro_batches": option.work.micro_batches,
        "predicted": asdict(option.times) | {"total": option.times.total},
        "seconds": once,
        "again": again,
    }


def typical(taken: list[float]) -> float:
    """The middle one: other programs make steps slower in bursts."""
    return statistics.median(taken)


def name(option: Option) -> str:
    return describe(option.topology, option.cut)


def _asked(training: Training, scratch: Path) -> tuple[RunFile, ModelCard]:
    """The run as the planner sees it when nothing is fixed."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    shape = bench_runs.Shape(batch=training.batch, tokens=training.tokens, steps=1)
    path = write_run(folder, training.model, training.task, [client(NAME, "")], shape)
    run = load(path)
    return run, model_card(run, folder)


def _options(card: ModelCard, run: RunFile, profile: DeviceProfile, server: DeviceProfile) -> list[Option]:
    asked: Question = questions(card, {NAME: profile}, run, server=server)[NAME]
    return options_of(asked)[0]


def this_core(seconds: float = 1.0) -> DeviceProfile:
    """One core of this machine by itself: each number the median of ``seconds`` of processor time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        layers = [Shape(rows=rows) for rows in ROWS]
        flops = max(one.operations / _alone(torch_pass(one, "float32", "cpu"), seconds) for one in layers)
        overhead = _alone(torch_pass(TINY, "float32", "cpu"), seconds) / 2
        source = torch.ones(COPY_BYTES // 4)
        target = torch.empty_like(source)
        bandwidth = 2 * COPY_BYTES / _alone(lambda: target.copy_(source), seconds)
    finally:
        torch.set_num_threads(before)
    return DeviceProfile(
        name="one core", arch=architecture(), cores=1, threads=1, flops={"float32": flops},
        memory_bandwidth_bps=bandwidth, memory_bytes=PLENTY, free_memory_bytes=PLENTY, layer_overhead_s=overhead,
    )  # fmt: skip


def _alone(work: Callable[[], object], seconds: float) -> float:
    """Median processor seconds of ``work``: what other programs take of the core meanwhile is left out."""
    work()
    taken: list[float] = []
    while sum(taken) < seconds:
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return statistics.median(taken)


def held_to(
    core: DeviceProfile, share: float, called: str, link: Link | None = None, free_bytes: int = PLENTY
) -> DeviceProfile:
    """A device that is ``share`` of ``core``: everything takes 1 / share as long."""
    return replace(
        core,
        name=called,
        flops={dtype: value * share for dtype, value in core.flops.items()},
        memory_bandwidth_bps=core.memory_bandwidth_bps * share,
        layer_overhead_s=core.layer_overhead_s / share,
        free_memory_bytes=free_bytes,
        link=link,
    )
