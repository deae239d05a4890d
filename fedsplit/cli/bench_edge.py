"""``fedsplit bench edge``: memory and time of a client's share of a step without torch, against the same in torch.

One process a configuration, on the same cores and in turns; their peaks are the kernel's own. Only the client computes:
no link, no server. Programs count as installed here: the files of each extra and of all that it needs.
"""

from __future__ import annotations

import re
import statistics
import tempfile
import tomllib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import msgspec

from fedsplit.cli.bench_edge_predicted import predicted, predicted_s
from fedsplit.cli.bench_models import LABELS, model_and_task
from fedsplit.cli.bench_runs import Shape, words
from fedsplit.cli.bench_turns import Turns, on_cores
from fedsplit.config.run import ModelSection, RunFile, Task
from fedsplit.emulate.ceiling import peak_of
from fedsplit.errors import ConfigError, Problem
from fedsplit.plan.types import ClientPlan, Cut, LayerPlan, Topology
from fedsplit.split.base import Base, open_base
from fedsplit.split.export.write import export

EVERY = 4
"""Steps between two measurements of NumPy's speed."""
WARM = 2
"""Steps before any is timed: graphs are loaded, memory is taken."""


@dataclass(frozen=True)
class Case:
    """One plan of one model."""

    source: str
    base: Base
    plan: ClientPlan
    shape: Shape
    threads: int
    against_torch: bool

    def run(self, bits: int) -> RunFile:
        """What is learned: to continue where the model can, else a class."""
        task: Task = "causal-lm" if "causal-lm" in self.base.family.heads else "classification"
        labels = () if task == "causal-lm" else LABELS
        table = max(8, bits)
        section = {"path": self.source, "task": task, "labels": labels, "edge_bits": bits, "edge_table_bits": table}
        return RunFile(model=msgspec.convert(section, ModelSection))


def rows(
    models: str = "minilm,pydoc-llama,llama,bert",
    topologies: str = "u,w",
    bits: str = "32,8",
    batch: int = 8,
    tokens: int = 64,
    steps: int = 12,
    threads: int = 1,
    hidden: int = 384,
    layers: int = 6,
    against_torch: bool = True,
) -> list[dict[str, object]]:
    """Peak memory and seconds a step of a client without torch, beside the same plan in torch.

    ``models``: names or folders; ``llama``, ``bert``: random ones. ``u`` holds the first and last layer, ``w`` none.
    ``bits``: of weights and of the embedding (the embedding: 8 at least). ``installed_bytes``: programs on the disk.
    ``predicted_…``: what a plan says, from NumPy's speed as it was meanwhile.
    """
    shape, found = Shape(batch=batch, tokens=tokens, steps=steps), list[dict[str, object]]()
    with on_cores(threads):
        for model in words(models):
            with tempfile.TemporaryDirectory(prefix="fedsplit-") as scratch:
                source, _ = model_and_task(model, Path(scratch), hidden=hidden, layers=layers)
                base = open_base(source)
                for topology in words(topologies):
                    case = Case(source, base, plan_of(base.num_layers, topology), shape, threads, against_torch)
                    found += [{"model": model, **row} for row in measured(case, whole_numbers(bits), Path(scratch))]
    return found


def plan_of(depth: int, topology: str) -> ClientPlan:
    """The plan of a client with ``topology`` in a model of ``depth`` layers. Raises ConfigError for another word."""
    cuts = {"local": Cut(depth, depth), "u": Cut(1, depth - 1), "w": Cut(0, depth)}
    if topology not in cuts:
        raise ConfigError([Problem("--topologies", repr(topology), f"some of {', '.join(cuts)}")])
    cut = cuts[topology]
    layers = tuple(LayerPlan(layer=layer, place="client") for layer in (*range(cut.c1), *range(cut.c2, depth)))
    return ClientPlan(client="device", topology=Topology(topology), cut=cut, layers=layers, batch=1)


def whole_numbers(text: str) -> list[int]:
    """Raises ConfigError for anything that is no number of bits."""
    if wrong := [word for word in words(text) if word not in ("32", "16", "8", "4")]:
        raise ConfigError([Problem("--bits", repr(wrong[0]), "some of 32, 16, 8, 4, with commas between them")])
    return [int(word) for word in words(text)]


def measured(case: Case, bits: Sequence[int], scratch: Path) -> list[dict[str, object]]:
    """A row for each number of bits; torch, in float32, is measured beside all of them."""
    name = case.plan.topology.value
    with ExitStack() as stack:
        sides: dict[str, Turns] = {}
        sizes: dict[str, int] = {}
        for count in bits:
            folder, run = scratch / f"{name}-{count}", case.run(count)
            folder.mkdir()
            export(case.base, case.plan, run, folder)
            sizes[str(count)] = sum(path.stat().st_size for path in folder.iterdir())
            given = [str(folder), _written(folder / "run.json", run)]
            sides[str(count)] = stack.enter_context(_started("fedsplit.cli.bench_edge_part", given, case))
        if case.against_torch:
            run, plan = case.run(32), scratch / f"{name}.json"
            given = [case.source, _written(scratch / f"{name}-run.json", run), _written(plan, case.plan)]
            sides["torch"] = stack.enter_context(_started("fedsplit.cli.bench_edge_torch", given, case))
        speed = stack.enter_context(_started("fedsplit.cli.bench_edge_speed", [], case))
        speeds = []
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(case.shape.steps):
            if number % EVERY == 0:
                speeds.append(speed.step())
            for side, turns in sides.items():
                taken = turns.step()["seconds"]
                if number >= WARM:
                    seconds[side].append(taken)
        peaks = {side: peak_of(turns.pid) for side, turns in sides.items()}
    found = [_row(case, str(count), sizes, peaks, seconds) for count in bits]
    shape = case.shape.batch, case.shape.tokens
    for row, count in zip(found, bits, strict=True):
        asked = case.base, case.plan, case.run(count), *shape
        row |= {"predicted_bytes": predicted(*asked), "predicted_s": round(predicted_s(*asked, speeds), 5)}
    return found


def _started(module: str, given: Sequence[str], case: Case) -> Turns:
    shape = [str(case.shape.batch), str(case.shape.tokens), str(case.threads)]
    turns = Turns(
        module, [*given, *(shape if given else ())], case.threads, {"OPENBLAS_NUM_THREADS": str(case.threads)}
    )
    turns.ready()
    return turns


def _written(path: Path, what: RunFile | ClientPlan) -> str:
    path.write_bytes(msgspec.json.encode(what))
    return str(path)


def _row(
    case: Case, side: str, sizes: dict[str, int], peaks: dict[str, int], seconds: dict[str, list[float]]
) -> dict[str, object]:
    row: dict[str, object] = {
        "client": case.plan.topology.value, "cut": f"{case.plan.cut.c1}-{case.plan.cut.c2}", "bits": int(side),
        "batch": case.shape.batch, "tokens": case.shape.tokens, "threads": case.threads,
        "files_bytes": sizes[side], "peak_bytes": peaks[side],
    }  # fmt: skip
    median = statistics.median(seconds[side])
    row |= {"seconds": round(median, 5), "installed_bytes": installed("edge")}
    if "torch" in peaks:
        ratios = [ours / theirs for ours, theirs in zip(seconds[side], seconds["torch"], strict=True)]
        row |= {
            "torch_peak_bytes": peaks["torch"], "peak_ratio": round(peaks[side] / peaks["torch"], 4),
            "torch_seconds": round(statistics.median(seconds["torch"]), 5),
            "step_ratio": round(statistics.median(ratios), 4), "torch_installed_bytes": installed("torch"),
        }  # fmt: skip
    return row


# ---- programs --------------------------------------------------------------------------------------------------------


@cache
def installed(extra: str) -> int:
    """Bytes of the installed files of fedsplit's ``extra`` and of all that it needs here, fedsplit itself left out."""
    sizes: dict[str, int] = {}
    waiting = [_requirement(line) for line in _asked_for() if _wanted(line, extra)]
    while waiting:
        name = waiting.pop()
        if name in sizes:
            continue
        try:
            found = distribution(name)
        except PackageNotFoundError:  # for another system, or another Python
            continue
        sizes[name] = sum(file.size or 0 for file in found.files or ())
        waiting += [_requirement(line) for line in found.requires or () if _wanted(line, "")]
    return sum(sizes.values())


def _asked_for() -> Sequence[str]:
    """What fedsplit needs; of a clone that is not installed, what its pyproject.toml says."""
    try:
        return distribution("fedsplit").requires or ()
    except PackageNotFoundError:
        project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
        extras = project["optional-dependencies"].items()
        return [*project["dependencies"], *(f"{line}; extra == '{name}'" for name, lines in extras for line in lines)]


def _wanted(line: str, extra: str) -> bool:
    """Whether a line of a package's requirements holds without extras, or with ``extra``."""
    named = re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
    return named is None or named[1] == extra


def _requirement(line: str) -> str:
    matched = re.match(r"[A-Za-z0-9._-]+", line)
    assert matched is not None
    return re.sub(r"[-_.]+", "-", matched[0]).lower()
