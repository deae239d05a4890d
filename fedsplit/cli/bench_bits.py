"""``fedsplit bench bits``: a client that holds the whole model with the frozen matrices of its layers in fewer bits.

One process a number of bits, on the same cores and in turns, all with the same batches; their peaks are the kernel's
own. ``weight_bytes`` are counted in memory, ``planned_bytes`` are the planner's; both of the layers alone. ``rounding``
is the length of what the bits change in the matrices over theirs. What a run reaches with such a body says
``fedsplit bench quality --bits``.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from fedsplit.cli.bench_edge import WARM, whole_numbers
from fedsplit.cli.bench_models import LABELS, model_and_task
from fedsplit.cli.bench_runs import Shape, words
from fedsplit.cli.bench_turns import Turns, on_cores
from fedsplit.config.run import RunFile, Task
from fedsplit.emulate.ceiling import peak_of
from fedsplit.plan.bits import torch_bytes
from fedsplit.plan.card import card
from fedsplit.plan.types import ClientPlan, Cut, LayerPlan, Topology
from fedsplit.split.base import Base, open_base
from fedsplit.split.fewbits import FewBits
from fedsplit.split.segment import Segment, Span, build


def rows(
    models: str = "minilm",
    bits: str = "32,16,8,4",
    batch: int = 8,
    tokens: int = 64,
    steps: int = 12,
    threads: int = 1,
    hidden: int = 384,
    layers: int = 6,
) -> list[dict[str, object]]:
    """Bytes of the layers' weights, peak memory and seconds a step by the bits of the frozen matrices.

    ``models``: names or folders; ``llama``, ``bert``: random ones of ``hidden`` and ``layers``.
    """
    shape, found = Shape(batch=batch, tokens=tokens, steps=steps), list[dict[str, object]]()
    with on_cores(threads):
        for model in words(models):
            with tempfile.TemporaryDirectory(prefix="fedsplit-") as scratch:
                source, task = model_and_task(model, Path(scratch), hidden=hidden, layers=layers)
                case = Case(source, open_base(source), task, shape, threads)
                found += [{"model": model, **row} for row in measured(case, whole_numbers(bits), Path(scratch))]
    return found


@dataclass(frozen=True)
class Case:
    """What is compared."""

    source: str
    base: Base
    task: Task
    shape: Shape
    threads: int

    def run(self, bits: int) -> RunFile:
        labels = LABELS if self.task == "classification" else ()
        fewer = {"layers": "fit", "bits": [bits]} if bits < 32 else {}
        model = {"path": self.source, "task": self.task, "labels": labels}
        return msgspec.convert({"model": model, "plan": fewer}, RunFile)

    def plan(self, bits: int) -> ClientPlan:
        depth = self.base.num_layers
        layers = tuple(LayerPlan(layer=layer, place="client", bits=bits) for layer in range(depth))
        return ClientPlan(client="d", topology=Topology.LOCAL, cut=Cut(depth, depth), layers=layers, batch=1)


def measured(case: Case, bits: Sequence[int], scratch: Path) -> list[dict[str, object]]:
    """A row for each number of bits; ratios are to the first."""
    seconds: dict[int, list[float]] = {count: [] for count in bits}
    with ExitStack() as stack:
        sides = {count: stack.enter_context(_started(case, count, scratch)) for count in bits}
        for number in range(case.shape.steps + WARM):
            for count, turns in sides.items():
                taken = turns.step()["seconds"]
                if number >= WARM:
                    seconds[count].append(taken)
        peaks = {count: peak_of(turns.pid) for count, turns in sides.items()}
    found, first = list[dict[str, object]](), bits[0]
    for count in bits:
        counted, planned, rounding = weights(case, count)
        ratios = [one / other for one, other in zip(seconds[count], seconds[first], strict=True)]
        found.append(
            {
                "bits": count, "weight_bytes": counted, "planned_bytes": planned,
                "of_float32": round(counted / weights(case, 32)[0], 4), "rounding": round(rounding, 5),
                "peak_bytes": peaks[count], "seconds": round(statistics.median(seconds[count]), 5),
                "step_ratio": round(statistics.median(ratios), 3),
            }
        )  # fmt: skip
    return found


def weights(case: Case, bits: int) -> tuple[int, int, float]:
    """(bytes of the layers' weights, as planned, rounding)."""
    base, labels = case.base, len(LABELS) if case.task == "classification" else 0
    span, every = Span(0, base.num_layers), dict.fromkeys(range(base.num_layers), bits)
    with torch.no_grad():
        segment = build(base, span, task=case.task, num_labels=labels or None, bits=every)
        planned = base.num_layers * torch_bytes(card(base.config.to_dict(), case.task, labels), 4, bits)
        return segment.parameter_bytes, planned, _rounding(case, segment)


def _rounding(case: Case, segment: Segment) -> float:
    names = case.base.names(case.task, len(LABELS) if case.task == "classification" else None)
    changed = whole = 0.0
    for path, module in segment.model.named_modules():
        if isinstance(module, FewBits):
            exact = case.base.checkpoint.tensors[names.stored[f"{path}.weight"]].read(torch.float32)
            changed += float((module.packed.values(torch.float32) - exact).square().sum())
            whole += float(exact.square().sum())
    return math.sqrt(changed / whole) if whole else 0.0


def _started(case: Case, bits: int, scratch: Path) -> Turns:
    run, plan = scratch / f"run-{bits}.json", scratch / f"plan-{bits}.json"
    run.write_bytes(msgspec.json.encode(case.run(bits)))
    plan.write_bytes(msgspec.json.encode(case.plan(bits)))
    given = [case.source, str(run), str(plan), str(case.shape.batch), str(case.shape.tokens), str(case.threads)]
    turns = Turns("fedsplit.cli.bench_edge_torch", given, case.threads, {})
    turns.ready()
    return turns
